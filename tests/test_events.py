"""The specification of evtws/events.py."""

from __future__ import annotations

import asyncio
import copy
import functools
import pickle
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from evtws.events import Deduplicator, Dispatcher, Event, Trigger, by_content, by_id, is_coroutine_function, name_fits
from evtws.message import Message

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


def event(name: str = "sources:create", data: Any = None, **more: Any) -> Event:
    return Event(name, data, received_at=NOON, **more)


class Death(Event):
    """A class of events."""


class Headshot(Death):
    """A class within it."""


async def coroutine(_: Event) -> bool:
    return True


# -- events


def test_an_event_has_its_data() -> None:
    """Data are reached by key, with a default, and as attributes; Event's own attributes win."""
    told = event(data={"source": {"id": "1"}, "name": "in the data", "get": 1})
    assert told["source"] == {"id": "1"} == told.source
    assert (told["name"], told.name) == ("in the data", "sources:create")
    assert callable(told.get)
    assert (told.get("missing"), told.get("missing", 1), told["get"]) == (None, 1, 1)
    assert ("source" in told, "missing" in told) == (True, False)
    with pytest.raises(KeyError):
        told["missing"]
    with pytest.raises(AttributeError, match="missing"):
        _ = told.missing


@pytest.mark.parametrize("data", [None, [], "text", 1])
def test_data_that_are_no_object(data: Any) -> None:
    """Data that are no object have no keys, and are kept as they are."""
    told = event(data=data)
    assert told.data == data
    assert told.get("key") is None
    assert "key" not in told
    with pytest.raises(AttributeError):
        _ = told.key


def test_the_times_of_an_event() -> None:
    """The timestamp is the service's, or else when it was received, which is said; both are aware."""
    earlier = NOON - timedelta(seconds=1)
    assert (event(timestamp=earlier).timestamp, event(timestamp=earlier).is_timestamped) == (earlier, True)
    assert (event().timestamp, event().is_timestamped, event().received_at) == (NOON, False, NOON)
    naive = datetime(2026, 1, 1)
    for received_at, timestamp in ((NOON, naive), (naive, NOON)):
        with pytest.raises(ValueError, match="aware"):
            Event("x", received_at=received_at, timestamp=timestamp)


def test_an_event_knows_where_it_comes_from() -> None:
    """An event has the service's id and the raw message, and shows its name, not its data."""
    message = Message("raw")
    told = event(data={"token": "secret"}, event_id="7", message=message)
    assert (told.id, told.message) == ("7", message)
    assert "sources:create" in repr(told)
    assert "secret" not in repr(told)


def test_an_event_can_be_copied() -> None:
    """An event can be copied and pickled."""
    told = event(data={"a": 1})
    assert copy.copy(told).a == 1
    assert pickle.loads(pickle.dumps(told)).a == 1


# -- selectors


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("sources:create", "sources:create", True),
        ("sources:create", "sources:created", False),
        ("sources:*", "sources:create", True),
        ("sources:*", "obs:statsUpdate", False),
        ("*", "anything", True),
        ("*:create", "sources:create", True),
        ("Sources:*", "sources:create", False),
        ("a[b]*", "a[b]c", True),
        ("a?*", "abc", False),
    ],
)
def test_patterns(pattern: str, name: str, fits: bool) -> None:
    """A name fits itself and patterns with `*`; case counts, and no other character is special."""
    assert name_fits(pattern, name) is fits
    assert Trigger(pattern).check(event(name)) is fits


def test_classes_of_events() -> None:
    """A trigger can listen to a class of events, and hears of those within it."""
    trigger = Trigger(Death)
    told = [kind("x", received_at=NOON) for kind in (Event, Death, Headshot)]
    assert [trigger.check(each) for each in told] == [False, True, True]


def test_several_events() -> None:
    """One of several events is enough; they are kept in their order, each once."""
    trigger = Trigger("b", "a", "b", Death)
    assert trigger.events == ("b", "a", Death)
    assert [trigger.check(event(name)) for name in "abc"] == [True, True, False]
    assert repr(trigger) == "<Trigger (b, a, Death)>"


@pytest.mark.parametrize(
    ("events", "error", "why"),
    [
        ((), ValueError, "at least one"),
        (("",), ValueError, "empty"),
        ((1,), TypeError, "1"),
        ((int,), TypeError, "int"),
        ((None,), TypeError, "None"),
    ],
)
def test_what_is_no_event(events: tuple[Any, ...], error: type[Exception], why: str) -> None:
    """What is no name, no pattern and no class of events is refused by an error that names it."""
    with pytest.raises(error, match=why):
        Trigger(*events)


# -- conditions


def test_conditions() -> None:
    """All conditions have to be true: functions of the event, and whatever else has a truth value."""
    allowed: list[int] = []
    trigger = Trigger("x", conditions=[lambda told: told.value > 1, allowed])
    assert not trigger.check(event("x", {"value": 2}))
    allowed.append(1)
    assert [trigger.check(event("x", {"value": value})) for value in (1, 2)] == [False, True]


@pytest.mark.parametrize("conditions", [[], [True]])
def test_conditions_change(conditions: list[Any]) -> None:
    """A list of conditions that is given is kept, also an empty one, and may be changed at any time."""
    trigger = Trigger("x", conditions=conditions)
    assert trigger.check(event("x"))
    conditions.append(False)
    assert not trigger.check(event("x"))
    assert Trigger("x", conditions=(True,)).conditions == [True]


def test_a_condition_that_raises() -> None:
    """What a condition raises comes out of `check`, which changes nothing."""
    trigger = Trigger("x", conditions=[lambda told: told["missing"]])
    with pytest.raises(KeyError, match="missing"):
        trigger.check(event("x", {}))
    assert trigger.last_run is None


def test_coroutines_are_no_conditions() -> None:
    """A coroutine function is refused as a condition, where it is given and where it was put in later."""
    with pytest.raises(TypeError, match="condition"):
        Trigger("x", conditions=[coroutine])
    trigger = Trigger("x")
    trigger.conditions.append(coroutine)
    with pytest.raises(TypeError, match="condition"):
        trigger.check(event("x"))


# -- actions


def test_actions() -> None:
    """The action is given with the trigger, or by the decorator, which returns the function."""

    def first(_: Event) -> None: ...

    trigger = Trigger("x", action=first, name="mine")
    assert trigger.function is first

    @trigger.action
    def second(_: Event) -> None: ...

    assert trigger.function is second
    assert second.__name__ == "second"
    assert repr(trigger) == "<Trigger mine(x)>"


class Called:
    """An object that is called."""

    async def __call__(self, _: Event) -> None: ...


class Inherited(Called):
    """An object that inherits that it is."""


COROUTINES: list[Any] = [coroutine, functools.partial(coroutine), Called(), Inherited()]


@pytest.mark.parametrize("action", COROUTINES, ids=["function", "partial", "object", "inherited"])
def test_coroutine_actions(action: Any) -> None:
    """A coroutine function is an action only with a loop on which it is awaited."""
    assert is_coroutine_function(action)
    with pytest.raises(ValueError, match="loop="):
        Trigger("x", action=action)
    loop = asyncio.new_event_loop()
    assert Trigger("x", action=action, loop=loop).loop is loop
    loop.close()


def test_plain_functions_are_no_coroutines() -> None:
    """Functions, builtins, partials and classes are none."""
    plain: list[Any] = [print, lambda _: None, functools.partial(print), Message, event]
    assert [is_coroutine_function(each) for each in plain] == [False] * 5
    assert not is_coroutine_function("no function")


# -- the dispatcher


def dispatcher(*triggers: Trigger) -> Dispatcher:
    made = Dispatcher()
    for trigger in triggers:
        made.add(trigger)
    return made


def test_candidates() -> None:
    """Those that listen to an event, by name, pattern or class, come in the order in which they came, each once."""
    by_pattern, by_name, by_both = Trigger("a*"), Trigger("ab"), Trigger("ab", "*")
    by_class, other = Trigger(Death), Trigger("b")
    made = dispatcher(by_pattern, by_class, by_name, other, by_both)
    assert made.candidates(event("ab")) == [by_pattern, by_name, by_both]
    assert made.candidates(Death("ab", received_at=NOON)) == [by_pattern, by_class, by_name, by_both]
    assert made.find("ab") == [by_pattern, by_name, by_both]
    assert made.find("zz") == [by_both]
    assert (list(made), len(made)) == ([by_pattern, by_class, by_name, other, by_both], 5)


def test_candidates_are_a_snapshot() -> None:
    """What is removed or added while candidates are gone through changes nothing about them."""
    triggers = [Trigger("x", single_shot=number == 0) for number in range(3)]
    made = dispatcher(*triggers)
    ran = []
    for trigger in made.candidates(event("x")):
        if trigger.single_shot:
            assert made.take(trigger)
            made.add(Trigger("x"))
        ran.append(trigger)
    assert ran == triggers
    assert len(made) == 3


def test_a_single_shot_is_taken_once() -> None:
    """Only one of those who want to fire a single-shot trigger may."""
    trigger = Trigger("x", single_shot=True, name="once")
    made = dispatcher(trigger)
    assert [made.take(trigger), made.take(trigger)] == [True, False]
    assert trigger not in made
    assert made.candidates(event("x")) == []


def test_names_are_unique() -> None:
    """Two triggers of one name are refused, and one that is here already; without a name there may be many."""
    trigger = Trigger("x", name="one")
    made = dispatcher(trigger, Trigger("x"), Trigger("x"))
    with pytest.raises(ValueError, match="'one'"):
        made.add(Trigger("y", name="one"))
    with pytest.raises(ValueError, match="already"):
        made.add(trigger)
    assert made.get("one") is trigger
    assert len(made) == 3


@pytest.mark.parametrize("by_name", [False, True])
def test_removing(by_name: bool) -> None:
    """A trigger is removed by itself or by its name, and nothing of it is left."""
    trigger = Trigger("x", "y*", Death, name="one")
    other = Trigger("x")
    made = dispatcher(trigger, other)
    assert made.remove("one" if by_name else trigger) is trigger
    assert made.candidates(event("x")) == [other]
    assert made.find("yy") == []
    made.remove(other)
    assert (len(made), made.find("x")) == (0, [])
    made.add(trigger)
    assert made.get("one") is trigger


@pytest.mark.parametrize("act", [lambda made: made.get("none"), lambda made: made.remove("none")])
def test_an_unknown_name(act: Callable[[Dispatcher], object]) -> None:
    """An unknown name is a KeyError that says it."""
    with pytest.raises(KeyError, match="'none'"):
        act(dispatcher(Trigger("x", name="one")))


def test_removing_what_is_not_here() -> None:
    """A trigger that is not here cannot be removed."""
    with pytest.raises(KeyError, match="not here"):
        dispatcher().remove(Trigger("x"))


def test_names_are_looked_up() -> None:
    """However many triggers listen to other names, as much is done for an event."""

    def work(count: int) -> int:
        made = dispatcher(*(Trigger(f"name{number}") for number in range(count)))
        told = event("name5")
        calls = 0

        def count_calls(_frame: Any, _event: str, _arg: Any) -> None:
            nonlocal calls
            calls += 1

        before = sys.getprofile()
        sys.setprofile(count_calls)
        try:
            assert len(made.candidates(told)) == 1
        finally:
            sys.setprofile(before)
        return calls

    assert work(1000) == work(10)


# -- duplicates


def test_duplicates_by_id() -> None:
    """An event of an id that came within the time is not new; one without an id always is."""
    seen = Deduplicator(10)
    assert seen.is_new(event(event_id="1"), 0)
    assert not seen.is_new(event("other", event_id="1"), 9.9)
    assert seen.is_new(event(event_id="1"), 10)
    assert [seen.is_new(event(), 10) for _ in range(2)] == [True, True]
    assert by_id(event()) is None


def test_duplicates_by_content() -> None:
    """An event that says the same is not new, whatever the order of its keys; of another name it is."""
    seen = Deduplicator(10, key=by_content)
    assert seen.is_new(event("a", {"x": 1, "y": [1]}), 0)
    assert not seen.is_new(event("a", {"y": [1], "x": 1}), 1)
    assert seen.is_new(event("b", {"x": 1, "y": [1]}), 1)
    assert seen.is_new(event("a", {"x": 2, "y": [1]}), 1)
    assert seen.is_new(event("a", NOON), 1)


def test_what_is_remembered_is_bounded() -> None:
    """At most so many events are remembered, and none for longer than its time."""
    seen = Deduplicator(10, limit=2)
    for number in range(3):
        assert seen.is_new(event(event_id=str(number)), number)
    assert len(seen) == 2
    assert not seen.is_new(event(event_id="1"), 3)
    assert seen.is_new(event(event_id="0"), 3)
    assert seen.is_new(event(), 100)
    assert len(seen) == 0


@pytest.mark.parametrize(("seconds", "limit"), [(0, 1), (-1, 1), (1, 0)])
def test_nothing_to_remember(seconds: float, limit: int) -> None:
    """Less than a moment, and less than one event, is a ValueError."""
    with pytest.raises(ValueError, match="remembered"):
        Deduplicator(seconds, limit=limit)
