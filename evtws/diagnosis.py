"""Diagnosis: a ReplyTimeout that says where the request was, and what the connection was doing."""

from __future__ import annotations

from .errors import ReplyTimeout
from .pending import Call
from .state import State


def reply_timeout(call: Call, now: float, state: State, heard_at: float | None, busy: str | None) -> ReplyTimeout:
    """The error for a call whose time is up at `now`.

    `heard_at` is when the last byte came (monotonic seconds; None: none came on this connection), `busy` what the
    callbacks thread does, None if nothing.
    """
    if call.sent_at is not None:
        sent = f"written {now - call.sent_at:.1f} s ago ({call.written})"
    else:
        sent = "not written" if call.written == "no" else f"not yet written again (before: {call.written})"
    heard = "nothing received" if heard_at is None else f"last byte {now - heard_at:.1f} s ago"
    waited = now - call.asked_at
    parts = [f"no reply within {waited:.1f} s", sent, f"connection {state.name}", heard]
    if busy is not None:
        parts.append(f"callbacks busy {busy}")
    # Nobody takes back what is on its way: "no" would be a promise that it does not go out yet.
    on_its_way = call.sent_at is not None and call.written == "no"
    error = ReplyTimeout(", ".join(parts), waited=waited, written="maybe" if on_its_way else call.written)
    error.message = call.message
    return error
