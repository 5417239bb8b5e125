"""Is each module of evtws, and its pytest plugin, covered by its own test file alone?

For evtws/x.py that is tests/test_x.py; for the modules of evtws/testing together, all tests/test_testing_*.py. Prints
a line for each module, and ends with 1 if one has no test file, tests that fail, or less branch coverage than asked.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "evtws"
PLUGIN = ROOT / "pytest_evtws.py"
TESTS = ROOT / "tests"

#: How many test files run at a time.
PARALLEL = 2

#: Modules whose test file is named otherwise.
TESTED_BY = {"__init__": "exports", "__main__": "main", "pytest_evtws": "pytest_plugin"}


@dataclass(frozen=True)
class Job:
    """Modules, and the test files that have to cover each of them."""

    modules: list[str]
    tests: list[str]


def jobs() -> Iterator[Job]:
    """What is to be run."""
    for module in [*sorted(PACKAGE.glob("*.py")), PLUGIN]:
        test = TESTS / f"test_{TESTED_BY.get(module.stem, module.stem)}.py"
        yield Job([_relative(module)], [_relative(test)] if test.exists() else [])
    yield Job(
        [_relative(module) for module in sorted((PACKAGE / "testing").glob("*.py"))],
        [_relative(test) for test in sorted(TESTS.glob("test_testing_*.py"))],
    )


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def run(job: Job, least: float, keep: Path | None) -> list[str]:
    """Run one job and print its lines; returns the modules that fall short. The data go to the directory `keep`."""
    if not job.tests:
        print(f"{'':>7}  {', '.join(job.modules)}: no test file", flush=True)
        return job.modules
    with tempfile.TemporaryDirectory() as directory:
        measured = ("run", "--branch", "--source=evtws,pytest_evtws", "-m", "pytest", "-q", *job.tests)
        tests = _coverage(directory, *measured)
        if tests.returncode:
            print(f"{'':>7}  {', '.join(job.tests)} failed at first; once more:\n{tests.stdout[-2000:]}", flush=True)
            tests = _coverage(directory, *measured)
        _coverage(directory, "combine", "--quiet")
        if keep is not None:
            shutil.copy(Path(directory, "data"), keep / f"data.{job.modules[0].replace('/', '_')}")
        report = Path(directory, "report.json")
        _coverage(directory, "json", "--quiet", "-o", str(report), f"--include={','.join(job.modules)}")
        files = json.loads(report.read_text(encoding="utf-8"))["files"] if report.exists() else {}
    if tests.returncode:
        print(f"{'':>7}  {', '.join(job.tests)}: the tests fail\n{tests.stdout}", flush=True)
        return job.modules
    return [module for module in job.modules if not _is_covered(module, files, least)]


def _is_covered(module: str, files: dict[str, dict[str, dict[str, float]]], least: float) -> bool:
    # A module that is not in the report was not even imported.
    percent = files[module]["summary"]["percent_covered"] if module in files else 0.0
    print(f"{percent:6.1f}%  {module}{'' if percent >= least else '  <- too little'}", flush=True)
    return percent >= least


def _coverage(directory: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coverage", *arguments],
        cwd=ROOT,
        env={**os.environ, "COVERAGE_FILE": str(Path(directory, "data"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--at-least", type=float, default=95.0, metavar="PERCENT")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="for the coverage data, to be combined")
    parser.add_argument("module", nargs="*", help="these only, such as evtws/dial.py")
    arguments = parser.parse_args()
    wanted = [job for job in jobs() if not arguments.module or set(job.modules) & set(arguments.module)]
    with ThreadPoolExecutor(PARALLEL) as pool:
        found = pool.map(lambda job: run(job, arguments.at_least, arguments.keep), wanted)
        short = [name for names in found for name in names]
    print(f"{len(short)} modules fall short" + (f": {', '.join(short)}" if short else ""))
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
