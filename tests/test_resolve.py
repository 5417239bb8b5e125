"""Resolving names aside, and racing addresses."""

from __future__ import annotations

import errno
import math
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from evtws import resolve as room
from evtws.errors import DialAborted, DialError, DialTimeout, ResolveError
from evtws.resolve import Address, Attempt, HasFileno, Lookup, Race, blocking_wait, connect, interleave, resolve
from evtws.testing import RawServer

from .raw import closed_port, descriptors
from .timing import MS, SOON


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("evtws")]


@pytest.fixture
def attempt() -> Attempt:
    return Attempt(time.monotonic() + SOON, blocking_wait)


@pytest.fixture
def blackhole() -> Iterator[Address]:
    """An address whose SYNs go unanswered: the backlog of its listener is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield local(listener.getsockname()[1])
        for filler in fillers:
            filler.close()


def local(port: int) -> Address:
    return Address(socket.AF_INET, ("127.0.0.1", port))


def aborting(*_: object) -> list[HasFileno]:
    raise DialAborted("closing")


def soon_over() -> Attempt:
    return Attempt(time.monotonic() + 50 * MS, blocking_wait)


class Resolver:
    """Stands in for the system's resolver: answers when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
        self.answer = answer
        self.may_answer = threading.Event()
        self.thread: threading.Thread | None = None
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, *_: object, **__: object) -> Any:
        self.thread = threading.current_thread()
        assert self.may_answer.wait(SOON)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def end(self) -> None:
        self.may_answer.set()
        for thread in threading.enumerate():
            if thread.name == "evtws-resolve":
                thread.join(SOON)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_literal_starts_no_thread(host: str, attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """A literal address is resolved without a thread."""
    monkeypatch.setattr(threading.Thread, "start", None)
    assert [address.sockaddr[:2] for address in resolve(host, 80, attempt)] == [(host, 80)]


def test_a_name_is_resolved_aside(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is resolved in a daemon thread of its own, and its addresses keep their order."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{n}", 80)) for n in (2, 1)]
    resolver = Resolver(monkeypatch, found)
    resolver.may_answer.set()
    assert [str(address) for address in resolve("a.example", 80, attempt)] == ["192.0.2.2:80", "192.0.2.1:80"]
    assert resolver.thread is not None
    assert resolver.thread.name == "evtws-resolve"
    assert resolver.thread.daemon
    resolver.end()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (UnicodeError("label too long"), "UnicodeError"),
        ([], "it has no address"),
    ],
)
def test_resolve_error(answer: object, why: str, attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name without an address is a ResolveError that names the host and says why."""
    resolver = Resolver(monkeypatch, answer)
    resolver.may_answer.set()
    with pytest.raises(ResolveError, match=f"a.example: {why}"):
        resolve("a.example", 80, attempt)
    resolver.end()


def test_a_resolver_that_hangs_is_left_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resolver that hangs costs the deadline, and leaks nothing once it returns."""
    resolver = Resolver(monkeypatch, [])
    with pytest.raises(DialTimeout, match=r"timed out resolving a\.example"):
        resolve("a.example", 80, soon_over())
    resolver.end()


def test_a_resolver_that_hangs_is_left_on_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the wait raises ends the resolving, however long the resolver hangs."""
    resolver = Resolver(monkeypatch, [])
    with pytest.raises(DialAborted):
        resolve("a.example", 80, Attempt(math.inf, aborting))
    resolver.end()


def test_a_wait_may_return_early(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that returns nothing before the deadline is called again."""
    resolver = Resolver(monkeypatch, [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))])
    calls = []

    def early(readers: Sequence[HasFileno], writers: Sequence[HasFileno], deadline: float) -> list[HasFileno]:
        calls.append(deadline)
        if len(calls) == 1:
            return []
        resolver.may_answer.set()
        return blocking_wait(readers, writers, deadline)

    assert resolve("a.example", 80, Attempt(attempt.deadline, early))
    assert calls == [attempt.deadline, attempt.deadline]
    resolver.end()


def test_no_thread_left(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started, resolving fails with a ResolveError."""

    def start(_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ResolveError, match="can't start new thread"):
        resolve("a.example", 80, attempt)


def test_no_descriptor_left_to_resolve(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no descriptor left, resolving fails with a ResolveError."""

    def socketpair() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", socketpair)
    with pytest.raises(ResolveError, match="Too many open files"):
        resolve("a.example", 80, attempt)


def answered(lookup: Lookup) -> list[Address]:
    """Wait until there is an answer, and take it."""
    assert blocking_wait([lookup], [], time.monotonic() + SOON) == [lookup]
    lookup.look()
    assert lookup.done
    return lookup.addresses()


def test_a_lookup_of_a_literal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lookup of a literal address is done at once; there is no descriptor to wait for, and no thread."""
    monkeypatch.setattr(threading.Thread, "start", None)
    with Lookup("192.0.2.1", 80) as lookup:
        assert lookup.done
        assert lookup.fileno() == -1
        assert lookup.addresses() == [Address(socket.AF_INET, ("192.0.2.1", 80))]


def test_a_lookup_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lookup of a name is not done until its descriptor is readable and `look` was called."""
    resolver = Resolver(monkeypatch, [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))])
    with Lookup("a.example", 80) as lookup:
        assert blocking_wait([lookup], [], time.monotonic() + 10 * MS) == []
        resolver.may_answer.set()
        assert blocking_wait([lookup], [], time.monotonic() + SOON) == [lookup]
        assert not lookup.done
        assert answered(lookup) == [Address(socket.AF_INET, ("192.0.2.1", 80))]
    resolver.end()


def test_a_lookup_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup that is left gives its descriptor back at once, however long the resolver hangs."""
    resolver = Resolver(monkeypatch, [])
    with Lookup("a.example", 80) as lookup:
        assert lookup.fileno() >= 0
    assert lookup.fileno() == -1
    assert not lookup.done
    resolver.end()


@pytest.mark.parametrize("host", ["a.example", "192.0.2.1"])
def test_what_is_done_aside(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be done aside is done by the lookup's thread before it asks, for a literal address too."""
    done: list[str] = []
    resolver = Resolver(monkeypatch, [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))])

    def aside() -> None:
        assert resolver.thread is None
        done.append(threading.current_thread().name)
        resolver.may_answer.set()

    with Lookup(host, 80, aside) as lookup:
        assert answered(lookup) == [Address(socket.AF_INET, ("192.0.2.1", 80))]
    assert done == ["evtws-resolve"]
    resolver.end()


def test_what_fails_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised aside is raised by `addresses` as it is, and nobody is asked."""
    resolver = Resolver(monkeypatch, [])

    def aside() -> None:
        raise PermissionError("not yours")

    with Lookup("a.example", 80, aside) as lookup, pytest.raises(PermissionError, match="not yours"):
        answered(lookup)
    resolver.end()
    assert resolver.thread is None


def test_interleave() -> None:
    """The families take turns, the first one's first, and no address comes twice."""
    six = [Address(socket.AF_INET6, (f"::{n}", 80, 0, 0)) for n in range(3)]
    four = [Address(socket.AF_INET, (f"192.0.2.{n}", 80)) for n in range(1)]
    assert interleave([*six, *four, *six]) == [six[0], four[0], six[1], six[2]]


def test_connected(attempt: Attempt) -> None:
    """The socket is connected, does not block and has TCP_NODELAY."""
    with RawServer(lambda peer: peer.hold()) as server, connect([local(server.port)], attempt) as sock:
        assert sock.getpeername() == ("127.0.0.1", server.port)
        assert sock.gettimeout() == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_next_address_is_tried_at_once(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that fails, at once or later, gives way to the next one without a delay."""
    monkeypatch.setattr(room, "CONNECT_DELAY", 2 * SOON)
    bad = [Address(9999, ("x", 1)), Address(socket.AF_INET, ("224.0.0.1", 80)), local(closed_port())]
    with RawServer(lambda peer: peer.hold()) as server, connect([*bad, local(server.port)], attempt) as sock:
        assert sock.getpeername()[1] == server.port


def test_an_unreachable_first_address_costs_the_delay(attempt: Attempt, blackhole: Address) -> None:
    """An address that does not answer costs a quarter of a second, not a timeout."""
    with RawServer(lambda peer: peer.hold()) as server:
        begun = time.monotonic()
        with connect([blackhole, local(server.port)], attempt) as sock:
            assert sock.getpeername()[1] == server.port
        assert 0.2 < time.monotonic() - begun < 0.25 + 700 * MS


def test_a_failure_starts_the_next_one(attempt: Attempt, blackhole: Address) -> None:
    """While one address hangs, another that fails gives way to the next one at once."""
    bad = [blackhole, *(local(closed_port()) for _ in range(4))]
    with RawServer(lambda peer: peer.hold()) as server:
        begun = time.monotonic()
        connect([*bad, local(server.port)], attempt).close()
        assert time.monotonic() - begun < 3 * room.CONNECT_DELAY


def test_all_addresses_fail(attempt: Attempt) -> None:
    """When no address answers, the error names each one and why."""
    ports = [closed_port(), closed_port()]
    with pytest.raises(DialError) as caught:
        connect([local(port) for port in ports], attempt)
    for port in ports:
        assert f"127.0.0.1:{port}: Connection refused" in str(caught.value)
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_connect_timeout(blackhole: Address) -> None:
    """Connecting ends at the deadline with a DialTimeout that names the address."""
    with pytest.raises(DialTimeout, match=f"timed out connecting to {blackhole}"):
        connect([blackhole], soon_over())


def test_connect_after_the_deadline(blackhole: Address) -> None:
    """After the deadline nothing is waited for any more."""
    with pytest.raises(DialTimeout):
        connect([blackhole], Attempt(time.monotonic(), aborting))


def test_connect_is_aborted(blackhole: Address) -> None:
    """What the wait raises ends the race and closes every runner."""
    with pytest.raises(DialAborted):
        connect([blackhole, blackhole], Attempt(math.inf, aborting))


def test_the_losers_are_closed(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that connect at the same time one wins, and the other is closed."""
    monkeypatch.setattr(room, "CONNECT_DELAY", 0)

    def both(readers: Sequence[HasFileno], writers: Sequence[HasFileno], deadline: float) -> list[HasFileno]:
        if len(writers) < 2:
            return []
        ready: list[HasFileno] = []
        while len(ready) < 2:
            ready = blocking_wait(readers, writers, deadline)
        return ready

    with (
        RawServer(lambda peer: peer.hold()) as one,
        RawServer(lambda peer: peer.hold()) as two,
        connect([local(one.port), local(two.port)], Attempt(attempt.deadline, both)) as sock,
    ):
        assert sock.getpeername()[1] in (one.port, two.port)


def test_a_race_begins_with_the_first(monkeypatch: pytest.MonkeyPatch, blackhole: Address) -> None:
    """A race starts the first attempt, and no other before its time has come."""
    monkeypatch.setattr(room, "CONNECT_DELAY", SOON)
    with Race([blackhole, local(closed_port())]) as race:
        assert race.running == []
        begun = time.monotonic()
        race.start_next()
        assert begun + SOON <= race.next_start <= time.monotonic() + SOON
        (first,) = race.running
        race.start_next()
        race.look([])
        assert race.running == [first]
    assert race.winner is None


def test_a_race_step_by_step(monkeypatch: pytest.MonkeyPatch, blackhole: Address) -> None:
    """When its time has come the next attempt starts; the first that connects wins, and the others are closed."""
    monkeypatch.setattr(room, "CONNECT_DELAY", 20 * MS)
    with RawServer(lambda peer: peer.hold()) as server:
        with Race([blackhole, local(server.port)]) as race:
            race.start_next()
            (first,) = race.running
            assert blocking_wait([], race.running, race.next_start) == []
            race.start_next()
            assert len(race.running) == 2
            assert race.running[0] is first
            assert race.next_start == math.inf
            race.look(blocking_wait([], race.running, time.monotonic() + SOON))
            assert race.running == [first]
        assert first.fileno() == -1
        assert race.winner is not None
        assert race.winner.getpeername()[1] == server.port
        race.winner.close()


def test_a_failure_makes_the_next_one_due(blackhole: Address) -> None:
    """An attempt that fails drops out of the race and is closed, and the next one is due at once."""
    with Race([local(closed_port()), blackhole]) as race:
        race.start_next()
        (first,) = race.running
        race.look(blocking_wait([], race.running, time.monotonic() + SOON))
        assert race.running == []
        assert first.fileno() == -1
        assert race.next_start <= time.monotonic()


def test_a_race_that_is_left(monkeypatch: pytest.MonkeyPatch, blackhole: Address) -> None:
    """A race that is left before anybody has won gives all descriptors back."""
    monkeypatch.setattr(room, "CONNECT_DELAY", 0.0)
    with Race([blackhole, Address(socket.AF_INET, ("127.0.0.2", blackhole.sockaddr[1]))]) as race:
        race.start_next()
        runners = race.running
    assert runners
    assert [runner.fileno() for runner in runners] == [-1] * len(runners)


def test_what_a_race_is_doing() -> None:
    """A race says for a person which addresses it connects to, of many the first four."""
    assert Race([local(n) for n in (1, 2)]).doing == "connecting to 127.0.0.1:1, 127.0.0.1:2"
    assert Race([local(n) for n in range(1, 9)]).doing.endswith("127.0.0.1:4")


def test_blocking_wait() -> None:
    """blocking_wait tells which are ready, and nothing once the deadline has come."""
    a, b = socket.socketpair()
    with a, b:
        assert blocking_wait([a], [], time.monotonic() + 10 * MS) == []
        assert blocking_wait([a], [b], math.inf) == [b]
        b.send(b"x")
        assert blocking_wait([a], [], math.inf) == [a]
