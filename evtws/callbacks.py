"""CallbackQueue: every user callback, one after another, in arrival order, on a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from .task import Task

logger = logging.getLogger("evtws")


class CallbackQueue:
    """Runs tasks on the thread `evtws-callbacks`, which is started when first needed.

    `limit` bounds the droppable tasks that wait; the others are queued past it. `on_error(task, exception)` hears of
    what a task raised; `on_room()` is called when the queue, having been full, is half empty. They run on that thread
    and must not block; and they must not keep alive whoever owns the queue, for the thread keeps them. The first task
    waits until the thread `after` has ended.
    """

    def __init__(
        self,
        limit: int,
        *,
        on_error: Callable[[Task, BaseException], object],
        on_room: Callable[[], object],
        after: threading.Thread | None = None,
    ) -> None:
        self.limit = limit
        self._on_error = on_error
        self._on_room = on_room
        #: Called when nothing is left to do.
        self.on_idle: Callable[[], object] | None = None
        #: False once the interpreter exits: it starts no thread then (Python 3.12), and whatever waits for one is lost.
        self.may_start = True
        self._tasks: deque[Task] = deque()
        # Guards `thread`, `_asleep` and `_stopping`. Taken itself, not by its condition, whose `with` is written in
        # Python: a Ctrl-C in there would leave it taken.
        self._lock = threading.Lock()
        #: Wakes the thread when there is something to do, or nothing any more.
        self._changed = threading.Condition(self._lock)
        self._after = after
        #: The thread that runs tasks, or ran the last ones; None before the first.
        self.thread = after
        self._asleep = True  # nobody looks at the queue
        self._stopping = False
        self._waiting = False
        self._was_full = False
        self._running: tuple[str, float] | None = None
        self.failed = 0

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def room(self) -> int:
        """How many droppable tasks may be added now."""
        return max(0, self.limit - len(self._tasks))

    @property
    def idle(self) -> bool:
        """Whether nothing is queued and nothing runs."""
        return self._asleep and not self._tasks

    @property
    def busy(self) -> str | None:
        """What runs and for how long, for a person to read; None: nothing."""
        running = self._running
        return None if running is None else f"{time.monotonic() - running[1]:.1f} s in {running[0]}"

    @property
    def is_current_thread(self) -> bool:
        """Whether the caller is a task of this queue."""
        return self.thread is threading.current_thread()

    def note_full(self) -> None:
        """Ask for `on_room` once half of the queue is empty."""
        self._was_full = True

    def extend(self, tasks: Iterable[Task]) -> None:
        """Queue tasks; from any thread."""
        self._tasks.extend(tasks)
        if self._asleep and self._tasks:
            with self._lock:
                if self._waiting:
                    self._changed.notify()
                elif self.may_start and self._asleep:
                    self._start()

    def _start(self) -> None:
        """Start a thread, the first one or one for what comes after `stop`; requires the lock."""
        thread = threading.Thread(target=self._run, name="evtws-callbacks", daemon=True)
        before, self.thread = self.thread, thread  # now: its first task may ask whether it is the current one
        try:
            thread.start()
        except RuntimeError:
            # Nothing is lost: the next task tries again.
            self.thread = before
            logger.exception("no thread can be started for callbacks; %d wait", len(self._tasks))
        else:
            self._asleep = False

    def stop(self) -> None:
        """Let the thread end when the queue is empty."""
        with self._lock:
            self._stopping = True
            self._changed.notify()

    def join(self, timeout: float | None) -> bool:
        """Wait for the thread to end, at most `timeout` seconds (None: no limit); False if it has not.

        Then it sits in a callback: what is queued is dropped, and the thread ends when that callback returns.
        """
        thread = self.thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(timeout)
        if not thread.is_alive():
            return True
        logger.warning(
            "a callback does not return (%s): its thread is detached, %d callbacks are dropped",
            self.busy,
            len(self),
        )
        self._tasks.clear()
        return False

    def _run(self) -> None:
        if self._after is not None:
            self._after.join()
            self._after = None
        while True:
            try:
                task = self._tasks.popleft()
            except IndexError:
                if not self._sleep():
                    return
                continue
            self._call(task)
            del task  # it knows the Connection, which is to be collected while this thread sleeps
            if self._was_full and len(self._tasks) <= self.limit // 2:
                self._was_full = False
                self._on_room()

    def _sleep(self) -> bool:
        """Wait for a task; False when there will be none."""
        with self._lock:
            self._asleep = True
            if self.on_idle is not None:
                self.on_idle()
            # A task that was queued before `_asleep` was set did not notify.
            while not self._tasks:
                if self._stopping:
                    return False
                self._waiting = True
                self._changed.wait()
                self._waiting = False
            self._asleep = False
            return True

    def _call(self, task: Task) -> None:
        self._running = (name_of(task.function), time.monotonic())
        try:
            task.function(*task.arguments)
        except BaseException as exc:  # a SystemExit in a callback ends neither the thread nor the program
            self.failed += 1
            logger.exception("a callback raised")
            self._on_error(task, exc)
        finally:
            self._running = None


def name_of(function: object) -> str:
    """What a person calls that function."""
    return getattr(function, "__qualname__", None) or repr(function)
