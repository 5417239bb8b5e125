"""Router: from received bodies to the calls that they answer, and to on_message.

Runs on whichever thread does the reading, one at a time. The user's functions that must run here (split, msg_prep,
keys, match_msg, a stream's until, is_pong) are called outside the connection's lock, each guarded: what it raises is
reported, and the connection lives.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from .callbacks import name_of
from .calls import Streaming
from .errors import SlowConsumer, SlowUserCode, UserCodeError
from .life import Life
from .message import Message, received
from .pending import Call
from .task import Task
from .tombstones import Verdict, judge

#: Seconds after which a user's function that holds up the reading is reported.
SLOW = 0.05

_Keyed = tuple[Message, Hashable | None]
_Found = tuple[Message, Call | Verdict]


class Router:
    """Says of each received message whom it is for.

    `on_pong()` is called for each message that `is_pong` knows.
    """

    def __init__(self, life: Life, on_pong: Callable[[], object]) -> None:
        self._life = life
        self._on_pong = on_pong
        self._options = life.options
        self._correlation = life.correlation
        self._pending = life.session.pending
        self._lock = life.lock
        self._by_key_alone = life.correlation.has_key and life.correlation.match_msg is None
        self.received = 0
        self.dropped = 0
        self.verdicts = dict.fromkeys(Verdict, 0)
        self._episode = False
        # Whom the messages of the present batch are for, as far as they are not delivered yet. Kept here, so that a
        # Ctrl-C in between loses none of them.
        self._found: deque[_Found] = deque()

    def route(self, bodies: Sequence[str | bytes]) -> None:
        """Deliver whole messages, in their order."""
        self._life.routing_thread = threading.get_ident()
        self.received += len(bodies)
        tasks: list[Task] = []
        try:
            messages = self._prepared(bodies, tasks)
            if self._by_key_alone:
                self._match_keys(messages, tasks)
            else:
                self._match_each(messages, tasks)
        except BaseException:
            self._deliver_rest(tasks)
            self._queue(tasks)
            raise
        finally:
            self._life.routing_thread = None
        self._queue(tasks)

    # -- what a message means

    def _prepared(self, bodies: Sequence[str | bytes], tasks: list[Task]) -> list[_Keyed]:
        """The messages with their params and keys; one whose function raises is reported and goes no further."""
        options = self._options
        split, msg_prep, is_pong = options.split, options.msg_prep, options.is_pong
        key_of = self._correlation.response_key if self._correlation.has_key else None
        messages: Iterable[Message] = map(received, bodies)
        if split is not None:
            messages = self._split(messages, split, tasks)
        elif msg_prep is None and key_of is None and is_pong is None:
            return [(message, None) for message in messages]
        prepared: list[_Keyed] = []
        clock = time.monotonic
        before = clock()
        for message in messages:
            function: Callable[..., object] | None = msg_prep
            try:
                if msg_prep is not None:
                    msg_prep(message)
                function = is_pong
                if is_pong is not None and is_pong(message):
                    self._on_pong()
                    continue
                function = key_of
                key = None if key_of is None else key_of(message)
                hash(key)
                prepared.append((message, key))
            except Exception as exc:
                tasks += self._life.report(UserCodeError(name_of(function), exc, message))
            after = clock()
            if after - before > SLOW:
                tasks += self._life.report(SlowUserCode("preparing a message", after - before))
            before = after
        return prepared

    def _split(
        self, messages: Iterable[Message], split: Callable[[Message], Sequence[Message]], tasks: list[Task]
    ) -> list[Message]:
        parts: list[Message] = []
        for message in messages:
            before = time.monotonic()
            try:
                parts += split(message)
            except Exception as exc:
                tasks += self._life.report(UserCodeError(name_of(split), exc, message))
            if (seconds := time.monotonic() - before) > SLOW:
                tasks += self._life.report(SlowUserCode(name_of(split), seconds))
        return parts

    # -- by key: one lock for the whole batch

    def _match_keys(self, messages: list[_Keyed], tasks: list[Task]) -> None:
        at = 0
        while at < len(messages):
            at, stream = self._claim_keyed(messages, at)
            self._deliver_found(tasks)
            if stream is not None:
                self._deliver_item(messages[at - 1][0], stream, tasks)

    def _claim_keyed(self, messages: list[_Keyed], at: int) -> tuple[int, Streaming | None]:
        """Take the calls that are answered, up to a stream's item: what answers next depends on its `until`."""
        note, pending, now = self._found.append, self._pending, time.monotonic()
        with self._lock:
            for message, key in messages[at:] if at else messages:
                at += 1
                call = None if key is None else pending.oldest(key)
                if call is None:
                    verdict = Verdict.UNKNOWN if key is None else pending.tombstones.by_key(key, now)
                    note((message, verdict))
                elif isinstance(call, Streaming):
                    return at, call
                else:
                    note((message, call))
                    pending.claim(call, now)
        return at, None

    # -- by function or by order: one message after the other

    def _match_each(self, messages: list[_Keyed], tasks: list[Task]) -> None:
        for message, key in messages:
            found = self._find(message, key, tasks)
            if isinstance(found, Streaming):
                self._deliver_item(message, found, tasks)
            else:
                self._found.append((message, found))
                self._deliver_found(tasks)

    def _find(self, message: Message, key: Hashable | None, tasks: list[Task]) -> Call | Verdict:
        correlation = self._correlation
        if correlation.in_order:
            with self._lock:
                call = self._pending.next_in_line(now := time.monotonic())
                if isinstance(call, Call):
                    self._pending.claim(call, now)
            return call
        if correlation.match_msg is None or (correlation.has_key and key is None):
            return Verdict.UNKNOWN
        return self._ask(message, key, tasks)

    def _ask(self, message: Message, key: Hashable | None, tasks: list[Task]) -> Call | Verdict:
        """Ask `match_msg` of each candidate, oldest first, outside the lock."""
        pending, by_key = self._pending, self._correlation.has_key
        with self._lock:
            candidates = pending.with_key(key) if by_key else pending.snapshot()
        for call in candidates:
            if call.sent_at is not None and self._matches(call.message, message, tasks):
                with self._lock:
                    if pending.claim(call, time.monotonic()):
                        return call
        with self._lock:
            if by_key:
                return pending.tombstones.by_key(key, time.monotonic())
            tombs = pending.tombstones.snapshot(time.monotonic())
        return judge(lambda request, reply: self._matches(request, reply, tasks), tombs, message)

    def _matches(self, request: Message, response: Message, tasks: list[Task]) -> bool:
        match_msg = self._correlation.match_msg
        assert match_msg is not None
        return bool(self._guarded(match_msg, (request, response), response, tasks))

    def _guarded(
        self, function: Callable[..., object], arguments: tuple[Any, ...], message: Message, tasks: list[Task]
    ) -> object:
        """What the user's function returns; None if it raises, which is reported."""
        before = time.monotonic()
        try:
            return function(*arguments)
        except Exception as exc:
            tasks += self._life.report(UserCodeError(name_of(function), exc, message))
            return None
        finally:
            if (seconds := time.monotonic() - before) > SLOW:
                tasks += self._life.report(SlowUserCode(name_of(function), seconds))

    # -- delivery

    def _deliver_found(self, tasks: list[Task]) -> None:
        found = self._found
        while found:
            self._deliver(*found[0], tasks)
            found.popleft()

    def _deliver_rest(self, tasks: list[Task]) -> None:
        """Deliver, after a Ctrl-C, what was found before; the first of it may be delivered already."""
        for message, found in self._found:
            if isinstance(found, Call):
                with self._lock:
                    self._pending.claim(found, time.monotonic())
            rest: list[Task] = []
            self._deliver(message, found, rest)
            if rest != tasks[-len(rest) :]:
                tasks += rest
        self._found.clear()

    def _deliver(self, message: Message, found: Call | Verdict, tasks: list[Task]) -> None:
        if isinstance(found, Verdict):
            self.verdicts[found] += 1
            on_message = self._options.on_message
            if on_message is not None:
                tasks.append(Task(on_message, (message, self._life.connection()), True))
        else:
            tasks += found.answer(message)

    def _deliver_item(self, message: Message, call: Streaming, tasks: list[Task]) -> None:
        """Give a stream its next reply, and take it out of the queue if that was the last, or one too many."""
        if call.is_full:
            if self._remove(call, answered=False):
                call.fail(call.overflow())
            return
        ends = self._guarded(call.until, (message,), message, tasks)
        call.answer(message)
        if ends and self._remove(call, answered=True):
            call.end()

    def _remove(self, call: Call, *, answered: bool) -> bool:
        with self._lock:
            return self._pending.remove(call, time.monotonic(), answered=answered)

    def _queue(self, tasks: list[Task]) -> None:
        if not tasks:
            return
        room = self._life.callbacks.room
        if len(tasks) > room and self._options.overflow == "drop":
            tasks = self._without_newest(tasks, room)
        elif room:
            self._episode = False
        self._life.callbacks.extend(tasks)

    def _without_newest(self, tasks: list[Task], room: int) -> list[Task]:
        """Only unmatched messages are ever dropped."""
        kept: list[Task] = []
        dropped = 0
        for task in tasks:
            if task.droppable and room <= 0:
                dropped += 1
            else:
                kept.append(task)
                room -= task.droppable
        self.dropped += dropped
        if dropped and not self._episode:
            self._episode = True
            text = (
                f"on_message is slower than the messages come: {len(self._life.callbacks)} wait, the newest are dropped"
            )
            kept += self._life.report(SlowConsumer(text, dropped))
        return kept
