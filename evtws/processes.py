"""What a process does to its connections when it forks and when it exits."""

from __future__ import annotations

import atexit
import os
import time
import weakref

from .engine import Engine

#: Seconds that all connections together are given to close when the interpreter exits.
EXIT_TIME = 1.0

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def register(engine: Engine) -> None:
    """See to it that this engine ends with the process, and is not used in a forked child."""
    _engines.add(engine)


@atexit.register
def _close_all() -> None:
    """Close what is open, all at once; starts no thread, which an exiting interpreter refuses."""
    deadline = time.monotonic() + EXIT_TIME
    engines = list(_engines)
    for engine in engines:
        # What is dropped later, a stream say, would wait for a thread that never runs.
        engine.life.callbacks.may_start = False
    running = [engine for engine in engines if not engine.over]
    for engine in running:
        engine.begin_close(1001, "the process exits", deadline)
    for engine in running:
        engine.join(deadline, grace=0.0)


def _forked() -> None:
    """In the child: the sockets are the parent's; nothing is said on them, and no lock of theirs is taken."""
    for engine in list(_engines):
        engine.forget_in_child()
    _engines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
