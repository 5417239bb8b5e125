"""The example of a game: how long do its polls take, beside rounds in which there is nothing to poll?"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import evtws
from tests.timing import MS

EXAMPLE = Path(__file__).parents[2] / "examples" / "game_loop.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(evtws.__file__).parents[1])}
RUNS = 5 if os.environ.get("EVTWS_FULL") else 1

#: Milliseconds by which the longest poll may exceed the longest empty round, in the median of the runs.
WITHIN = 4.0


def excess() -> float:
    """Milliseconds by which the longest poll of one run exceeded its longest empty round."""
    done = subprocess.run(
        [sys.executable, EXAMPLE], env=ENVIRONMENT, capture_output=True, text=True, timeout=60_000 * MS, check=True
    )
    counted = re.search(r"(\d+) frames, (\d+) packets", done.stdout)
    timed = re.search(r"longest poll ([\d.]+) ms, longest empty round ([\d.]+) ms", done.stdout)
    assert counted
    assert timed
    frames, packets = map(int, counted.groups())
    assert packets > 0.8 * 2000 * frames / 60, done.stdout
    assert "0 threads were started" in done.stdout
    return float(timed[1]) - float(timed[2])


def test_polls_are_short() -> None:
    """At 60 frames and 2,000 messages a second no poll takes long, beside what the machine itself takes."""
    times = [excess() for _ in range(RUNS)]
    assert statistics.median(times) < WITHIN, times
