"""Door: a lock at which those who find it taken leave what they bring, instead of queueing."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Door(Generic[T]):
    """A lock, and what was left at it.

    A thread that writes waits for the interpreter when its system call is done, and would keep others waiting until
    it gets it. So they leave their messages, and whoever lets go of the lock sees to it that `let_in` is called, with
    the lock held, while there are any.
    """

    def __init__(self, let_in: Callable[[], object]) -> None:
        self._lock = threading.Lock()
        self._let_in = let_in
        self.left: deque[T] = deque()
        self.acquire = self._lock.acquire
        self.locked = self._lock.locked

    def release(self) -> None:
        """Let go, then see to what was left meanwhile, unless somebody else does."""
        self._lock.release()
        # Looked at after letting go: who came before that found the lock taken, who comes after it finds it free.
        while self.left and self._lock.acquire(blocking=False):
            try:
                self._let_in()
            finally:
                self._lock.release()

    def leave(self, brought: T) -> None:
        """Leave something at the door; it is let in by whoever holds the lock, or here if nobody does any more."""
        self.left.append(brought)
        if self._lock.acquire(blocking=False):
            self.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()
