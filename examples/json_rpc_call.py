"""JSON-RPC over a websocket: a call, and an answer that says no.

`keyed("id")` finds the request that a reply answers. Give the URL of a server that has a method "add" as the only
argument; without one this starts a server of its own.
"""

import itertools
import json
import sys
from typing import Any

import evtws
from evtws.testing import ClientConnection, Server

ids = itertools.count(1)


def call(connection: evtws.Connection, method: str, *params: object) -> Any:
    """The result of a remote call."""
    request = {"jsonrpc": "2.0", "id": next(ids), "method": method, "params": params}
    reply = connection.request(evtws.Message.json(request), timeout=5).params
    if "error" in reply:
        raise RuntimeError(f"{method}: {reply['error']['message']}")
    return reply["result"]


def main(url: str) -> None:
    with evtws.connect(url, match_key=evtws.keyed("id"), msg_prep=evtws.json_params) as connection:
        print("2 + 3 =", call(connection, "add", 2, 3))
        try:
            call(connection, "divide", 1, 0)
        except RuntimeError as error:
            print(error)


def answer(client: ClientConnection, body: str | bytes) -> None:
    request = json.loads(body)
    if request["method"] == "add":
        outcome = {"result": sum(request["params"])}
    else:
        outcome = {"error": {"code": -32601, "message": "there is no such method"}}
    client.send(json.dumps({"jsonrpc": "2.0", "id": request["id"], **outcome}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with Server(answer) as server:
            main(server.url)
