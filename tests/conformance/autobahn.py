"""The Autobahn TestSuite, its cases run against each of evtws's ends, and the results that are pinned.

`python -m tests.conformance.autobahn` runs the cases and pins the results anew; SUBJECT… runs and pins those alone.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import websocket

import evtws
from tests.real import polled, servers
from tests.timing import MS

HERE = Path(__file__).parent

#: All cases but those of compression (12 and 13); Autobahn TestSuite 25.10.1 has so many of them.
UNCOMPRESSED = {"cases": ["*"], "exclude-cases": ["12.*", "13.*"]}
UNCOMPRESSED_COUNT = 301

#: The behaviours that pass; besides them there are NON-STRICT, UNIMPLEMENTED, UNCLEAN, WRONG CODE, FAILED, ….
PASSED = {"OK", "INFORMATIONAL"}

#: How long one case, or the writing of all reports, may take, in seconds; and all cases of a fuzzing client.
CASE = 120_000 * MS
CASES = 600_000 * MS

T = TypeVar("T")

#: "behavior" and "behaviorClose" of each case, by its id, such as "1.1.1".
Results = dict[str, dict[str, str]]


def suite() -> Path:
    """Where .ci/install-real puts the suite and a link, `python2`, to the Python that runs it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("EVTWS_AUTOBAHN_DIR") or cache / "evtws" / "autobahn").absolute()


@dataclass(frozen=True)
class FuzzingServer:
    """A fuzzing server that runs, of which a client asks one case after another."""

    port: int
    process: subprocess.Popen[bytes]
    case_count: int
    reports: Path

    def run_cases(self, echo: Callable[[str], object], agent: str) -> Results:
        """Let `echo(url)` echo each case until that connection ends, and read what the server thought of it.

        `agent` names the client in the report and in the URLs.
        """
        for case in range(1, self.case_count + 1):
            echo(_url(self.port, "runCase", case=case, agent=agent))
            # It answers once the case is logged, which may be later than the end that the client saw.
            _ask(_url(self.port, "getCaseStatus", case=case, agent=agent))
        _ask(_url(self.port, "updateReports", agent=agent))
        return _read(self.reports, agent)


@contextmanager
def fuzzing_server(directory: Path, cases: dict[str, list[str]] = UNCOMPRESSED) -> Iterator[FuzzingServer]:
    """Start a fuzzing server on 127.0.0.1 and end it; `directory` takes its reports, its spec has `cases`."""
    port, reports = servers.free_port(), directory / "reports"
    spec = {"url": f"ws://127.0.0.1:{port}", "outdir": str(reports), **cases}
    with _wstest(directory, "fuzzingserver", spec, functools.partial(_case_count, port)) as (process, count):
        yield FuzzingServer(port, process, count, reports)


def fuzz(url: str, agent: str, directory: Path, cases: dict[str, list[str]] = UNCOMPRESSED) -> Results:
    """Let the fuzzing client run the cases against the echo server at `url`, and read what it thought of it.

    `agent` names the server in the report. `directory` takes that.
    """
    reports = directory / "reports"
    spec = {"servers": [{"url": url, "agent": agent}], "outdir": str(reports), **cases}
    with _wstest(directory, "fuzzingclient", spec, lambda: True) as (process, _):
        assert process.wait(CASES) == 0
    return _read(reports, agent)


@contextmanager
def _wstest(
    directory: Path, mode: str, spec: dict[str, Any], answer: Callable[[], T | None]
) -> Iterator[tuple[subprocess.Popen[bytes], T]]:
    python2 = suite() / "python2"
    if not python2.exists():
        raise servers.ServerMissingError(f"no Autobahn TestSuite in {suite()}: .ci/install-real installs it")
    path = directory / "spec.json"
    path.write_text(json.dumps(spec))
    command = [str(python2), "-u", str(HERE / "wstest_wrapper.py"), "-m", mode, "--webport", "0", "-s", str(path)]
    with servers.started(command, directory / "log", answer, {"PYTHONPATH": str(suite())}) as started:
        yield started


def _read(reports: Path, agent: str) -> Results:
    report = json.loads((reports / "index.json").read_text())[agent]
    return {case: {key: row[key] for key in ("behavior", "behaviorClose")} for case, row in report.items()}


def _url(port: int, path: str, **query: object) -> str:
    return f"ws://127.0.0.1:{port}/{path}?{urlencode(query)}"


def _ask(url: str) -> str:
    """The one message that the server answers to a question, or "" if it just closes."""
    connection: Any = websocket.create_connection(url, CASE)
    try:
        return str(connection.recv())
    finally:
        connection.shutdown()


def _case_count(port: int) -> int:
    return int(_ask(_url(port, "getCaseCount")))


def echo(url: str) -> None:
    """Dial `url` with evtws and echo every message until the server ends the connection."""
    ended = threading.Event()

    def bounce(message: evtws.Message, connection: evtws.Connection) -> None:
        connection.send(evtws.Message(message.body))

    def over(connection: evtws.Connection, error: evtws.EvtwsError | None) -> None:
        ended.set()

    # What the server does wrong on purpose, and an echo that comes after its end, are errors to pass over.
    connection = evtws.Connection(
        on_message=bounce, on_disconnected=over, on_error=lambda error: None, ping_interval=None
    )
    connection.dial(url)
    try:
        if not ended.wait(CASE):
            raise TimeoutError(f"the connection did not end: {url}")
    finally:
        connection.close()


def polled_echo(url: str) -> None:
    """Connect a WebSocketPeer to `url` and echo every packet until the server ends the connection."""
    peer = polled.new_peer()
    peer.connect_to_url(url)
    polled.echo_until_closed(peer, CASE)


def run_client(directory: Path) -> Results:
    """Run the cases against a Connection."""
    return _run_against_the_server(echo, directory)


def run_polled_client(directory: Path) -> Results:
    """Run the cases against WebSocketPeers that connect."""
    return _run_against_the_server(polled_echo, directory)


def _run_against_the_server(echo: Callable[[str], object], directory: Path) -> Results:
    with fuzzing_server(directory) as server:
        assert server.case_count == UNCOMPRESSED_COUNT
        return server.run_cases(echo, "evtws")


def run_polled_server(directory: Path) -> Results:
    """Run the cases against WebSocketPeers that accept streams, all polled by one loop."""
    with polled.echo_server() as server:
        return fuzz(server.url, "evtws", directory)


#: What the cases are run against, by the names of the pinned results; each takes an empty directory for its files.
SUBJECTS: dict[str, Callable[[Path], Results]] = {
    "client": run_client,
    "polled_client": run_polled_client,
    "polled_server": run_polled_server,
}


def failed(results: Results) -> Results:
    """Those of `results` in which something is neither OK nor informational."""
    return {case: row for case, row in results.items() if not PASSED.issuperset(row.values())}


def pinned(subject: str) -> Path:
    """The file in which that subject's results are pinned."""
    return HERE / f"autobahn_{subject}.json"


def pin(results: Results, path: Path) -> None:
    """Write `results`, a line for each case, in the order of their numbers."""
    cases = sorted(results, key=lambda case: [int(part) for part in case.split(".")])
    lines = [f"  {json.dumps(case)}: {json.dumps(results[case], sort_keys=True)}" for case in cases]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main(*subjects: str) -> None:
    """Run all cases and, where they all pass, pin the results."""
    for subject in subjects or SUBJECTS:
        with tempfile.TemporaryDirectory() as directory:
            results = SUBJECTS[subject](Path(directory))
        bad = failed(results)
        if bad:
            sys.exit(f"{subject}: {len(bad)} of {len(results)} cases failed: {json.dumps(bad, indent=2)}")
        pin(results, pinned(subject))


if __name__ == "__main__":
    main(*sys.argv[1:])
