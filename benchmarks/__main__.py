"""`python -m benchmarks`: evtws beside its peers, interleaved, against one fast echo server."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import evtws

from . import evtws_client, peers
from .echo_server import echo_server
from .pending_cost import MANY, measure_pending
from .profiling import profile
from .runner import OURS, Row, Workload, measure
from .workloads import Caller, Listener, Submitter, eight_threads, events, one_after_another, window_of_64

BARE = "websocket-client"
RECIPE = "recipe on websocket-client"
RECIPE_WEBSOCKETS = "recipe on websockets.sync"
APP = "WebSocketApp"
ITERATION = "websockets.sync"
PENDING = "pending"

CALLS = 20_000
EVENTS = 200_000
PENDING_CALLS = 2_000


def workloads(share: int) -> dict[str, Workload[Any]]:
    """The workloads by the name that `--workload` takes, with one in `share` of their full counts."""
    calls = CALLS // share
    one: Workload[Caller] = Workload(
        "one after another",
        calls,
        one_after_another,
        {
            OURS: evtws_client.calls,
            BARE: peers.bare,
            RECIPE: peers.recipe,
            RECIPE_WEBSOCKETS: peers.recipe_on_websockets,
        },
        {BARE: 1.4},
    )
    window: Workload[Submitter] = Workload(
        "window of 64",
        calls,
        window_of_64,
        {OURS: evtws_client.calls, RECIPE: peers.recipe, RECIPE_WEBSOCKETS: peers.recipe_on_websockets},
        {RECIPE: 0.75},
    )
    threads: Workload[Caller] = Workload(
        "8 threads",
        calls,
        eight_threads,
        {OURS: evtws_client.calls, RECIPE: peers.recipe, RECIPE_WEBSOCKETS: peers.recipe_on_websockets},
        {RECIPE_WEBSOCKETS: 1.0},
    )
    pushed: Workload[Listener] = Workload(
        "events",
        EVENTS // share,
        events,
        {OURS: evtws_client.pushed, APP: peers.websocket_app, ITERATION: peers.iteration, BARE: peers.bare},
        {APP: 1 / 3},
    )
    return {"one": one, "window": window, "threads": threads, "events": pushed}


def main() -> int:
    """Run what the command line asks for; 1 when a target was missed and `--check` given."""
    arguments = _parse()
    # A proxy of the environment must not come between.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"
    share = 40 if arguments.quick else 1
    with echo_server() as url:
        if arguments.profile:
            profile(workloads(share)[arguments.profile], url)
            return 0
        print(_versions(), flush=True)
        print(f"\n{'workload':<20} {'client':<27} {'median':>10}   {'evtws / client (min .. max)':<24} target")
        verdicts = [row.met for row in _rows(arguments, url, share) if row.met is not None]
    print(f"\n{verdicts.count(True)} of {len(verdicts)} targets met")
    return 1 if arguments.check and not all(verdicts) else 0


def _rows(arguments: argparse.Namespace, url: str, share: int) -> list[Row]:
    only = set(arguments.only or [])
    every = workloads(share)
    found: list[Row] = []
    for name in arguments.workload or [*every, PENDING]:
        if name != PENDING:
            rows = measure(every[name], url, arguments.rounds, only)
        elif not only or OURS in only:
            rows = measure_pending(url, arguments.rounds, PENDING_CALLS // share, MANY // share)
        else:
            rows = []
        for row in rows:
            print(row, flush=True)
        found += rows
    return found


def _parse() -> argparse.Namespace:
    names = [*workloads(1)]
    clients = sorted({client for workload in workloads(1).values() for client in workload.clients})
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how often each is measured (default: 7)")
    parser.add_argument("--quick", action="store_true", help="a fortieth of the counts: does it run at all?")
    parser.add_argument("--only", action="append", choices=clients, help="these clients (repeatable)")
    parser.add_argument("--workload", action="append", choices=[*names, PENDING], help="these (repeatable)")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    parser.add_argument("--profile", choices=names, help="cProfile of evtws on one workload instead")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def _versions() -> str:
    # wsaccel, where installed, checks websocket-client's UTF-8 in C.
    names = ("websocket-client", "wsaccel", "websockets", "picows", "uvloop")
    libraries = ", ".join(f"{name} {_version(name)}" for name in names)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    machine = f"Python {platform.python_version()}, {cores} cores, {platform.system()}"
    return f"{machine}\nevtws {evtws.__version__}, {libraries}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    sys.exit(main())
