"""What can go wrong between a request and its reply: exactly one outcome each, and the connection lives."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, Future

import pytest

import evtws
from evtws import (
    Connection,
    ConnectionLost,
    Message,
    NotConnected,
    PendingFull,
    ReplyTimeout,
)
from evtws.errors import Written
from evtws.testing import ClientConnection, Direction, FaultProxy, Server

from ..timing import MS, SOON
from .support import Ear, ask, echo, only_client, until

pytestmark = pytest.mark.usefixtures("nothing_leaks")


def ignore(_client: ClientConnection, _body: str | bytes) -> None:
    """A server's script that answers nothing."""


def outcome(connection: Connection, message: Message, sent: Callable[[], object]) -> tuple[str, Written | None]:
    """How a request ended: by "reply" or the name of its error, and what that says of its bytes.

    `sent` is called as soon as it was sent.
    """
    outcomes: list[tuple[str, Written | None]] = []
    message.callback = lambda _reply, _connection: outcomes.append(("reply", None))
    message.on_failure = lambda error, _connection: outcomes.append(
        (type(error).__name__, getattr(error, "written", None))
    )
    connection.send(message)
    sent()
    assert until(lambda: outcomes)
    connection.close()
    assert len(outcomes) == 1
    return outcomes[0]


def cut_at(proxy: FaultProxy, direction: Direction, count: int) -> Callable[[], object]:
    """Cut the open connection at that byte, when it comes; returns what is to be called once the request was sent."""
    if count:
        direction.cut_in(count)
        return lambda: None
    # To cut in 0 bytes is to cut now, before the first byte has come.
    direction.swallow = True

    def cut() -> None:
        assert proxy.wait_for(lambda: direction.bytes_swallowed, SOON)
        direction.cut_in(0)

    return cut


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
def test_e1_the_request_is_cut_at_every_byte(reset: bool) -> None:
    """E1: a connection that is cut at any byte of a request fails it once, and says that its bytes were written."""
    size = 2 + 4 + len(ask().body)
    with Server(ignore) as server:
        for count in range(size + 1):
            ear = Ear()
            with FaultProxy(server.port) as proxy:
                connection = Connection(**ear.options)
                connection.dial(proxy.url_of(server.url))
                proxy.to_server.cut_by = "RST" if reset else "FIN"
                sent = cut_at(proxy, proxy.to_server, count)
                assert outcome(connection, ask(), sent) == ("ConnectionLost", "yes"), count
                assert ("reset" in str(ear.one_error())) is reset
        assert server.wait_for(1, SOON)
        assert server.received == [ask().body]  # at the last cut


def test_e1_the_reply_is_cut_at_every_byte() -> None:
    """E1: a connection that is cut at any byte of a reply fails the request once, unless the reply is whole."""
    size = 2 + len(ask().body)
    with Server(echo) as server:
        for count in range(size + 1):
            ear = Ear()
            with FaultProxy(server.port) as proxy:
                connection = Connection(**ear.options)
                connection.dial(proxy.url_of(server.url))
                sent = cut_at(proxy, proxy.to_client, count)
                lost = ("ConnectionLost", "yes") if count < size else ("reply", None)
                assert outcome(connection, ask(), sent) == lost, count
                assert ear.messages == []


def test_e1_what_was_not_written_is_told() -> None:
    """E1: of requests behind a peer that does not read, those not begun say "no" and the one begun says "maybe"."""
    ear = Ear()
    with Server(on_connect=lambda client: client.pause_reading()) as server:
        connection = Connection(write_buffer=1 << 26, **ear.options)
        connection.dial(server.url)
        client = only_client(server)
        begun = connection.submit(Message("x" * (32 << 20), {"id": 1}))
        behind = connection.submit(ask(2))
        client.drop(reset=True)
        errors = [future.exception(SOON) for future in (begun, behind)]
        connection.close()
    assert [getattr(error, "written", error) for error in errors] == ["maybe", "no"]


def test_e1_a_request_after_the_loss_is_refused() -> None:
    """E1: a request that was never accepted raises NotConnected, and is told to nobody else."""
    ear = Ear()
    with Server() as server:
        connection = Connection(**ear.options)
        connection.dial(server.url)
        server.drop_all()
        ear.one_error()
        with pytest.raises(NotConnected):
            connection.request(ask())
        connection.close()
    assert len(ear.errors) == 1


def test_e2_a_reply_that_outruns_send() -> None:
    """E2: a reply that is there before `send` has returned finds its request."""
    ear = Ear()
    replies: list[int] = []
    with Server(echo) as server, evtws.connect(server.url, **ear.options) as connection:
        for number in range(2000):
            connection.send(
                Message.json({"id": number}, lambda reply, _: replies.append(reply.params["id"]), timeout=SOON)
            )
        assert until(lambda: len(replies) == 2000)
    assert sorted(replies) == list(range(2000))
    assert (ear.messages, ear.errors) == ([], [])


def test_e3_a_late_reply() -> None:
    """E3: a reply after the timeout, or to a cancelled request, counts as late and goes to on_message alone."""
    ear = Ear()
    with Server(ignore) as server, evtws.connect(server.url, **ear.options) as connection:
        client = only_client(server)
        with pytest.raises(ReplyTimeout):
            connection.request(ask(1), timeout=10 * MS)
        cancelled = connection.submit(ask(2))
        assert cancelled.cancel()
        other = connection.submit(ask(3))
        for number in (1, 2, 3):
            client.send(ask(number).body)
        assert other.result(SOON).params == {"id": 3}
        ear.wait_for(lambda: ear.messages == [ask(1).body, ask(2).body])
        assert connection.stats().late == 2


def test_e3_duplicate_and_unknown_replies() -> None:
    """E3: a second reply counts as duplicate, one that nobody asked for as unmatched; both go to on_message."""
    ear = Ear()
    with Server(ignore) as server, evtws.connect(server.url, **ear.options) as connection:
        client = only_client(server)
        first, second = connection.submit_many([ask(1), ask(2)])
        for number in (1, 1, 9, 2):
            client.send(ask(number).body)
        assert [first.result(SOON).params, second.result(SOON).params] == [{"id": 1}, {"id": 2}]
        ear.wait_for(lambda: ear.messages == [ask(1).body, ask(9).body])
        stats = connection.stats()
        assert (stats.duplicate, stats.unmatched, stats.late) == (1, 1, 0)


@pytest.mark.parametrize("other", ['"1"', "1.0", "true", "null", "[1]", '{"a":1}'])
def test_e3_an_id_of_another_type(other: str) -> None:
    """E3: a reply whose id is equal in another type only is not this request's."""
    ear = Ear()
    with Server(ignore) as server, evtws.connect(server.url, **ear.options) as connection:
        client = only_client(server)
        request = connection.submit(ask(1))
        client.send(f'{{"id":{other}}}')
        client.send('{"id":1}')
        assert request.result(SOON).body == '{"id":1}'
        ear.wait_for(lambda: ear.messages == [f'{{"id":{other}}}'])


def test_e4_replies_in_any_order() -> None:
    """E4: 20,000 replies in random order and one burst each find their request."""
    count = 20_000
    held: list[str | bytes] = []

    def script(client: ClientConnection, body: str | bytes) -> None:
        held.append(body)
        if len(held) == count:
            random.Random(4).shuffle(held)
            for reply in held:
                client.send(reply)

    ear = Ear()
    with (
        Server(script, record=False) as server,
        evtws.connect(server.url, write_buffer=1 << 24, **ear.options) as connection,
    ):
        futures = connection.submit_many([ask(number) for number in range(count)])
        assert [future.result(SOON).params["id"] for future in futures] == list(range(count))
        assert connection.pending == ()
    assert (ear.messages, ear.errors) == ([], [])


def test_e7_an_id_that_is_pending() -> None:
    """E7: a key in use is refused with `duplicate_keys="refuse"`, and can be used again after its reply."""
    ear = Ear()
    with (
        Server(ignore) as server,
        evtws.connect(server.url, duplicate_keys="refuse", **ear.options) as connection,
    ):
        first = connection.submit(ask())
        with pytest.raises(ValueError, match="pending"):
            connection.submit(ask())
        only_client(server).send(ask().body)
        first.result(SOON)
        connection.submit(ask())
        assert len(connection.pending) == 1


def test_e7_an_id_is_queued_behind_itself() -> None:
    """E7: with `duplicate_keys="queue"` the replies of one id go to its requests in their order."""
    ear = Ear()
    with Server(ignore) as server, evtws.connect(server.url, **ear.options) as connection:
        client = only_client(server)
        futures = connection.submit_many([ask(), ask()])
        client.send('{"id":1,"n":1}')
        client.send('{"id":1,"n":2}')
        assert [future.result(SOON).params["n"] for future in futures] == [1, 2]


def test_e7_a_new_connection_knows_no_old_ids() -> None:
    """E7: after a reconnection a reply to a request of the old connection is neither late nor anybody's."""
    ear = Ear()
    policy = evtws.ReconnectPolicy(wait=lambda _: 0)
    with (
        Server(ignore) as server,
        evtws.connect(server.url, reconnect=policy, **ear.options) as connection,
    ):
        lost = connection.submit(ask(1))
        server.drop_all()
        assert isinstance(lost.exception(SOON), ConnectionLost)
        ear.wait_for(lambda: ear.connected == 2)
        only_client(server).send(ask(1).body)
        ear.wait_for(lambda: ear.messages == [ask(1).body])
        assert (connection.stats().late, connection.stats().unmatched) == (0, 1)


def test_e8_the_queue_is_full() -> None:
    """E8: a request above `max_pending` raises PendingFull, and there is room again once one has ended."""
    ear = Ear()
    with Server(ignore) as server, evtws.connect(server.url, max_pending=2, **ear.options) as connection:
        first, _ = connection.submit_many([ask(1), ask(2)])
        for refused in (connection.submit, connection.request):
            with pytest.raises(PendingFull):
                refused(ask(3))
        assert len(connection.pending) == 2
        first.cancel()
        connection.submit(ask(4))
        with pytest.raises(PendingFull):
            connection.submit_many([ask(5), ask(6)])
        assert [message.params["id"] for message in connection.pending] == [2, 4]


class Race:
    """Requests whose replies, timeouts and cancellations come at random and at once."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.called: Counter[int] = Counter()
        self.outcomes: Counter[str] = Counter()

    def answer(self, client: ClientConnection, body: str | bytes) -> None:
        """The server's script: a reply at random within 4 ms, or twice, or never."""
        for _ in range(self._random.choice((1, 1, 1, 2, 0))):
            client.send_later(self._random.random() * 4 * MS, body)

    def run(self, connection: Connection, numbers: range) -> None:
        """Send them all, cancel a third of them at random, and note how each ended."""
        futures = []
        for number in numbers:
            future = connection.submit(ask(number), timeout=self._random.random() * 5 * MS)
            future.add_done_callback(lambda _, number=number: self.called.update([number]))  # type: ignore[misc]
            futures.append(future)
        for future in self._random.sample(futures, len(futures) // 3):
            future.cancel()
        for future in futures:
            self.outcomes[self._outcome(future)] += 1

    @staticmethod
    def _outcome(future: Future[Message]) -> str:
        try:
            future.result(SOON)
        except ReplyTimeout:
            return "timeout"
        except CancelledError:
            return "cancelled"
        return "reply"


def test_e9_races() -> None:
    """E9: in 10,000 races of reply, timeout and cancellation each request ends once, and no reply goes astray."""
    ear = Ear()
    race = Race(9)
    count = 10_000
    with Server(race.answer, record=False) as server, evtws.connect(server.url, **ear.options) as connection:
        for start in range(0, count, 100):
            race.run(connection, range(start, start + 100))
        assert until(lambda: len(race.called) == count)
        assert connection.pending == ()
        assert connection.drain(SOON)
    assert set(race.called.values()) == {1}
    assert sum(race.outcomes.values()) == count
    assert min(race.outcomes[kind] for kind in ("reply", "timeout", "cancelled")) > 100, race.outcomes
    assert connection.stats().messages_received == race.outcomes["reply"] + len(ear.messages)
    assert ear.errors == []


def test_e9_a_loss_races_with_everything() -> None:
    """E9: when the connection is lost amid replies, timeouts and cancellations each request ends once, too."""
    ear = Ear()
    race = Race(10)
    with Server(race.answer, record=False) as server:
        for round_number in range(30):
            connection = Connection(**ear.options)
            connection.dial(server.url)
            futures = [connection.submit(ask(number), timeout=5 * MS) for number in range(50)]
            race.called.clear()
            for number, future in enumerate(futures):
                future.add_done_callback(lambda _, number=number: race.called.update([number]))  # type: ignore[misc]
            server.drop_all(reset=round_number % 2 == 0)
            for future in futures[::7]:
                future.cancel()
            assert until(lambda: len(race.called) == 50)
            connection.close()
            assert all(future.done() for future in futures)
            assert set(race.called.values()) == {1}


def test_e11_nothing_is_sent_twice_unless_marked() -> None:
    """E11: upon a reconnection only requests that are marked "resend" are sent again, in their order."""
    ear = Ear()
    held = threading.Event()
    policy = evtws.ReconnectPolicy(wait=lambda _: 0)

    def script(client: ClientConnection, body: str | bytes) -> None:
        if held.is_set():
            client.send(body)

    def marked(number: int) -> Message:
        return Message.json({"id": number}, in_flight="resend")

    with (
        Server(script) as server,
        evtws.connect(server.url, reconnect=policy, **ear.options) as connection,
    ):
        plain = [connection.submit(ask(number)) for number in (1, 2)]
        again = [connection.submit(marked(number)) for number in (3, 4, 5)]
        assert server.wait_for(5, SOON)
        held.set()
        server.drop_all()
        assert [future.result(SOON).params["id"] for future in again] == [3, 4, 5]
        errors = [future.exception(SOON) for future in plain]
        assert all(isinstance(error, ConnectionLost) and error.written == "yes" for error in errors)
        assert server.received[5:] == [ask(number).body for number in (3, 4, 5)]
