"""The demo checks what it shows."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from evtws import demo
from evtws.testing import ClientConnection, Reply, Server

from .timing import MS

Answer = Callable[[demo.Script, ClientConnection, dict[str, Any]], None]


def test_all_checks_hold(capsys: pytest.CaptureFixture[str]) -> None:
    """Against its own server every check holds, in 80 columns."""
    assert demo.run() == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("FAIL") or len(line) > 80]
    assert lines[-1] == f"{sum(line.startswith(' ok ') for line in lines)} checks held, 0 failed"


def test_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """It shows calls, the text of a timeout, a stream, events, pings, a loss, and a table of what was counted."""
    demo.run()
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "800 calls over one connection",
        "ReplyTimeout: no reply within 0.3 s, written 0.3 s ago (yes), connection OPEN",
        "1 2 3 4 5 6 7 8 9 10",
        "1000 events",
        " ms ",
        "ConnectionLost: ",
        "reconnects 1 ",
        "late 1 ",
    ):
        assert part in text


def _double_wrongly(script: demo.Script, client: ClientConnection, request: dict[str, Any]) -> None:
    client.send(json.dumps({"id": request["id"], "result": 1}))


def _answer_at_once(script: demo.Script, client: ClientConnection, request: dict[str, Any]) -> None:
    client.send(json.dumps({"id": request["id"], "result": "in time"}))


def _never_answer(script: demo.Script, client: ClientConnection, request: dict[str, Any]) -> None:
    pass


def _count_backwards(script: demo.Script, client: ClientConnection, request: dict[str, Any]) -> None:
    for number in range(10, 0, -1):
        client.send(json.dumps({"id": request["id"], "result": number, "last": number == 1}))


def _push_too_few(script: demo.Script, client: ClientConnection, request: dict[str, Any]) -> None:
    demo.Script.subscribe(script, client, {**request, "params": request["params"] - 1})


def _raise(script: demo.Script, client: ClientConnection, request: dict[str, Any]) -> None:
    raise OSError("the disk is full")


@pytest.mark.parametrize(
    ("method", "answer", "failed"),
    [
        ("double", _double_wrongly, ["each caller got its own reply", "the connection is back, and works"]),
        (
            "late",
            _answer_at_once,
            ["the request timed out", "its reply, 0.2 s late, answered nobody else and was counted"],
        ),
        ("late", _never_answer, ["its reply, 0.2 s late, answered nobody else and was counted"]),
        ("count", _count_backwards, ["all ten came, in order, and the stream ended with the last"]),
        ("subscribe", _push_too_few, ["every event came once, in order"]),
        (
            "job",
            _answer_at_once,
            ['"fail" ended at once', '"resend" was sent', '"keep" was sent', "the connection is back", "on_connected"],
        ),
        ("job", _never_answer, ["nothing was to be raised here: "]),
        ("count", _raise, ["nothing was to be raised here: ConnectionClosed", "the server met no fault"]),
    ],
)
def test_a_wrong_server_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
    answer: Answer,
    failed: list[str],
) -> None:
    """Where the server does otherwise, the check that this breaks fails, the demo goes on, and ends with 1."""
    monkeypatch.setattr(demo, "PATIENCE", 500 * MS)
    monkeypatch.setattr(demo, "CALLS", 3)
    script = type("Wrong", (demo.Script,), {method: answer})()
    assert demo.run(script) == 1
    text = capsys.readouterr().out
    claims = [" ".join(claim.split()) for claim in text.split("\nFAIL ")[1:]]
    assert all(any(claim.startswith(start) for claim in claims) for start in failed), claims
    assert "ok  close() returned" in text


def test_no_connection(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the connection cannot be opened, nothing is held to have worked."""
    monkeypatch.setattr(demo, "Server", partial(Server, on_handshake=lambda _: Reply(503)))
    assert demo.run() == 1
    text = capsys.readouterr().out
    assert "FAIL nothing was to be raised here: HandshakeError" in text
    assert "ok  each caller" not in text


def test_a_loss_that_reports_twice_is_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error that is told more often than it happened fails the check that counts them."""
    monkeypatch.setattr(demo.Heard, "on_disconnected", lambda heard, _, error: heard.errors.append(error))
    assert demo.run() == 1
    assert "FAIL on_connected was told twice, on_disconnected and on_error once" in capsys.readouterr().out
