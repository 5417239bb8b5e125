"""Where the time of one workload goes, in every thread of the client: cProfile."""

from __future__ import annotations

import cProfile
import pstats
import sys
import threading
from typing import Any

from .runner import OURS, Workload

LINES = 35


def profile(workload: Workload[Any], url: str) -> None:
    """Print the functions that evtws spends its own time in.

    Needs Python 3.10 or 3.11: from 3.12 on cProfile takes one thread at a time. Raises RuntimeError there.
    """
    if sys.version_info >= (3, 12):
        raise RuntimeError("cProfile sees all threads on Python 3.10 and 3.11 only")
    profiles = [cProfile.Profile()]

    def begin(*event: object) -> None:
        # The first event of a new thread: a profile of its own takes this function's place.
        profiles.append(cProfile.Profile())
        profiles[-1].enable()

    threading.setprofile(begin)
    try:
        with profiles[0], workload.clients[OURS](url) as opened:
            workload.loop(opened, workload.count)
    finally:
        threading.setprofile(None)
    stats = pstats.Stats(profiles[0])
    for other in profiles[1:]:
        stats.add(other)
    stats.sort_stats("tottime").print_stats(LINES)
