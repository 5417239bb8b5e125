"""The servers that others wrote: each a context manager that starts one on 127.0.0.1 and always ends it.

`with aria2(directory) as server:` yields once the server answers; `directory` is an empty one, for its files
and its log. What is not installed raises ServerMissingError: .ci/install-real installs it.
"""

from __future__ import annotations

import functools
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.timing import MS, SOON

HERE = Path(__file__).parent

#: How long a server may take until it answers, in seconds: Chromium needs 3 on an idle machine.
START = 60_000 * MS

#: How long a server may take to end after SIGTERM before it is killed, in seconds: aria2 needs 3.
STOP = 8_000 * MS

POLL = 20 * MS

T = TypeVar("T")


class ServerMissingError(Exception):
    """The server's program is not installed."""


class ServerFailedError(Exception):
    """The server ended, or did not answer in time; the text has the end of its log."""


@dataclass(frozen=True)
class Server:
    """A server that runs: its endpoint's websocket URL, and its process, the leader of a process group."""

    url: str
    process: subprocess.Popen[bytes] = field(repr=False)


@dataclass(frozen=True)
class Aria2(Server):
    """aria2: `secret` is its RPC token, `directory` where it may download to; `file_url` serves `content`."""

    secret: str
    directory: Path
    file_url: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Chromium(Server):
    """Chromium: `url` is the browser's own endpoint, `http_url` the root of the DevTools' HTTP endpoints."""

    http_url: str


def program(name: str) -> str:
    """The path of an installed program; ServerMissing if there is none."""
    # Debian keeps daemons in /usr/sbin, which is not on a user's PATH.
    path = shutil.which(name, path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
    if path is None:
        raise ServerMissingError(f"{name} is not installed: .ci/install-real installs it")
    return path


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on, for servers that cannot say which one they chose."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started(
    command: Sequence[str], log: Path, answer: Callable[[], T | None], env: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], T]]:
    """Run `command` in a process group of its own, from when `answer` gives something until the block ends.

    `answer` is polled: None, or an OSError, means "not yet". `env` is added to this process's environment, of
    which the proxies are left out. Raises ServerFailedError if the process ends first, or START has passed.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=inherited | (env or {}),
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        yield process, _wait_until_it_answers(process, log, answer)
    finally:
        _end(process)


def _wait_until_it_answers(process: subprocess.Popen[bytes], log: Path, answer: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        ended = process.poll()
        if ended is not None:
            raise ServerFailedError(f"{process.args!r} ended with {ended}:\n{_tail(log)}")
        try:
            value = answer()
        except OSError:
            value = None
        if value is not None:
            return value
        time.sleep(POLL)
    raise ServerFailedError(f"{process.args!r} did not answer within {START:g} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def _end(process: subprocess.Popen[bytes]) -> None:
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(STOP)
    except subprocess.TimeoutExpired:
        pass
    # Also where the leader ended: its children may have stayed.
    _signal_group(process, signal.SIGKILL)
    process.wait(STOP)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def http_json(port: int, path: str, body: Any = None) -> Any:
    """What 127.0.0.1 answers, as JSON, to a GET or, with a `body`, a POST of it; else an OSError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)
    try:
        data = None if body is None else json.dumps(body)
        connection.request("GET" if data is None else "POST", path, data)
        return json.loads(connection.getresponse().read())
    except (http.client.HTTPException, ValueError) as error:
        raise OSError("no JSON over HTTP") from error
    finally:
        connection.close()


def _accepts(port: int) -> bool:
    with socket.create_connection(("127.0.0.1", port), SOON):
        return True


class _QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is the base class's)
        pass


@contextmanager
def file_server(directory: Path) -> Iterator[str]:
    """Serve the files of `directory` over HTTP; yields the root's URL."""
    handler = functools.partial(_QuietFiles, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(POLL,), name="file-server")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def aria2(directory: Path) -> Iterator[Aria2]:
    """aria2's JSON-RPC, and a file for it to download."""
    secret, port = "s3", free_port()
    content = bytes(range(256)) * 1024
    (directory / "served").mkdir()
    (directory / "downloads").mkdir()
    (directory / "served" / "file.bin").write_bytes(content)
    command = [
        program("aria2c"),
        "--no-conf",
        "--enable-rpc",
        f"--rpc-listen-port={port}",
        f"--rpc-secret={secret}",
    ]
    command += ["--rpc-listen-all=false", "--disable-ipv6", f"--dir={directory / 'downloads'}"]
    call = {"jsonrpc": "2.0", "id": 1, "method": "aria2.getVersion", "params": [f"token:{secret}"]}
    answer = functools.partial(http_json, port, "/jsonrpc", call)
    with (
        file_server(directory / "served") as root,
        started(command, directory / "log", answer) as (process, _),
    ):
        yield Aria2(
            f"ws://127.0.0.1:{port}/jsonrpc",
            process,
            secret=secret,
            directory=directory / "downloads",
            file_url=f"{root}file.bin",
            content=content,
        )


CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--remote-debugging-address=127.0.0.1",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
]


@contextmanager
def chromium(directory: Path) -> Iterator[Chromium]:
    """Chromium's DevTools, without a window."""
    profile = directory / "profile"
    command = [program("chromium"), *CHROMIUM_FLAGS, f"--user-data-dir={profile}", "about:blank"]

    def answer() -> tuple[int, str]:
        port = int((profile / "DevToolsActivePort").read_text().split()[0])
        return port, http_json(port, "/json/version")["webSocketDebuggerUrl"]

    with started(command, directory / "log", answer) as (process, (port, url)):
        yield Chromium(url, process, http_url=f"http://127.0.0.1:{port}/")


@contextmanager
def mosquitto(directory: Path) -> Iterator[Server]:
    """mosquitto's MQTT over websockets (subprotocol "mqtt"), open to anybody."""
    port = free_port()
    # Of mosquitto 2.0.11: an address binds a websocket listener to all of them unless the domain is ipv4; the
    # interface's name is safe either way. And websocket listeners alone count as "no listening sockets".
    lines = [f"listener {port} lo", "protocol websockets", "socket_domain ipv4"]
    lines += [
        f"listener {free_port()} 127.0.0.1",
        "protocol mqtt",
        "allow_anonymous true",
        "persistence false",
    ]
    configuration = directory / "mosquitto.conf"
    configuration.write_text("\n".join(lines) + "\n")
    command = [program("mosquitto"), "-c", str(configuration)]
    with started(command, directory / "log", functools.partial(_accepts, port)) as (process, _):
        yield Server(f"ws://127.0.0.1:{port}/", process)


@contextmanager
def graphql(directory: Path) -> Iterator[Server]:
    """graphql-ws with the schema of graphql_server.mjs (subprotocol "graphql-transport-ws")."""
    if not (HERE / "node_modules" / "graphql-ws").is_dir():
        raise ServerMissingError("graphql-ws is not installed: .ci/install-real installs it")
    log = directory / "log"

    def answer() -> int | None:
        line = log.read_text()
        return json.loads(line)["port"] if line.endswith("}\n") else None

    with started([program("node"), str(HERE / "graphql_server.mjs")], log, answer) as (process, port):
        yield Server(f"ws://127.0.0.1:{port}/graphql", process)
