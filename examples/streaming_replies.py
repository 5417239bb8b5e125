"""One request with several replies, taken one by one; leaving early tells the server to stop.

Give the URL of a server that knows "count" and "stop" as the only argument; without one this starts a server of its
own.
"""

import json
import sys

import evtws
from evtws.testing import ClientConnection, Server


def is_last(reply: evtws.Message) -> bool:
    return bool(reply.params["last"])


def stop(request: evtws.Message) -> evtws.Message:
    return evtws.Message.json({"stop": request.params["id"]})


def main(url: str) -> None:
    with evtws.connect(url, match_key=evtws.keyed("id"), msg_prep=evtws.json_params) as connection:
        for reply in connection.stream(evtws.Message.json({"id": 1, "count": 5}), until=is_last):
            print("reply", reply.params["number"])
        request = evtws.Message.json({"id": 2, "count": 500})
        with connection.stream(request, until=is_last, timeout=5, on_cancel=stop) as replies:
            print("the first is", next(replies).params["number"], "and that is enough")


def count(client: ClientConnection, body: str | bytes) -> None:
    request = json.loads(body)
    if "stop" in request:
        print("the server was told to stop", request["stop"])
        return
    for number in range(1, request["count"] + 1):
        item = {"id": request["id"], "number": number, "last": number == request["count"]}
        client.send_later(number / 100, json.dumps(item))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with Server(count) as server:
            main(server.url)
            server.wait_for(3, timeout=5)
