"""ReplyStream: the several replies of one request, one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType

from .calls import Streaming
from .engine import Engine
from .errors import EvtwsError
from .message import Message
from .task import Task

OnCancel = Message | Callable[[Message], Message]


class ReplyStream(Iterator[Message]):
    """An iterator over the replies of one request, and a context manager that leaves it.

    It ends after the reply for which `until` is true. `timeout` is in seconds, for each reply; None is no limit.
    Raises ReplyTimeout when a reply does not come in time, SlowConsumer when more replies waited than `maxsize`, a
    ConnectionLost when the connection ended, RequestCancelled when the request was removed.

    Leaving early, by `close()`, the end of the `with` block, an error or being dropped, takes the request out of the
    queue and sends `on_cancel`: a message, or a function that makes one from the request.
    """

    _left = True  # until it is made: a Ctrl-C may come before that

    def __init__(
        self,
        engine: Engine,
        call: Streaming,
        timeout: float | None,
        on_cancel: OnCancel | None,
        send: Callable[[Message], object],
    ) -> None:
        self._engine = engine
        self._call = call
        self._timeout = timeout
        self._on_cancel = on_cancel
        self._send = send
        self._left = False

    def __iter__(self) -> ReplyStream:
        return self

    def __next__(self) -> Message:
        if self._left and not self._call.ended:
            raise StopIteration
        self._engine.reader.check_may_wait()
        try:
            with self._engine.reader.reading_on():
                reply = self._call.take(self._timeout)
        except TimeoutError:
            raise self._late() from None
        except BaseException:
            self.close()
            raise
        if reply is None:
            self._left = True
            raise StopIteration
        return reply

    def _late(self) -> EvtwsError:
        timeout = self._engine.life.timeout_of(self._call, time.monotonic())
        self.close()
        return timeout

    def close(self) -> None:
        """Leave the stream; does nothing if it has ended, or in a forked child."""
        if self._left or self._engine.life.forked:
            return
        self._left = True
        left_early = self._engine.sender.cancel(self._call) or self._call.overflowed
        if left_early and self._on_cancel is not None:
            cancel = self._on_cancel
            self._send(cancel if isinstance(cancel, Message) else cancel(self._call.message))

    def __enter__(self) -> ReplyStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._left and not self._engine.life.forked:
            # Garbage is collected anywhere, under any lock: this one must take none but the queue's.
            self._engine.life.tell((Task(self.close, ()),))
