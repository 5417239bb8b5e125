"""Connection: a websocket that finds the reply to each request, and stays connected."""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Concatenate, ParamSpec

from . import processes
from .callbacks import CallbackQueue
from .calls import Calling, InFuture, Reply, SendOnly, Streaming, Waiting
from .engine import Engine
from .errors import ConnectionLost, DialError, EvtwsError, IllegalTransition, NotConnected, WouldDeadlock
from .message import DEFAULT, Message, Timeout, _Unset, check_timeout
from .options import URL, Options
from .pending import Call
from .poller import Poller
from .state import State
from .stats import NOTHING, Stats
from .stream import OnCancel, ReplyStream

P = ParamSpec("P")


class Connection(Options):
    """A websocket connection that can be used from any thread.

    What it can be told is in Options: keyword arguments, and attributes until `dial`. It connects when `dial` is
    called and can be dialled again once it is CLOSED. Every call on it ends exactly once, and every wait is bounded
    by a timeout: seconds, None for no limit.
    """

    _engine: Engine | None = None
    _finalizer: weakref.finalize[..., Connection] | None = None

    def __post_init__(self) -> None:
        # Guards dial() against itself.
        self._dialling = threading.Lock()

    def _check_settable(self, name: str) -> None:
        if self.state is not State.CLOSED:
            raise ValueError(f"{name} cannot be set while the connection is {self.state.name}")

    def __repr__(self) -> str:
        return f"<Connection {self.state.name}, {len(self.pending)} pending>"

    # -- life

    def dial(self, url: URL, retry: bool = False) -> None:
        """Connect, and return once OPEN.

        `url` is a str or a function that is asked anew at each attempt. Raises what ended the first attempt, which
        is bounded by `connect_timeout`: a DialError or an InvalidURL; with `retry=True` returns instead, and goes on
        trying as `reconnect` says. Raises IllegalTransition unless CLOSED, ValueError for options that contradict
        each other.
        """
        self.check_together()
        if retry and not self.reconnect:
            raise ValueError("retry=True needs reconnect=")
        with self._dialling:
            if self.state is not State.CLOSED:
                self._running()  # has its own word for a forked child
                raise IllegalTransition(f"the connection is {self.state.name}: it cannot be dialled")
            last = None if self._engine is None else self._engine.wait_for_end()
            try:
                engine = Engine(self, self.copy(), url, first_must_open=not retry, after=last)
            except OSError as exc:  # no descriptor is left
                raise DialError(f"the connection could not be prepared: {exc.strerror}") from exc
            # First, because a prepare() or an on_message that is there at once sends on this Connection.
            self._engine = engine
            engine.start()
            processes.register(engine)
            if self._finalizer is not None:
                self._finalizer.detach()
            self._finalizer = weakref.finalize(
                self, _dropped, engine.life.poller, engine.life.callbacks, engine.life.ended
            )
            self._finalizer.atexit = False
        self._wait_first_attempt(engine, retry)

    def _wait_first_attempt(self, engine: Engine, retry: bool) -> None:
        life, session = engine.life, engine.life.session
        try:
            with life.lock:
                # `openings`: it may have been opened, lost, and be CONNECTING again.
                life.changed.wait_for(
                    lambda: session.state is not State.CONNECTING or session.openings or (retry and session.last_error)
                )
                failed = session.state in (State.CLOSED, State.CLOSING) and not session.openings
                error = session.last_error
        except BaseException:
            self.close(timeout=0)
            raise
        if failed:
            engine.join(time.monotonic())
            raise error or NotConnected("close() was called before the connection was open")

    def wait_open(self, timeout: float | None = None) -> bool:
        """Wait until OPEN, at most `timeout` seconds; whether it is.

        Raises what the connection was given up for, NotConnected when it was closed or never dialled.
        """
        check_timeout(timeout)
        life = self._running().life
        session = life.session
        with life.lock:
            life.changed.wait_for(lambda: session.state is not State.CONNECTING, timeout)
            state, error = session.state, session.last_error
        if state in (State.CLOSING, State.CLOSED):
            raise error or NotConnected("the connection was closed")
        return state is State.OPEN

    def close(self, code: int = 1000, reason: str = "", timeout: Timeout = DEFAULT) -> None:
        """Close the connection for good; it is not dialled again but by `dial`.

        Whoever awaits a reply is told at once, by ConnectionClosed. The peer is given `timeout` seconds (left out:
        `close_timeout`) to read what was sent and to answer the close frame. Returns within that time and a little,
        whatever the peer does. From any thread, from a callback (which it does not wait for), as often as you like.
        Raises ValueError for a code that may not be sent or a reason of over 123 bytes.
        """
        check_timeout(timeout)
        engine = self._engine
        if engine is not None and not engine.life.forked:
            engine.close(code, reason, self._or(timeout, self.close_timeout))

    def drain(self, timeout: Timeout = DEFAULT) -> bool:
        """Refuse new messages, let what was accepted come to its end, then close.

        Waits at most `timeout` seconds (left out: `request_timeout`) for the write buffer and the outbox to be
        written, for replies and for callbacks; whether all ended in that time. Raises WouldDeadlock in a callback.
        """
        check_timeout(timeout)
        engine = self._running()
        if engine.life.callbacks.is_current_thread:
            raise WouldDeadlock("drain() in a callback would wait for that very callback; use close()")
        engine.sender.check_may_wait()
        in_time = engine.drain(self._or(timeout, self.request_timeout))
        self.close()
        return in_time

    def reconnect_now(self) -> None:
        """Dial anew at once, ending a backoff or the present connection. Raises NotConnected when CLOSED.

        Does not wait: what is sent right after it may still go out on the present connection.
        """
        self._running().reconnect()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- messages

    def send(self, message: Message | str | bytes) -> None:
        """Send a message; returns when its bytes are with the operating system or in the write buffer.

        If it has a callback, that or `on_failure` is called once, with the reply or the error. While not OPEN the
        message goes to the outbox, if there is one. Raises NotConnected, OutboxFull, PendingFull, WriteTimeout (not a
        byte was written), ConnectionLost, or ValueError for a Message that is pending already.
        """
        message = _as_message(message)
        engine = self._running()
        now = time.monotonic()
        call: Call
        if message.callback is None:
            timeout = None if isinstance(message.timeout, _Unset) else message.timeout
            call = SendOnly(message, now, timeout, engine.life.report)
        else:
            self._prepared(message)
            call = Calling(
                message,
                now,
                self._timeout_of(message),
                self.in_flight,
                connection=self,
                report=engine.life.report,
            )
            call.key = engine.life.correlation.key_for_request(message)
        engine.sender.start(call)

    def request(self, message: Message | str | bytes, timeout: Timeout = DEFAULT) -> Message:
        """Send a message and wait for its reply.

        `timeout` is in seconds from now, the outbox included; left out it is the message's own or `request_timeout`.
        Raises ReplyTimeout, RequestCancelled, a ConnectionLost, WouldDeadlock in a function that runs where messages
        are read, and what `send` raises. Works in a callback.
        """
        check_timeout(timeout)
        message = _as_message(message)
        engine = self._running()
        engine.sender.check_may_wait()
        self._prepared(message)
        call = Waiting(message, time.monotonic(), self._or(timeout, self._timeout_of(message)), self.in_flight)
        call.key = engine.life.correlation.key_for_request(message)
        engine.sender.start(call)
        return engine.sender.wait_for_reply(call)

    def submit(self, message: Message | str | bytes, timeout: Timeout = DEFAULT) -> Reply:
        """Send a message; returns a Future of its reply at once.

        Cancelling the Future removes the request from the queue; done-callbacks run on the callbacks thread. Raises
        what `send` raises.
        """
        return self.submit_many((message,), timeout)[0]

    def submit_many(self, messages: Sequence[Message | str | bytes], timeout: Timeout = DEFAULT) -> list[Reply]:
        """Send several messages by one write; returns a Future for each. Either all are accepted, or none."""
        check_timeout(timeout)
        engine = self._running()
        now = time.monotonic()
        calls = [self._in_future(engine, _as_message(message), now, timeout) for message in messages]
        if calls:
            engine.sender.start_all(calls)
        return [call.future for call in calls]

    def _in_future(self, engine: Engine, message: Message, now: float, timeout: Timeout) -> InFuture:
        self._prepared(message)
        call = InFuture(message, now, self._or(timeout, self._timeout_of(message)), self.in_flight)
        call.key = engine.life.correlation.key_for_request(message)
        call.future = Reply(lambda: engine.sender.cancel(call), engine.life.tell, engine.reader.wait)
        return call

    def stream(
        self,
        message: Message | str | bytes,
        *,
        until: Callable[[Message], bool],
        timeout: Timeout = DEFAULT,
        maxsize: int = 1000,
        on_cancel: OnCancel | None = None,
    ) -> ReplyStream:
        """Send a message and iterate over its replies, up to and with the one for which `until(reply)` is true.

        `timeout` is for each reply (left out: `request_timeout`); at most `maxsize` replies wait to be taken. Leaving
        early sends `on_cancel`, a message or a function that makes one from the request. See ReplyStream.
        """
        check_timeout(timeout)
        if maxsize < 1:
            raise ValueError(f"maxsize must be at least 1, not {maxsize!r}")
        message = _as_message(message)
        engine = self._running()
        self._prepared(message)
        call = Streaming(message, time.monotonic(), self.in_flight, until, maxsize)
        call.key = engine.life.correlation.key_for_request(message)
        engine.sender.start(call)
        try:
            return ReplyStream(engine, call, self._or(timeout, self.request_timeout), on_cancel, self._send_cancel)
        except BaseException:  # a Ctrl-C: nobody is left to take the replies
            engine.sender.cancel(call)
            raise

    def _send_cancel(self, message: Message) -> None:
        try:
            self.send(message)
        except (NotConnected, ConnectionLost):
            pass  # the peer has forgotten the stream with the connection

    def remove_from_queue(self, message: Message, error: EvtwsError | None = None) -> bool:
        """Take this very Message out of the queue, pending or in the outbox; False if it is not there.

        Its callback is not called; a `request` that waits raises RequestCancelled, a Future is cancelled. With an
        `error`, for when you know why no reply will come, the call fails by that instead, and `on_failure` is called.
        """
        return self._engine is not None and self._running().sender.remove(message, error)

    # -- pings

    def ping(self, timeout: Timeout = DEFAULT) -> float:
        """Send a ping and wait for its pong; the round-trip time in seconds.

        `timeout` left out is `request_timeout`. Raises NotConnected, ReplyTimeout, or a ConnectionLost.
        """
        check_timeout(timeout)
        engine = self._running()
        engine.sender.check_may_wait()
        with engine.reader.reading_on():
            return engine.pulse.ping(self._or(timeout, self.request_timeout))

    def pong_received(self) -> None:
        """Say that a message was the service's own pong: every ping so far counts as answered."""
        if self._engine is not None:
            self._running().pulse.pong_received()

    # -- what it is

    @property
    def state(self) -> State:
        """CONNECTING (waiting to reconnect, too), OPEN, CLOSING or CLOSED."""
        return State.CLOSED if self._engine is None else self._engine.life.session.state

    @property
    def is_connected(self) -> bool:
        """Whether the state is OPEN."""
        return self.state is State.OPEN

    @property
    def pending(self) -> tuple[Message, ...]:
        """The messages that await a reply, oldest first: a snapshot."""
        if self._engine is None or self._engine.life.forked:
            return ()
        with self._engine.life.lock:
            return tuple(call.message for call in self._engine.life.session.pending)

    @property
    def subprotocol(self) -> str | None:
        """What the server chose of `subprotocols` when the connection was opened last; None: none."""
        upgraded = None if self._engine is None else self._engine.life.upgraded
        return None if upgraded is None else upgraded.subprotocol

    def stats(self) -> Stats:
        """What happened since `dial`: an immutable snapshot."""
        return NOTHING if self._engine is None else self._engine.stats()

    # -- details

    def _running(self) -> Engine:
        engine = self._engine
        if engine is None:
            raise NotConnected("the connection was never dialled")
        engine.life.check_process()
        return engine

    def _prepared(self, message: Message) -> None:
        if message.params is None and self.msg_prep is not None:
            self.msg_prep(message)

    def _timeout_of(self, message: Message) -> float | None:
        return self._or(message.timeout, self.request_timeout)

    @staticmethod
    def _or(timeout: Timeout, default: float | None) -> float | None:
        return default if isinstance(timeout, _Unset) else timeout


def _as_message(message: Message | str | bytes) -> Message:
    return message if isinstance(message, Message) else Message(message)


def _dropped(poller: Poller, callbacks: CallbackQueue, ended: threading.Event) -> None:
    """The Connection was collected: end its threads, and say so if it was not closed."""
    if poller.waker.closed:
        return  # they have ended; or this is a forked child, where a lock of theirs may be held for ever
    was_ended = ended.is_set()
    poller.wake()
    callbacks.stop()
    if not was_ended:
        warnings.warn("a Connection was dropped without close()", ResourceWarning, stacklevel=2)


def _connector(
    make: Callable[P, Connection],
) -> Callable[Concatenate[URL, P], contextlib.AbstractContextManager[Connection]]:
    """`connect(url, …)`, with the options of `make` for a type checker to see."""

    @contextlib.contextmanager
    def connect(url: URL, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Connection]:
        """A Connection with these options, dialled to `url`; closed at the end of the `with` block."""
        connection = make(*args, **kwargs)
        connection.dial(url)
        with connection:
            yield connection

    return connect


connect = _connector(Connection)

__all__ = ["Connection", "EvtwsError", "connect"]
