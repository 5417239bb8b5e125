"""The examples run."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import evtws

from .timing import MS

EXAMPLES = Path(__file__).parents[1] / "examples"

#: What each example prints, beside other things.
PRINTED = {
    "asyncio_bridge": ["['0', '1', '4', '9', '16']", "no answer to -1; 0 left in the queue"],
    "callbacks": ["connected", "reply: hello 1", "reply: hello 2", "reply: hello 3", "no reply: ReplyTimeout"],
    "events_from_threads": [f"event {number}, price {number * 10}" for number in range(20)],
    "game_loop": ["300 frames", "longest poll", "0 threads were started", "closed with 1000"],
    "json_rpc_call": ["2 + 3 = 5", "divide: there is no such method"],
    "login_with_prepare": ["first attempt: prepare() raised PermissionError", "second attempt: Ada"],
    "reconnecting": ["(written: yes)", "sent again: {'id': 2, 'result': 'ok'}", "reconnects: 1"],
    "streaming_replies": ["reply 5", "the first is 1 and that is enough", "the server was told to stop 2"],
}

#: A script finds the evtws that this test found.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(evtws.__file__).parents[1])}


def test_every_example_is_here() -> None:
    """There is an expectation for each example, and an example for each expectation."""
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_example_runs(name: str) -> None:
    """Without arguments an example runs against a server of its own, ends with 0 and prints what it promises."""
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60_000 * MS,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert [line for line in PRINTED[name] if line not in done.stdout] == []


@pytest.mark.parametrize("name", PRINTED)
def test_example_says_what_it_is(name: str) -> None:
    """Each example has a comment on top and takes a URL."""
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source))
    assert "main(sys.argv[1])" in source
