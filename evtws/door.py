"""Door: a lock at which those who find it taken leave what they bring, instead of queueing."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from .turn import Turn

T = TypeVar("T")


class Door(Turn, Generic[T]):
    """A lock, and what was left at it.

    A thread that writes waits for the interpreter when its system call is done, and would keep others waiting until
    it gets it. So they leave their messages, and whoever lets go of the lock sees to it that `let_in` is called, with
    the lock held, while there are any.
    """

    def __init__(self, let_in: Callable[[], object]) -> None:
        super().__init__()
        self._let_in = let_in
        self.left: deque[T] = deque()

    def release(self) -> None:
        """Let go, if the caller has it; then see to what was left meanwhile, unless somebody else does."""
        super().release()
        self.look()

    def look(self) -> None:
        """Let in what was left, unless somebody else does; to be called after letting go."""
        # Who came before that found the lock taken, who comes after it finds it free.
        while self.left:
            try:
                if not self.acquire(blocking=False):
                    return
                self._let_in()
            finally:
                super().release()

    def leave(self, brought: T) -> None:
        """Leave something at the door; it is let in by whoever holds the lock, or here if nobody does any more."""
        self.left.append(brought)
        if not self.owned():
            self.release()
