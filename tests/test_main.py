"""The `python -m evtws` command."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import evtws
from evtws import demo
from evtws.__main__ import main

from .timing import MS


def test_demo_runs_alone_and_soon() -> None:
    """`python -m evtws demo` needs nothing else, takes under 15 s, ends with 0, says so and is 80 columns wide."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "evtws", "demo"],
        env={**os.environ, "PYTHONPATH": str(Path(evtws.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=60_000 * MS,
    )
    assert time.monotonic() - began < 15_000 * MS
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines()[-1].endswith(" checks held, 0 failed")
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("status", [0, 1])
def test_exit_status_is_the_demos(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """The exit status is what the demo found out."""
    monkeypatch.setattr(demo, "run", lambda: status)
    assert main(["demo"]) == status


@pytest.mark.parametrize("words", [[], ["nonsense"], ["demo", "more"], ["--nonsense"]])
def test_usage(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """No words, or unknown ones, print the usage on stderr and end with 2."""
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: python -m evtws")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the version and ends with 0."""
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"evtws {evtws.__version__}\n"


def test_is_run_as_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m evtws` takes its words from the command line, and its exit status from the demo."""
    monkeypatch.setattr(demo, "run", lambda: 1)
    monkeypatch.setattr(sys, "argv", ["evtws", "demo"])
    # Not by runpy, which cannot load what pytest rewrites, as it does all that is installed with a plugin of its.
    path = Path(evtws.__file__).with_name("__main__.py")
    with pytest.raises(SystemExit) as caught:
        exec(compile(path.read_text(encoding="utf-8"), path, "exec"), {"__name__": "__main__", "__package__": "evtws"})
    assert caught.value.code == 1
