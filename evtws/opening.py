"""Opening: one attempt after the other, by one deadline each: dial, then prepare, then OPEN."""

from __future__ import annotations

import math
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from .dial import CookieJar, HasFileno, Target, default_context, dial
from .errors import DialAborted, DialError, EvtwsError, PrepareError
from .life import Life
from .options import URL
from .state import State
from .task import Task
from .transport import Transport

if TYPE_CHECKING:
    from .connection import Connection

_T = TypeVar("_T")


class Opening:
    """Opens a connection, on the I/O thread; the attempts share cookies and the default TLS context."""

    def __init__(self, life: Life, url: URL) -> None:
        self._life = life
        self._url = url
        self._jar = CookieJar()
        self._context: ssl.SSLContext | None = None

    def attempt(self) -> None:
        """Make one attempt. Raises the EvtwsError that ended it; OPEN, or being prepared, otherwise."""
        timeout = self._life.options.connect_timeout
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        transport = self._dial(deadline)
        if self._life.options.prepare is None:
            open_for_all(self._life, transport)
        else:
            self._prepare(transport)

    def _dial(self, deadline: float) -> Transport:
        life = self._life
        try:
            upgraded = dial(self._target(), jar=self._jar, deadline=deadline, wait=self._wait)
        except EvtwsError:
            raise
        except (ValueError, TypeError) as exc:
            raise DialError(str(exc)) from exc
        transport = Transport(
            upgraded.sock,
            upgraded.initial,
            max_size=life.options.max_size,
            write_buffer=life.options.write_buffer,
            want_write=life.poller.want_write,
        )
        life.poller.watch(transport)
        with life.lock:
            life.transport, life.upgraded = transport, upgraded
            self._check_wanted()
            life.session.upgraded(None if math.isinf(deadline) else deadline)
        return transport

    def _check_wanted(self) -> None:
        if self._life.session.state is not State.CONNECTING or self._life.connection() is None:
            raise DialAborted("close() was called while the connection was opened")

    def _wait(self, readers: Sequence[HasFileno], writers: Sequence[HasFileno], deadline: float) -> list[HasFileno]:
        """The dial's waits: timers are served meanwhile, and close() ends them."""
        while True:
            self._check_wanted()
            ready = self._life.wait_for(readers, writers, deadline)
            if ready or time.monotonic() >= deadline:
                return ready

    def _target(self) -> Target:
        options = self._life.options
        url = _asked(self._url, "url")
        headers = options.headers
        return Target(
            url,
            headers=_call(headers, "headers") if callable(headers) else headers,
            subprotocols=_asked(options.subprotocols, "subprotocols"),
            ssl_context=self._ssl_context() if str(url).lower().startswith("wss:") else None,
            proxy=options.proxy,
            redirects=options.redirects,
        )

    def _ssl_context(self) -> ssl.SSLContext:
        given = self._life.options.ssl
        if given is not None:
            return _asked(given, "ssl")
        if self._context is None:
            # Loading the system's authorities takes about 30 ms: once for each connection, not for each attempt.
            self._context = default_context()
        return self._context

    def _prepare(self, transport: Transport) -> None:
        life = self._life
        life.preparer = threading.Thread(
            target=_prepare, args=(life, transport, life.connection()), name="evtws-prepare", daemon=True
        )
        try:
            life.preparer.start()
        except RuntimeError as exc:
            raise PrepareError("no thread can be started for prepare()") from exc


def _asked(value: _T | Callable[[], _T], name: str) -> _T:
    """An option's value, or what the function that was given instead returns."""
    return _call(value, name) if callable(value) else value


def _call(function: Callable[[], _T], name: str) -> _T:
    try:
        return function()
    except Exception as exc:
        raise DialError(f"{name}() raised {type(exc).__name__}") from exc


def _prepare(life: Life, transport: Transport, connection: Connection) -> None:
    """The thread evtws-prepare: the user's login on a connection that was just opened."""
    assert life.options.prepare is not None
    try:
        life.options.prepare(connection)
    except BaseException as exc:
        error = PrepareError(f"prepare() raised {type(exc).__name__}: {exc}")
        error.__cause__ = exc
        life.lose(transport, error)
    else:
        open_for_all(life, transport)


def open_for_all(life: Life, transport: Transport) -> None:
    """The connection is ready: what waited goes out first."""
    with life.lock:
        if life.transport is not transport or life.fault is not None or life.session.state is not State.CONNECTING:
            return
        life.preparer = None
        waiting = life.session.opened(time.monotonic())
        # After the state has changed, which the function sees; before the first reply, which comes after it.
        if life.options.on_connected is not None:
            life.tell((Task(life.options.on_connected, (life.connection(),)),))
        life.write_all(waiting)
        life.state_changed()
    life.poller.wake()
