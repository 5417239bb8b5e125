"""Pushed events for several worker threads, each of which makes calls over the same connection.

`on_message` runs on the callbacks thread, one event after another, and only hands them on. Give the URL of a server
that pushes {"event": n} and knows prices as the only argument; without one this starts a server of its own.
"""

import json
import queue
import sys
import threading

import evtws
from evtws.testing import ClientConnection, Server

EVENTS = 20
WORKERS = 4


def work(connection: evtws.Connection, events: "queue.Queue[int | None]", done: "queue.Queue[str]") -> None:
    while (number := events.get()) is not None:
        reply = connection.request(evtws.Message.json({"id": number, "ask": "price"}), timeout=5)
        done.put(f"{threading.current_thread().name}: event {number}, price {reply.params['price']}")


def main(url: str) -> None:
    events: queue.Queue[int | None] = queue.Queue()
    done: queue.Queue[str] = queue.Queue()
    with evtws.connect(
        url,
        match_key=evtws.keyed("id"),
        msg_prep=evtws.json_params,
        on_message=lambda message, connection: events.put(message.params["event"]),
    ) as connection:
        workers = [threading.Thread(target=work, args=(connection, events, done), daemon=True) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        connection.send('{"subscribe": true}')
        for _ in range(EVENTS):
            print(done.get(timeout=5))
        for _ in workers:
            events.put(None)
        for worker in workers:
            worker.join()


def serve(client: ClientConnection, body: str | bytes) -> None:
    request = json.loads(body)
    if "subscribe" in request:
        for number in range(EVENTS):
            client.send(json.dumps({"event": number}))
    else:
        client.send(json.dumps({"id": request["id"], "price": request["id"] * 10}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with Server(serve) as server:
            main(server.url)
