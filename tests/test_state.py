"""The specification of evtws/state.py."""

import itertools

import pytest

from evtws import state as rules
from evtws.errors import IllegalTransition
from evtws.state import TRANSITIONS, Signal, State, transition

ALL_PAIRS = list(itertools.product(State, Signal))


def drawn() -> dict[tuple[State, Signal], State]:
    """The table as the module's docstring draws it."""
    lines = (rules.__doc__ or "").splitlines()
    top = next(index for index, line in enumerate(lines) if "signal" in line)
    signals = [Signal[name] for name in lines[top].split()[3:]]
    table = {}
    for line in lines[top + 1 : top + 1 + len(State)]:
        name, *cells = line.split()
        for signal, cell in zip(signals, cells, strict=True):
            if cell != "-":
                table[State[name], signal] = State[cell]
    return table


def test_numbers() -> None:
    """The states have the numbers of the WebSocket API's ready states."""
    assert [(state.name, int(state)) for state in State] == [
        ("CONNECTING", 0),
        ("OPEN", 1),
        ("CLOSING", 2),
        ("CLOSED", 3),
    ]


def test_table_is_as_drawn() -> None:
    """The table drawn on top of the file is the table that is followed."""
    assert dict(TRANSITIONS) == drawn()


@pytest.mark.parametrize(("state", "signal"), ALL_PAIRS)
def test_every_pair(state: State, signal: Signal) -> None:
    """A signal leads where the table says, and raises an error that names both where it says nothing."""
    if (state, signal) in TRANSITIONS:
        assert transition(state, signal) is TRANSITIONS[state, signal]
        return
    with pytest.raises(IllegalTransition) as caught:
        transition(state, signal)
    assert state.name in str(caught.value)
    assert signal.name in str(caught.value)


def test_waiting_to_reconnect_is_connecting() -> None:
    """What will be tried again is CONNECTING, be it a failed attempt or a lost connection."""
    assert transition(State.CONNECTING, Signal.RETRY) is State.CONNECTING
    assert transition(State.OPEN, Signal.RETRY) is State.CONNECTING


def test_closing_ends_closed() -> None:
    """Once the user asked for the end, nothing but CLOSED follows."""
    assert {to for (state, _), to in TRANSITIONS.items() if state is State.CLOSING} == {State.CLOSED}


def test_closed_is_final_until_dial() -> None:
    """Only a dial leads out of CLOSED."""
    assert {signal for (state, signal) in TRANSITIONS if state is State.CLOSED} == {Signal.DIAL}


def test_table_cannot_be_changed() -> None:
    """The table is read-only."""
    with pytest.raises(TypeError):
        TRANSITIONS[State.CLOSED, Signal.OPENED] = State.OPEN  # type: ignore[index]
