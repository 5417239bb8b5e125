"""A login after each open, by `prepare`, with a token that is asked for anew at each attempt.

Until `prepare` returns nobody else's message goes out; what it raises ends the attempt. Give the URL of a server that
takes {"id": "login", "token": ...} as the only argument; without one this starts a server of its own.
"""

import json
import sys

import evtws
from evtws.testing import ClientConnection, Server


class Account:
    def __init__(self, *tokens: str) -> None:
        self._tokens = list(tokens)

    def login(self, connection: evtws.Connection) -> None:
        token = self._tokens.pop(0)
        reply = connection.request(evtws.Message.json({"id": "login", "token": token}))
        if not reply.params["ok"]:
            raise PermissionError(f"the token {token!r} was not taken")


def main(url: str) -> None:
    account = Account("old", "new")
    connection = evtws.Connection(
        match_key=evtws.keyed("id"), msg_prep=evtws.json_params, prepare=account.login, connect_timeout=10
    )
    try:
        connection.dial(url)
    except evtws.PrepareError as error:
        print("first attempt:", error)
    connection.dial(url)
    with connection:
        print("second attempt:", connection.request(evtws.Message.json({"id": "whoami"}), timeout=5).params["name"])


def answer(client: ClientConnection, body: str | bytes) -> None:
    request = json.loads(body)
    if request["id"] == "login":
        client.send(json.dumps({"id": "login", "ok": request["token"] == "new"}))
    else:
        client.send(json.dumps({"id": request["id"], "name": "Ada"}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with Server(answer) as server:
            main(server.url)
