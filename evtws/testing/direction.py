"""Direction: what a FaultProxy does to the bytes that pass one way."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .pipe import Pipe

#: How a connection ends.
How = Literal["FIN", "RST"]


class Direction:
    """One way through a `FaultProxy`: `proxy.to_server` or `proxy.to_client`.

    The attributes may be set at any time, from any thread. They are for all connections, those that are open and
    those to come, and an assignment returns when it holds. Bytes that the proxy has read already keep their delay.
    Raises ValueError when a value makes no sense.
    """

    __slots__ = (
        "_change",
        "bandwidth",
        "bytes_passed",
        "bytes_swallowed",
        "cut_after",
        "cut_by",
        "jitter",
        "latency",
        "pipes",
        "slice_size",
        "stalled",
        "swallow",
    )

    #: Seconds that all bytes, and a FIN, are late. At most 1 MiB is on its way at a time, so much latency slows down.
    latency: float
    #: Seconds up to which they are later than that, at random; the order of the bytes is kept.
    jitter: float
    #: Bytes per second; None: no limit.
    bandwidth: float | None
    #: Bytes of one segment at most; None: as they come. They follow at once; a bandwidth sets them apart.
    slice_size: int | None
    #: Bytes of each connection that are passed on before it is cut, both ways; 0 cuts at once, None never.
    cut_after: int | None
    #: Whether the cut is a "FIN" or an "RST"; an RST may overtake the last bytes.
    cut_by: How
    #: Whether all that comes is read and thrown away, the end of the connection too.
    swallow: bool
    #: Whether nothing is read, so that the sender's window falls to zero and its writes soon find no room.
    stalled: bool
    #: Bytes that were passed on, of all connections together.
    bytes_passed: int
    #: Bytes that were read and thrown away, by whatever, of all connections together.
    bytes_swallowed: int

    def __init__(self, change: Callable[[Callable[[], None]], None]) -> None:
        #: This way through each connection that is there. Proxy's thread only.
        self.pipes: set[Pipe] = set()
        self.bytes_passed = self.bytes_swallowed = 0
        self._change: Callable[[Callable[[], None]], None] = lambda function: function()
        self.latency = self.jitter = 0.0
        self.bandwidth = self.slice_size = self.cut_after = None
        self.cut_by = "FIN"
        self.swallow = self.stalled = False
        self._change = change

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _CHECKS:
            _CHECKS[name](name, value)
            self._change(lambda: object.__setattr__(self, name, value))
        else:
            object.__setattr__(self, name, value)

    def cut_in(self, count: int) -> None:
        """Cut each connection that is there now when `count` bytes more have passed this way; later ones are spared."""
        _check_count("count", count)

        def cut() -> None:
            for pipe in self.pipes:
                pipe.cut_in(count)

        self._change(cut)

    def delay(self) -> float:
        """The seconds for which bytes that were read now are held."""
        return self.latency + random.uniform(0, self.jitter) if self.jitter else self.latency


def _check_seconds(name: str, value: Any) -> None:
    if not _is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is a number of seconds of at least 0, not {value!r}")


def _check_bandwidth(name: str, value: Any) -> None:
    if value is not None and not (_is_number(value) and 0 < value < math.inf):
        raise ValueError(f"{name} is a number of bytes per second above 0, or None, not {value!r}")


def _check_slice(name: str, value: Any) -> None:
    if value is not None and not (_is_whole(value) and value >= 1):
        raise ValueError(f"{name} is a whole number of at least 1, or None, not {value!r}")


def _check_cut(name: str, value: Any) -> None:
    if value is not None:
        _check_count(name, value)


def _check_count(name: str, value: Any) -> None:
    if not _is_whole(value) or value < 0:
        raise ValueError(f"{name} is a whole number of at least 0, not {value!r}")


def _check_how(name: str, value: Any) -> None:
    if value not in ("FIN", "RST"):
        raise ValueError(f"{name} is 'FIN' or 'RST', not {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError for what is not True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is True or False, not {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "latency": _check_seconds,
    "jitter": _check_seconds,
    "bandwidth": _check_bandwidth,
    "slice_size": _check_slice,
    "cut_after": _check_cut,
    "cut_by": _check_how,
    "swallow": check_flag,
    "stalled": check_flag,
}
