"""The servers themselves, asked with a bare websocket-client: they answer, listen here alone, and end."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import websocket

from tests.timing import MS, SOON

from . import servers

ALL = [servers.aria2, servers.chromium, servers.mosquitto, servers.graphql]
Start = Callable[[Path], AbstractContextManager[servers.Server]]


@contextmanager
def opened(url: str, *subprotocols: str) -> Iterator[Any]:
    """A bare websocket-client connection, dropped in the end."""
    connection: Any = websocket.create_connection(url, SOON, subprotocols=subprotocols or None)
    try:
        yield connection
    finally:
        connection.shutdown()  # its close() leaves the socket open after a close frame from the server


def ask(connection: Any, **message: Any) -> Any:
    """The JSON message that comes next after this one."""
    connection.send(json.dumps(message))
    return json.loads(connection.recv())


def test_aria2_answers_a_call(aria2: servers.Aria2) -> None:
    """aria2 answers a JSON-RPC call by its id."""
    with opened(aria2.url) as connection:
        reply = ask(connection, jsonrpc="2.0", id="a1", method="aria2.getVersion", params=[f"token:{aria2.secret}"])
    assert reply["id"] == "a1"
    assert "version" in reply["result"]


def test_aria2_downloads_the_served_file(aria2: servers.Aria2) -> None:
    """aria2 downloads the file that stands ready for it and says when it starts and when it is complete."""
    parameters = [f"token:{aria2.secret}", [aria2.file_url], {"out": "smoke.bin"}]
    with opened(aria2.url) as connection:
        said = [ask(connection, jsonrpc="2.0", id="a2", method="aria2.addUri", params=parameters)]
        said += [json.loads(connection.recv()) for _ in range(2)]
    assert [message.get("method") for message in said if "id" not in message] == [
        "aria2.onDownloadStart",
        "aria2.onDownloadComplete",
    ]
    assert (aria2.directory / "smoke.bin").read_bytes() == aria2.content


def test_chromium_answers_a_command(chromium: servers.Chromium) -> None:
    """Chromium answers a DevTools command by its id."""
    with opened(chromium.url) as connection:
        reply = ask(connection, id=1, method="Browser.getVersion")
    assert reply["id"] == 1
    assert "Chrome" in reply["result"]["product"]


def test_mosquitto_accepts_a_connect_packet(mosquitto: servers.Server) -> None:
    """mosquitto answers an MQTT CONNECT with an accepting CONNACK, in binary messages."""
    connect = bytes.fromhex("10 10 00 04 4d 51 54 54 04 02 00 3c 00 04") + b"smok"
    with opened(mosquitto.url, "mqtt") as connection:
        connection.send_binary(connect)
        assert connection.recv() == bytes.fromhex("20 02 00 00")


@contextmanager
def graphql_session(server: servers.Server) -> Iterator[Any]:
    """A graphql-ws connection after its connection_ack."""
    with opened(server.url, "graphql-transport-ws") as connection:
        assert ask(connection, type="connection_init") == {"type": "connection_ack"}
        yield connection


def ask_graphql(connection: Any, query: str) -> list[Any]:
    """Every message of one operation, from its first to the final one."""
    said = [ask(connection, id="s", type="subscribe", payload={"query": query})]
    while said[-1]["type"] == "next":
        said.append(json.loads(connection.recv()))
    return said


@pytest.mark.parametrize(
    ("query", "data"),
    [
        ("{hello}", [{"hello": "hello world"}]),
        ("{slow(ms: 20)}", [{"slow": "slow"}]),
        ("subscription{count(to: 3)}", [{"count": 0}, {"count": 1}, {"count": 2}]),
        ("{fail}", [None]),
    ],
)
def test_graphql_answers_an_operation(graphql: servers.Server, query: str, data: list[Any]) -> None:
    """graphql-ws answers an operation with its results, each a `next`, and a `complete`."""
    with graphql_session(graphql) as connection:
        *results, last = ask_graphql(connection, query)
    assert [result["payload"]["data"] for result in results] == data
    assert last == {"id": "s", "type": "complete"}


def test_graphql_ends_an_invalid_operation_with_an_error(graphql: servers.Server) -> None:
    """graphql-ws answers an operation that its schema does not allow with one `error`, which is final."""
    with graphql_session(graphql) as connection:
        (error,) = ask_graphql(connection, "{nothing}")
    assert error["type"] == "error"


def test_graphql_stops_producing_for_a_cancelled_subscription(graphql: servers.Server) -> None:
    """The server counts an endless subscription as active until the client's `complete`; then it stops."""

    def fared() -> Any:
        results = ask_graphql(second, '{endless(tag: "smoke") {active completed produced}}')
        return results[0]["payload"]["data"]["endless"]

    with graphql_session(graphql) as first, graphql_session(graphql) as second:
        ask(first, id="e", type="subscribe", payload={"query": 'subscription{endless(tag: "smoke")}'})
        assert fared()["active"] == 1
        first.send(json.dumps({"id": "e", "type": "complete"}))
        deadline = time.monotonic() + SOON
        while fared()["active"] and time.monotonic() < deadline:
            time.sleep(5 * MS)
        at_the_end = fared()
        time.sleep(50 * MS)
        assert fared() == at_the_end
        assert (at_the_end["active"], at_the_end["completed"]) == (0, 1)


def close_code(connection: Any) -> int:
    """The code of the close frame that comes next, or after the messages before it."""
    while True:
        opcode, data = connection.recv_data()
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            return int.from_bytes(data[:2], "big")


INIT: dict[str, Any] = {"type": "connection_init"}
ENDLESS = {"id": "s", "type": "subscribe", "payload": {"query": 'subscription{endless(tag: "codes")}'}}


@pytest.mark.parametrize(
    ("code", "messages"),
    [
        (4400, ["nonsense"]),
        (4401, [ENDLESS]),
        (4403, [INIT | {"payload": {"forbidden": True}}]),
        (4408, []),
        (4409, [INIT, ENDLESS, ENDLESS]),
        (4429, [INIT, INIT]),
    ],
)
def test_graphql_closes_with_its_own_codes(graphql: servers.Server, code: int, messages: list[Any]) -> None:
    """graphql-ws closes with a code of its own when the client breaks its rules or stays silent for 2 s."""
    with opened(graphql.url, "graphql-transport-ws") as connection:
        for message in messages:
            connection.send(json.dumps(message))
            if message is INIT and ENDLESS in messages:
                connection.recv()
        assert close_code(connection) == code


def test_graphql_closes_without_its_subprotocol(graphql: servers.Server) -> None:
    """graphql-ws closes with 4406 when the client does not offer its subprotocol."""
    with opened(graphql.url) as connection:
        assert close_code(connection) == 4406


def test_graphql_says_goodbye(tmp_path: Path) -> None:
    """graphql-ws closes its connections with 1001 when it is told to end, and ends by itself."""
    with servers.graphql(tmp_path) as server:
        with graphql_session(server) as connection:
            server.process.terminate()
            assert close_code(connection) == 1001
        assert server.process.wait(SOON) == 0


def listening_addresses(port: int) -> set[str]:
    """The local addresses that listen on this TCP port, in hexadecimal (proc(5): /proc/net/tcp)."""
    rows = [row.split() for name in ("tcp", "tcp6") for row in Path("/proc/net", name).read_text().splitlines()[1:]]
    listening = [row[1].split(":") for row in rows if row[3] == "0A"]
    return {address for address, number in listening if int(number, 16) == port}


def living(group: int) -> list[str]:
    """The processes of this group that are no zombies (proc(5): /proc/pid/stat)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(its_group) == group and state != "Z":
            found.append(stat.parent.name)
    return found


@pytest.mark.parametrize("start", ALL, ids=lambda start: start.__name__)
def test_a_server_listens_on_the_loopback_and_ends_with_its_block(start: Start, tmp_path: Path) -> None:
    """A server listens on 127.0.0.1 alone, and its block ends every process of it and frees its port."""
    with start(tmp_path) as server:
        port = urlsplit(server.url).port
        assert port is not None
        assert listening_addresses(port) == {socket.inet_aton("127.0.0.1")[::-1].hex().upper()}
    assert server.process.returncode is not None
    assert listening_addresses(port) == set()
    deadline = time.monotonic() + SOON
    while living(server.process.pid) and time.monotonic() < deadline:
        time.sleep(5 * MS)
    assert living(server.process.pid) == []


def test_a_server_that_ends_at_once_is_reported_with_its_log(tmp_path: Path) -> None:
    """A server that ends before it answers raises ServerFailedError with what it wrote."""
    command = [sys.executable, "-c", "raise SystemExit('no more memory')"]
    with (
        pytest.raises(servers.ServerFailedError, match="ended with 1:\nno more memory"),
        servers.started(command, tmp_path / "log", lambda: None),
    ):
        pass


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not end by SIGTERM in time is killed."""
    monkeypatch.setattr(servers, "STOP", 50 * MS)
    log = tmp_path / "log"
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    with servers.started([sys.executable, "-c", code], log, lambda: log.read_text() or None) as (process, _):
        pass
    assert process.returncode == -9


def test_a_missing_program_names_the_installer() -> None:
    """A program that is not installed is reported with what installs it."""
    with pytest.raises(servers.ServerMissingError, match=r"\.ci/install-real"):
        servers.program("no-such-server")
