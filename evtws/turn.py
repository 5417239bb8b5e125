"""Turn: a lock that knows its owner."""

from __future__ import annotations

import threading


class Turn:
    """A lock that a Ctrl-C cannot leave taken.

    A KeyboardInterrupt can be raised between `acquire` and the next step, also within the `__enter__` of a class
    written in Python. So acquire it inside a `try`, and release it in its `finally`: that does nothing where the lock
    is not ours. No thread takes it twice.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # for its owner, not to be taken again
        self.acquire = self._lock.acquire
        #: Let go of what the caller has; no Ctrl-C can come before it has been done, as it can in `release`.
        self.unlock = self._lock.release
        #: Whether the caller's thread has it.
        self.owned = self._lock._is_owned  # type: ignore[attr-defined]

    def locked(self) -> bool:
        """Whether some thread has it."""
        if self.owned():
            return True
        try:
            return not self.acquire(blocking=False)
        finally:
            Turn.release(self)

    def release(self) -> None:
        """Let go, if the caller has it."""
        if self.owned():
            self._lock.release()

    def __enter__(self) -> None:
        try:
            self.acquire()
        except BaseException:
            self.release()
            raise

    def __exit__(self, *exc: object) -> None:
        self.release()
