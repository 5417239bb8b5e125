"""Stats: what a connection has done so far."""

from __future__ import annotations

from dataclasses import dataclass

from .state import State


@dataclass(frozen=True)
class Stats:
    """An immutable snapshot of one connection, counted from its last `dial`; times are in seconds.

    `uptime` is since the connection was opened last, None while it is not OPEN. `late`, `duplicate` and `unmatched`
    are received messages that no pending request claimed: its request had ended without it, had its reply already,
    or was none of ours. `callbacks_dropped` are messages that a full callback queue did not take.
    The round-trip times are of pings on the present connection, None before the first pong.
    """

    state: State
    uptime: float | None
    reconnects: int
    messages_sent: int
    messages_received: int
    bytes_sent: int
    bytes_received: int
    pending: int
    outbox: int
    late: int
    duplicate: int
    unmatched: int
    callbacks_queued: int
    callbacks_dropped: int
    callbacks_failed: int
    rtt_last: float | None
    rtt_min: float | None
    rtt_mean: float | None
    pings_unanswered: int


#: What a connection that was never dialled has done.
NOTHING = Stats(State.CLOSED, None, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, None, None, None, 0)
