"""The specification of evtws/options.py."""

import math
from typing import Any

import pytest

from evtws.connection import Connection
from evtws.correlation import in_order, keyed
from evtws.message import Message
from evtws.options import NAMES, Options, as_bytes
from evtws.reconnect import ReconnectPolicy
from evtws.testing import Server

from .timing import SOON

TIMEOUTS = ("connect_timeout", "request_timeout", "write_timeout", "close_timeout", "late_after")
FUNCTIONS = (
    "msg_prep",
    "split",
    "prepare",
    "on_message",
    "on_connected",
    "on_disconnected",
    "on_error",
    "compose_ping_message",
    "is_pong",
)


def test_defaults() -> None:
    """Without a word the options are the documented ones."""
    options = Options()
    times = {name: getattr(options, name) for name in (*TIMEOUTS, "ping_interval")}
    assert times == {
        "connect_timeout": 10,
        "request_timeout": 30,
        "write_timeout": 10,
        "close_timeout": 5,
        "late_after": 5,
        "ping_interval": 20,
    }
    assert (options.max_size, options.write_buffer, options.callback_queue) == (16 << 20, 1 << 20, 10_000)
    assert (options.reconnect, options.in_flight, options.outbox, options.proxy) == (False, "fail", 0, True)
    assert (options.max_pending, options.unreceived_ping_threshold, options.redirects) == (None, 2, 0)
    options.check_together()


@pytest.mark.parametrize("name", TIMEOUTS)
@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan, "5"])
def test_timeouts_are_checked(name: str, seconds: Any) -> None:
    """A timeout below 0, or one that is no number, is a ValueError that names the option."""
    with pytest.raises(ValueError, match=f"^{name} must be"):
        Options(**{name: seconds})


@pytest.mark.parametrize("name", TIMEOUTS)
@pytest.mark.parametrize("seconds", [None, 0, 0.5, 1e9])
def test_timeouts_may_be_none(name: str, seconds: float | None) -> None:
    """A timeout is a number of at least 0, or None for no limit."""
    options: dict[str, Any] = {name: seconds}
    assert getattr(Options(**options), name) == seconds


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_checked(name: str) -> None:
    """What is no function is a TypeError that names the option; None is none."""
    with pytest.raises(TypeError, match=f"^{name} is a function or None, not int"):
        Options(**{name: 1})  # type: ignore[arg-type]
    options: dict[str, Any] = {name: None}
    assert getattr(Options(**options), name) is None


@pytest.mark.parametrize("name", ["in_flight", "duplicate_keys", "overflow", "ping_as"])
@pytest.mark.parametrize("value", ["", "Fail", None, 1])
def test_choices_are_checked(name: str, value: Any) -> None:
    """A word that is none of an option's is a ValueError that names the option and its words."""
    with pytest.raises(ValueError, match=f"^{name} is one of '"):
        Options(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("in_flight", "resend"),
        ("in_flight", "keep"),
        ("duplicate_keys", "refuse"),
        ("overflow", "block"),
        ("ping_as", "message"),
    ],
)
def test_choices(name: str, value: str) -> None:
    """Each word that the documentation names is taken."""
    options: dict[str, Any] = {name: value}
    assert getattr(Options(**options), name) == value


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("max_pending", 1),
        ("max_size", 0),
        ("write_buffer", 0),
        ("callback_queue", 1),
        ("redirects", 0),
        ("outbox", 0),
    ],
)
def test_counts_are_checked(name: str, least: int) -> None:
    """A count that is too small, or no whole number, is a ValueError that names the option."""
    for value in (least - 1, 1.5, "1", True):
        options: dict[str, Any] = {name: value}
        with pytest.raises(ValueError, match=f"^{name} is a whole number of at least {least}"):
            Options(**options)
    accepted: dict[str, Any] = {name: least}
    assert getattr(Options(**accepted), name) == least


def test_some_counts_may_be_none() -> None:
    """max_pending and max_size may be None for no limit, the other counts may not."""
    assert Options(max_pending=None, max_size=None).max_size is None
    for name in ("write_buffer", "callback_queue", "redirects", "outbox"):
        options: dict[str, Any] = {name: None}
        with pytest.raises(ValueError, match=f"^{name} is a whole number"):
            Options(**options)


def test_outbox_of_messages_and_bytes() -> None:
    """An outbox is a number of messages, or (messages, bytes); both are checked."""
    assert Options(outbox=(10, 1000)).outbox == (10, 1000)
    for value in ((-1, 5), (5, -1), (5, None), (1.5, 5)):
        with pytest.raises(ValueError, match=r"^outbox is a whole number"):
            Options(outbox=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [(), (1,), (1, 2, 3)])
def test_outbox_of_another_length(value: Any) -> None:
    """A tuple that is not (messages, bytes) is a ValueError."""
    with pytest.raises(ValueError, match=r"^outbox is"):
        Options(outbox=value)


def test_unknown_option() -> None:
    """An option that does not exist is a TypeError that names it."""
    with pytest.raises(TypeError, match="ping_intervall"):
        Options(ping_intervall=5)  # type: ignore[call-arg]


def test_options_are_attributes() -> None:
    """An option can be set as an attribute too, and is checked then; a wrong value leaves the old one."""
    options = Options()
    options.request_timeout = 7
    with pytest.raises(ValueError, match="request_timeout"):
        options.request_timeout = -1
    assert options.request_timeout == 7


def test_other_attributes_are_not_checked() -> None:
    """A subclass may have attributes of its own."""

    class Mine(Options):
        extra: object = None

    mine = Mine()
    mine.extra = -1
    assert mine.extra == -1


# -- together


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"match_msg": 1}, TypeError, "match_msg"),
        ({"match_key": 1}, TypeError, "match_key"),
        ({"match_key": (len,)}, TypeError, "match_key"),
        ({"match_msg": in_order, "match_key": keyed("id")}, ValueError, "match_key"),
        ({"ping_interval": 0}, ValueError, "ping_interval"),
        ({"ping_interval": -1}, ValueError, "ping_interval"),
        ({"unreceived_ping_threshold": 0}, ValueError, "unreceived_ping_threshold"),
        ({"reconnect": 5}, TypeError, "reconnect"),
        ({"ping_as": "message"}, ValueError, "ping_as"),
        ({"ping_msg": "x" * 126}, ValueError, "ping_msg"),
        ({"ping_msg": "é" * 63}, ValueError, "ping_msg"),
        ({"ping_msg": b"x" * 126}, ValueError, "ping_msg"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], error: type[Exception], named: str) -> None:
    """What no single option can show is told before the dial, and names the option."""
    with pytest.raises(error, match=named):
        Options(**options).check_together()
    with pytest.raises(error, match=named):
        Connection(**options).dial("ws://127.0.0.1:1/")


@pytest.mark.parametrize(
    "options",
    [
        {"match_msg": in_order},
        {"match_msg": lambda request, response: True, "match_key": keyed("id")},
        {"ping_interval": None},
        {"ping_msg": "x" * 125},
        {"ping_as": "message", "ping_msg": "x" * 126},
        {"ping_as": "message", "compose_ping_message": lambda: "ping"},
        {"reconnect": True},
        {"reconnect": ReconnectPolicy()},
    ],
)
def test_options_that_agree(options: dict[str, Any]) -> None:
    """What goes together is accepted."""
    Options(**options).check_together()


def test_retry_needs_reconnect() -> None:
    """dial(retry=True) without reconnect= is a ValueError."""
    with pytest.raises(ValueError, match="reconnect="):
        Connection().dial("ws://127.0.0.1:1/", retry=True)


def test_as_bytes() -> None:
    """A ping's text is its UTF-8, its bytes are themselves."""
    assert as_bytes("é") == b"\xc3\xa9"
    assert as_bytes(b"\xff") == b"\xff"


# -- copies


def test_copy_has_every_option() -> None:
    """A copy has every option as it is now, and does not follow the original."""

    def on_message(message: Message, connection: Connection) -> None: ...

    connection = Connection(on_message=on_message, request_timeout=7, outbox=(3, 4), headers=[("a", "b")])
    copy = connection.copy()
    assert type(copy) is Options
    assert {name: getattr(copy, name) for name in NAMES} == {name: getattr(connection, name) for name in NAMES}
    connection.request_timeout = 8
    assert copy.request_timeout == 7


# -- on a Connection


def test_options_are_settable_before_dial_and_after_close() -> None:
    """A Connection's options can be set while it is CLOSED, and are refused from dial() until it is CLOSED again."""
    with Server() as server:
        connection = Connection(request_timeout=SOON)
        connection.ping_interval = None
        connection.dial(server.url)
        for name in NAMES:
            with pytest.raises(ValueError, match=f"^{name} cannot be set while the connection is OPEN"):
                setattr(connection, name, getattr(connection, name))
        connection.close()
        connection.request_timeout = 7
        connection.dial(server.url)
        assert connection.request_timeout == 7
        connection.close()


def test_nothing_shows_secrets() -> None:
    """Neither the repr nor the str of Options or a Connection shows a header, a URL, or a token."""
    secret = "s3cr3t"
    options: dict[str, Any] = {
        "headers": {"Authorization": secret},
        "subprotocols": [secret],
        "proxy": f"http://user:{secret}@localhost:1",
        "ping_msg": secret,
    }
    with Server() as server:
        connection = Connection(headers={"Authorization": secret})
        with connection:
            connection.dial(f"{server.url}?token={secret}")
            shown = [repr(connection), str(connection)]
    for thing in (Options(**options), Connection(**options)):
        shown += [repr(thing), str(thing)]
    assert not [text for text in shown if secret in text]


def test_repr_shows_the_state() -> None:
    """A Connection's repr shows its state and how many requests are pending."""
    assert repr(Connection()) == "<Connection CLOSED, 0 pending>"
