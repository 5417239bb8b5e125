"""Events, the triggers that they fire, and which of them were there already.

No socket, no thread, no clock: what is given `now` is given seconds of a monotonic clock. What a user's function raises
comes out of here; whoever calls isolates it.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from .message import Message

#: What a trigger listens to: a name, a pattern with `*`, or a class of events.
Selector = str | type["Event"]
Action = Callable[["Event"], object]
A = TypeVar("A", bound=Action)


class Event:
    """Something that a service tells.

    `name` is the service's name for it, `data` what it says, as it came: `event["key"]`, `event.get("key")` and
    `"key" in event` reach all of it, and so does `event.key` unless Event itself has an attribute of that name. `id` is
    the service's, or None. `timestamp` is aware: the service's own, or `received_at` where it has none, and then
    `is_timestamped` is False. `message` is the raw message.
    """

    def __init__(
        self,
        name: str,
        data: Any = None,
        *,
        received_at: datetime,
        event_id: str | None = None,
        timestamp: datetime | None = None,
        message: Message | None = None,
    ) -> None:
        for time in (received_at, timestamp):
            if time is not None and time.tzinfo is None:
                raise ValueError("the times of an event are aware: they have a time zone")
        self.name = name
        self.data = data
        self.id = event_id
        self.received_at = received_at
        self.timestamp = timestamp or received_at
        self.is_timestamped = timestamp is not None
        self.message = message

    @property
    def _fields(self) -> Mapping[str, Any]:
        return self.data if isinstance(self.data, Mapping) else {}

    def __getitem__(self, key: str) -> Any:
        return self._fields[key]

    def __contains__(self, key: object) -> bool:
        return key in self._fields

    def get(self, key: str, default: Any = None) -> Any:
        """What the data say of that key, or the default."""
        return self._fields.get(key, default)

    def __getattr__(self, name: str) -> Any:
        # Only what Event has not comes here; "data" itself does while a copy is made.
        if not name.startswith("_") and name != "data" and name in self._fields:
            return self._fields[name]
        raise AttributeError(f"{type(self).__name__} has neither an attribute nor a datum {name!r}")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.timestamp.isoformat()}>"


class Trigger:
    """What is to be done upon which events.

    `events` are names, patterns with `*`, or classes of events; one of them has to fit. `conditions` have to be true,
    all of them: functions of the event, or anything with a truth value, looked at each time. A list that is given is
    kept, and may be changed at any time. `action` is a function of the event; a coroutine function is awaited on
    `loop`, an asyncio loop that runs elsewhere. With `single_shot` it is removed when it first fires.

    Raises TypeError for what is no selector or no condition, ValueError for no events at all, and for a coroutine
    function without a `loop`.
    """

    def __init__(
        self,
        *events: Selector,
        action: Action | None = None,
        conditions: Iterable[Any] = (),
        single_shot: bool = False,
        name: str | None = None,
        loop: Any = None,
    ) -> None:
        if not events:
            raise ValueError("a trigger needs at least one event")
        for selector in events:
            check_selector(selector)
        self.events = tuple(dict.fromkeys(events))
        self.conditions: list[Any] = conditions if isinstance(conditions, list) else list(conditions)
        for condition in self.conditions:
            _check_condition(condition)
        self.single_shot = single_shot
        self.name = name
        self.loop = loop
        #: When it last fired, aware; None: never.
        self.last_run: datetime | None = None
        #: The action, None while there is none.
        self.function: Action | None = None
        if action is not None:
            self.action(action)

    def action(self, function: A) -> A:
        """Have this function called with each event that fires; a decorator, which returns the function."""
        if is_coroutine_function(function) and self.loop is None:
            raise ValueError("a coroutine function as action needs loop=, an asyncio loop that runs elsewhere")
        self.function = function
        return function

    def fits(self, event: Event) -> bool:
        """Whether it listens to such an event, whatever the conditions say."""
        return any(
            isinstance(event, selector) if isinstance(selector, type) else name_fits(selector, event.name)
            for selector in self.events
        )

    def check(self, event: Event) -> bool:
        """Whether this event fires it; changes nothing. Raises what a condition raises."""
        return self.fits(event) and self.holds(event)

    def holds(self, event: Event) -> bool:
        """Whether all conditions are true. Raises what one of them raises, TypeError for one that is a coroutine."""
        return all(_is_true(condition, event) for condition in list(self.conditions))

    def __repr__(self) -> str:
        names = ", ".join(selector if isinstance(selector, str) else selector.__name__ for selector in self.events)
        return f"<Trigger {self.name or ''}({names})>"


def check_selector(selector: object) -> None:
    """Raise TypeError for what is no name, no pattern and no class of events, ValueError for an empty name."""
    if isinstance(selector, type) and issubclass(selector, Event):
        return
    if not isinstance(selector, str):
        raise TypeError(f"an event is given by its name, a pattern or a class of events, not {selector!r}")
    if not selector:
        raise ValueError("the name of an event is not empty")


def name_fits(pattern: str, name: str) -> bool:
    """Whether that is the name, or a pattern that it fits: `*` is any number of characters."""
    return name == pattern or ("*" in pattern and fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]")))


def is_coroutine_function(function: object) -> bool:
    """Whether calling this makes a coroutine; also a partial of one, or an object whose `__call__` is one."""
    while isinstance(function, functools.partial):
        function = function.func
    call = type(function).__call__ if callable(function) else None
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _check_condition(condition: object) -> None:
    if callable(condition) and is_coroutine_function(condition):
        raise TypeError("a condition cannot be a coroutine function: its answer is needed at once")


def _is_true(condition: Any, event: Event) -> bool:
    if not callable(condition):
        return bool(condition)
    _check_condition(condition)
    return bool(condition(event))


class Dispatcher:
    """The triggers that there are, and which of them an event may fire.

    Names are looked up, not scanned. It has no lock of its own: its owner calls it under one, and asks the triggers'
    conditions outside of it.
    """

    def __init__(self) -> None:
        self._triggers: dict[Trigger, int] = {}  # in their order
        self._by_name: dict[str, Trigger] = {}
        self._added = 0
        # Of each name the triggers that listen to it; those with a pattern or a class are asked each time.
        self._exact: dict[str, dict[Trigger, None]] = {}
        self._asked: dict[Trigger, None] = {}

    def __len__(self) -> int:
        return len(self._triggers)

    def __iter__(self) -> Iterator[Trigger]:
        return iter(list(self._triggers))

    def __contains__(self, trigger: object) -> bool:
        return trigger in self._triggers

    def add(self, trigger: Trigger) -> None:
        """Raises ValueError if it is here already, or another one has its name."""
        if trigger in self._triggers:
            raise ValueError(f"{trigger!r} is here already")
        if trigger.name is not None and trigger.name in self._by_name:
            raise ValueError(f"there is a trigger of the name {trigger.name!r} already")
        self._added += 1
        self._triggers[trigger] = self._added
        if trigger.name is not None:
            self._by_name[trigger.name] = trigger
        for selector in trigger.events:
            if isinstance(selector, str) and "*" not in selector:
                self._exact.setdefault(selector, {})[trigger] = None
            else:
                self._asked[trigger] = None

    def remove(self, trigger: Trigger | str) -> Trigger:
        """Take a trigger out, by itself or by its name; returns it. Raises KeyError if it is not here."""
        found = self.get(trigger) if isinstance(trigger, str) else trigger
        if found not in self._triggers:
            raise KeyError(f"{found!r} is not here")
        del self._triggers[found]
        if found.name is not None:
            self._by_name.pop(found.name, None)
        self._asked.pop(found, None)
        for selector in found.events:
            if isinstance(selector, str) and selector in self._exact:
                self._exact[selector].pop(found, None)
                if not self._exact[selector]:
                    del self._exact[selector]
        return found

    def take(self, trigger: Trigger) -> bool:
        """Take out a single-shot trigger that is about to fire; False if somebody else took it."""
        if trigger not in self._triggers:
            return False
        self.remove(trigger)
        return True

    def get(self, name: str) -> Trigger:
        """The trigger of that name. Raises KeyError, which names it."""
        try:
            return self._by_name[name]
        except KeyError:
            raise KeyError(f"there is no trigger of the name {name!r}") from None

    def find(self, name: str) -> list[Trigger]:
        """The triggers that listen to events of that name, by itself or by a pattern, in their order."""
        return self._listening(name, lambda trigger: any(_names(selector, name) for selector in trigger.events))

    def candidates(self, event: Event) -> list[Trigger]:
        """The triggers that listen to such an event, in their order: a snapshot; their conditions are not asked."""
        return self._listening(event.name, lambda trigger: trigger.fits(event))

    def _listening(self, name: str, listens: Callable[[Trigger], bool]) -> list[Trigger]:
        """Those that listen to this very name, and those of the others that say so, in their order."""
        found = dict(self._exact.get(name, {}))
        found.update(dict.fromkeys(filter(listens, self._asked)))
        return sorted(found, key=self._triggers.__getitem__)


def _names(selector: Selector, name: str) -> bool:
    return isinstance(selector, str) and name_fits(selector, name)


class Deduplicator:
    """Which events were there already.

    `key` says what makes two events one: `by_id` or `by_content`; None is an event that is always new. An event is
    remembered for `seconds`, and at most `limit` of them are; the oldest is forgotten first.
    """

    def __init__(self, seconds: float, *, key: Callable[[Event], Hashable | None] | None = None, limit: int = 10_000):
        if not seconds > 0:
            raise ValueError(f"events are remembered for more than 0 seconds, not {seconds!r}")
        if not limit >= 1:
            raise ValueError(f"at least 1 event is remembered, not {limit!r}")
        self._seconds = seconds
        self._key = key or by_id
        self._limit = limit
        self._seen: OrderedDict[Hashable, float] = OrderedDict()  # when each is forgotten, the oldest first

    def __len__(self) -> int:
        return len(self._seen)

    def is_new(self, event: Event, now: float) -> bool:
        """Whether no such event came within the time; it is remembered from then on."""
        self._forget(now)
        key = self._key(event)
        if key is None:
            return True
        if key in self._seen:
            return False
        self._seen[key] = now + self._seconds
        if len(self._seen) > self._limit:
            self._seen.popitem(last=False)
        return True

    def _forget(self, now: float) -> None:
        while self._seen and next(iter(self._seen.values())) <= now:
            self._seen.popitem(last=False)


def by_id(event: Event) -> Hashable | None:
    """Two events of one id are one; one without an id is always new."""
    return event.id


def by_content(event: Event) -> Hashable | None:
    """Two events of one name that say the same are one, whatever the order of their keys."""
    return event.name, json.dumps(event.data, sort_keys=True, default=repr)
