"""The model of evtWebsocketClient fails the checks by its faults alone."""

from __future__ import annotations

import queue
import threading

from evtws import Message, json_params
from evtws.testing import ClientConnection, Server

from .faults.support import ask, echo, until
from .original_model import Original
from .timing import SOON


def test_the_model_works() -> None:
    """The model calls back, removes, reconnects and closes like the original."""
    replies: queue.Queue[str | bytes] = queue.Queue()
    connected = threading.Semaphore(0)
    model = Original(
        reconnect=True,
        on_connected=lambda _: connected.release(),
        match_msg=lambda reply, request: reply.params == request.params,
        msg_prep=json_params,
    )
    gone: list[ClientConnection] = []
    with Server(echo) as server:
        model.dial(server.url)
        for number in (1, 2):
            assert connected.acquire(timeout=SOON)
            client = server.wait_for(lambda: [last for last in server.connections if last not in gone], SOON)[0]
            model.send(Message.json({"id": number}, lambda reply, _: replies.put(reply.body)))
            assert replies.get(timeout=SOON) == ask(number).body
            assert until(lambda: not model.pending)
            client.drop()
            gone.append(client)
        assert connected.acquire(timeout=SOON)
        removed = ask(3)
        model.pending.append(removed)
        model.remove_from_queue(removed)
        assert model.pending == []
        model.reconnect = False
        model.close()
        assert not model.is_connected
