"""Callbacks, in the way of evtWebsocketClient: configure, dial, send, and hear of the reply by a function.

Give the URL of a server that echoes as the only argument; without one this starts a server of its own.
"""

import sys
import threading

import evtws
from evtws.testing import ClientConnection, Server


def same_id(request: evtws.Message, response: evtws.Message) -> bool:
    """A `match_msg`."""
    return bool(request.params["MsgID"] == response.params["MsgID"])


def main(url: str) -> None:
    ended = threading.Semaphore(0)

    def replied(reply: evtws.Message, connection: evtws.Connection) -> None:
        print("reply:", reply.params["Body"])
        ended.release()

    def failed(error: evtws.EvtwsError, connection: evtws.Connection) -> None:
        print("no reply:", type(error).__name__)
        ended.release()

    connection = evtws.Connection(
        on_connected=lambda connection: print("connected"),
        on_message=lambda message, connection: print("event:", message.body),
        on_error=lambda error: print("error:", error),
        match_msg=same_id,
        msg_prep=evtws.json_params,
    )
    connection.dial(url)
    with connection:
        for number in (1, 2, 3):
            connection.send(evtws.Message.json({"MsgID": number, "Body": f"hello {number}"}, replied))
        # Exactly one of the two functions is called: here the echo is too late.
        connection.send(evtws.Message.json({"MsgID": 4, "Body": "late"}, replied, on_failure=failed, timeout=0))
        for _ in range(4):
            ended.acquire(timeout=5)


def echo(client: ClientConnection, body: str | bytes) -> None:
    client.send_later(0.1, body)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with Server(echo) as server:
            main(server.url)
