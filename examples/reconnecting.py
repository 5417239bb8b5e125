"""A connection that comes back: what becomes of requests and of messages while it is away.

The wait and the limit are tenacity's strategies; bring your own. `prepare` says the subscription again after each open.
Give the URL of a server that answers {"id": n} as the only argument; without one this starts a server of its own, which
cuts the line when it is asked to.
"""

import json
import logging
import sys

from tenacity import stop_after_delay, wait_random_exponential

import evtws
from evtws.testing import ClientConnection, Server

log = logging.getLogger("reconnecting")


def subscribe(connection: evtws.Connection) -> None:
    """A `prepare`: its messages go out first, whatever waits in the outbox."""
    connection.request(evtws.Message.json({"id": "subscribe"}), timeout=5)


def main(url: str) -> None:
    with evtws.connect(
        url,
        match_key=evtws.keyed("id"),
        msg_prep=evtws.json_params,
        prepare=subscribe,
        reconnect=evtws.ReconnectPolicy(
            wait=wait_random_exponential(multiplier=0.2, max=30), stop=stop_after_delay(60), stable_after=10
        ),
        in_flight="resend",
        outbox=100,
        on_error=lambda error: log.info("error: %s", error),
        on_connected=lambda connection: log.info("connected"),
        on_disconnected=lambda connection, error: log.info("disconnected%s", "" if error else " by close()"),
    ) as connection:
        log.info("reply: %s", connection.request(evtws.Message.json({"id": 1}), timeout=20).params)
        # The line is cut while these two await their reply. The first is sent again, the second is not.
        again = connection.submit(evtws.Message.json({"id": 2, "cut": True}), timeout=20)
        once = connection.submit(evtws.Message.json({"id": 3, "silent": True}, in_flight="fail"), timeout=20)
        log.info("not sent again: %s", once.exception())
        log.info("sent again: %s", again.result().params)
        log.info("reconnects: %d", connection.stats().reconnects)


class Cutter:
    """A server that cuts the line once."""

    def __init__(self) -> None:
        self.has_cut = False

    def __call__(self, client: ClientConnection, body: str | bytes) -> None:
        request = json.loads(body)
        if "cut" in request and not self.has_cut:
            self.has_cut = True
            client.drop()
        elif "silent" not in request:
            client.send(json.dumps({"id": request["id"], "result": "ok"}))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        with Server(Cutter()) as server:
            main(server.url)
