"""Door: a lock at which those who find it taken leave what they bring, instead of queueing."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


class Door(Generic[T]):
    """A lock, and what was left at it.

    A thread that writes waits for the interpreter when its system call is done, and would keep others waiting until
    it gets it. So they leave their messages, and whoever lets go of the lock sees to it that `let_in` is called, with
    the lock held, while there are any.
    """

    def __init__(self, let_in: Callable[[], object]) -> None:
        # Taken by nothing but `with`: only its steps cannot be parted by a Ctrl-C, which would leave it taken.
        self._lock = threading.Lock()
        #: Whether somebody is inside.
        self.is_taken = self._lock.locked
        self._let_in = let_in
        self.left: deque[T] = deque()

    def go_through(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call this function with the lock held; then see to what was left meanwhile."""
        try:
            with self._lock:
                return function(*args, **kwargs)
        finally:
            self.look()

    def leave(self, brought: T) -> None:
        """Leave something at the door; it is let in by whoever holds the lock, or here if nobody does any more."""
        self.left.append(brought)
        self.look()

    def look(self) -> None:
        """Let in what was left, unless somebody else does."""
        # Who comes before its holder lets go of the lock finds it taken, and the holder looks after that.
        while self.left and not self._lock.locked():
            with self._lock:
                self._let_in()
