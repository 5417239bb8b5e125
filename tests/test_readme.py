"""What the README says is so."""

import contextlib
import inspect
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import evtws
from evtws import errors
from evtws.options import Options

from .timing import SOON

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ALL_BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
BLOCKS = [block for block in ALL_BLOCKS if "\ndef test_" not in block]
TEST_FILES = [block for block in ALL_BLOCKS if "\ndef test_" in block]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in README.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_example_runs(block: str) -> None:
    """Each Python block runs by itself and prints what the comments behind its prints say."""
    promised = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    lines = [_timeless(line) for line in printed.getvalue().splitlines()]
    assert [line for line in promised if _timeless(line) not in lines] == []


def _timeless(line: str) -> str:
    """A line without the seconds in it, of which a busy machine may need more."""
    return re.sub(r"\d\.\d s", "so many s", line)


def test_test_file_passes(tmp_path: Path) -> None:
    """The test file passes in a project of its own, without a warning, and is short."""
    (test_file,) = TEST_FILES
    assert len(test_file.splitlines()) <= 22
    (tmp_path / "test_application.py").write_text(test_file, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-W", "error", "-p", "no:cacheprovider"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=6 * SOON, check=False)
    assert " 2 passed in " in result.stdout, result.stdout + result.stderr


def test_there_are_promises_to_keep() -> None:
    """The blocks are found, and nearly all of them promise an output."""
    promising = [block for block in BLOCKS if ")  # " in block]
    assert len(promising) >= 6


def test_first_example_is_short() -> None:
    """The first example has some 15 lines, comes right after the promise, and needs no network."""
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 15
    promise, _, rest = README.partition("**Every call ends exactly once, every wait is bounded, TLS is safe.**")
    assert len(promise.splitlines()) <= 5
    assert rest.lstrip().startswith("```python")
    assert "evtws.testing" in BLOCKS[0]


@pytest.mark.parametrize("end", ["pip install . && .venv/bin/python -m evtws demo", "&& .venv/bin/python -m pytest"])
def test_two_commands(end: str) -> None:
    """The two commands stand alone, once each, on a line that begins by making a fresh venv."""
    lines = [line for line in README.splitlines() if line.endswith(end)]
    assert len(lines) == 1
    assert lines[0].startswith("python3 -m venv .venv && ")


def test_every_error_is_explained() -> None:
    """Each error that is exported is named."""
    kinds = [name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.EvtwsError)]
    assert [name for name in kinds if f"`{name}`" not in README and f"evtws.{name}`" not in README] == []


def test_error_rows() -> None:
    """What the table says of an error's bases and attributes is so."""
    rows = [row for row in ROWS if inspect.isclass(getattr(errors, row[0].strip("`"), None)) and len(row) == 4]
    assert len(rows) == 14
    for name, bases, _when, attributes in rows:
        kind = getattr(errors, name.strip("`"))
        names = {base.__name__ for base in kind.__mro__}
        assert set(re.findall(r"`(\w+)`", bases)) <= names
        source = "".join(inspect.getsource(base) for base in kind.__mro__ if base.__module__ == errors.__name__)
        assert [a for a in re.findall(r"`(\w+)`", attributes) if f"{a}:" not in source] == []


def test_every_option_is_explained() -> None:
    """Each option of a Connection is named."""
    options = inspect.signature(Options).parameters
    assert [name for name in options if not re.search(rf"`[^`]*\b{name}\b", README)] == []


def test_defaults() -> None:
    """The defaults in the table are the defaults."""
    parameters = inspect.signature(Options).parameters
    rows = [
        row for row in ROWS if row[0].strip("`") in parameters and len(row) == 3 and re.match(r"[\d.]+$|None", row[1])
    ]
    assert len(rows) == 13
    assert [(name, value) for name, value, _ in rows if str(parameters[name.strip("`")].default) != value] == []


def test_every_method_is_explained() -> None:
    """Each public method and property of a Connection is named."""
    names = [name for name in vars(evtws.Connection) if not name.startswith("_")]
    assert [name for name in names if not re.search(rf"\b{name}\b", README)] == []


def test_map_names_every_room() -> None:
    """The map has each room of the house, and no other."""
    floors = "".join(line for line in README.splitlines() if re.match(r"\| \d, ", line))
    here = Path(evtws.__file__).parent
    rooms = {path.stem for path in here.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(re.findall(r"`(\w+)`", floors)) == rooms


def test_links_lead_somewhere() -> None:
    """What is linked in the tree exists."""
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
