"""The state of a connection, and the one table of how it changes.

    state ╲ signal   DIAL         OPENED   RETRY        CLOSE     ENDED
    CLOSED           CONNECTING   -        -            -         -
    CONNECTING       -            OPEN     CONNECTING   CLOSING   CLOSED
    OPEN             -            -        CONNECTING   CLOSING   CLOSED
    CLOSING          -            -        -            -         CLOSED

The rules:

* A connection is CLOSED before its first dial.
* CONNECTING is all the time without an open websocket in which one is still sought: the dial, `prepare`,
  and the waits between attempts. A connection that waits to reconnect is CONNECTING.
* A connection that is lost goes to CONNECTING when it will be tried again, and to CLOSED when it will not.
  A wish to close goes through CLOSING, always: "closed by me" and "lost" are two signals, never one.
* CLOSING leads to CLOSED only. What is CLOSED stays so until the next dial.
* A signal that the table does not have for a state is an error of the caller and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum, auto
from types import MappingProxyType

from .errors import IllegalTransition


class State(IntEnum):
    """Where a connection stands; the numbers are the ready states of the WebSocket API (WHATWG)."""

    CONNECTING = 0
    OPEN = 1
    CLOSING = 2
    CLOSED = 3


class Signal(Enum):
    """What happens to a connection: wished from outside (DIAL, CLOSE) or found out (OPENED, RETRY, ENDED)."""

    #: The user asks for a connection.
    DIAL = auto()
    #: A websocket was opened, and `prepare` has returned.
    OPENED = auto()
    #: An attempt failed or the websocket was lost, and it will be tried again.
    RETRY = auto()
    #: The user asks for the end.
    CLOSE = auto()
    #: It is over: closed as asked, or lost and not tried again.
    ENDED = auto()


#: Every change of state there is.
TRANSITIONS: Mapping[tuple[State, Signal], State] = MappingProxyType(
    {
        (State.CLOSED, Signal.DIAL): State.CONNECTING,
        (State.CONNECTING, Signal.OPENED): State.OPEN,
        (State.CONNECTING, Signal.RETRY): State.CONNECTING,
        (State.CONNECTING, Signal.CLOSE): State.CLOSING,
        (State.CONNECTING, Signal.ENDED): State.CLOSED,
        (State.OPEN, Signal.RETRY): State.CONNECTING,
        (State.OPEN, Signal.CLOSE): State.CLOSING,
        (State.OPEN, Signal.ENDED): State.CLOSED,
        (State.CLOSING, Signal.ENDED): State.CLOSED,
    }
)


def transition(state: State, signal: Signal) -> State:
    """The state that follows `state` upon `signal`; raises IllegalTransition where there is none."""
    try:
        return TRANSITIONS[state, signal]
    except KeyError:
        raise IllegalTransition(f"a connection that is {state.name} does not take {signal.name}") from None
