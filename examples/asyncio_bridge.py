"""Calls from asyncio: `submit` returns a concurrent.futures.Future, which `asyncio.wrap_future` can await.

Cancelling the awaiting task takes the request out of the queue. Give the URL of a server that answers {"id": n} as the
only argument; without one this starts a server of its own.
"""

import asyncio
import json
import sys

import evtws
from evtws.testing import ClientConnection, Server


async def call(connection: evtws.Connection, number: int) -> str:
    reply = await asyncio.wrap_future(connection.submit(evtws.Message.json({"id": number})))
    return str(reply.params["result"])


async def talk(connection: evtws.Connection) -> None:
    print(await asyncio.gather(*(call(connection, number) for number in range(5))))
    try:
        await asyncio.wait_for(call(connection, -1), timeout=0.2)
    except asyncio.TimeoutError:
        print("no answer to -1;", len(connection.pending), "left in the queue")


def main(url: str) -> None:
    with evtws.connect(url, match_key=evtws.keyed("id"), msg_prep=evtws.json_params) as connection:
        asyncio.run(talk(connection))


def answer(client: ClientConnection, body: str | bytes) -> None:
    number = json.loads(body)["id"]
    if number >= 0:
        client.send(json.dumps({"id": number, "result": number**2}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with Server(answer) as server:
            main(server.url)
