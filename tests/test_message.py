"""The specification of evtws/message.py."""

import gc
import json
import math
import threading
import weakref
from typing import Any

import pytest

from evtws.message import DEFAULT, Message, check_timeout, received

ATTRIBUTES = ("body", "params", "callback", "on_failure", "timeout", "in_flight")


@pytest.mark.parametrize("body", ["text", "", b"binary", b""])
def test_body(body: str | bytes) -> None:
    """A body is a str for a text message and bytes for a binary one."""
    assert Message(body).body is body


@pytest.mark.parametrize("body", [None, 5, bytearray(b"x"), memoryview(b"x"), {"a": 1}])
def test_body_of_another_type(body: Any) -> None:
    """Any other body is a TypeError that names its type and does not show it."""
    with pytest.raises(TypeError, match=type(body).__name__):
        Message(body)


def test_defaults() -> None:
    """Left out, there are no params and nobody to call, and the connection decides on the rest."""
    message = Message("a")
    assert (message.params, message.callback, message.on_failure, message.in_flight) == (None,) * 4
    assert message.timeout is DEFAULT
    assert repr(message.timeout) == "DEFAULT"


def test_options_are_attributes() -> None:
    """What was given can be read again."""

    def callback(reply: Message, connection: object) -> None: ...

    def on_failure(error: Exception, connection: object) -> None: ...

    message = Message("a", 5, callback, on_failure=on_failure, timeout=None, in_flight="keep")
    assert [getattr(message, name) for name in ATTRIBUTES] == ["a", 5, callback, on_failure, None, "keep"]


def test_unknown_attribute() -> None:
    """A misspelt attribute is an AttributeError."""
    message: Any = Message("a")
    with pytest.raises(AttributeError):
        message.calback = print


@pytest.mark.parametrize("in_flight", ["fail", "resend", "keep", None])
def test_in_flight(in_flight: Any) -> None:
    """in_flight is "fail", "resend", "keep" or None."""
    assert Message("a", in_flight=in_flight).in_flight == in_flight


@pytest.mark.parametrize("in_flight", ["lost", "", 5, True])
def test_in_flight_nonsense(in_flight: Any) -> None:
    """Any other in_flight is a ValueError that shows it."""
    with pytest.raises(ValueError, match="in_flight.*" + repr(in_flight)):
        Message("a", in_flight=in_flight)


@pytest.mark.parametrize("seconds", [None, DEFAULT, 0, 0.0, 1, 0.5, threading.TIMEOUT_MAX])
def test_timeout(seconds: Any) -> None:
    """A timeout is a number of seconds from 0 to what can be waited, None for no limit, or left to the connection."""
    check_timeout(seconds)
    assert Message("a", timeout=seconds).timeout is seconds


@pytest.mark.parametrize("seconds", [-1, -0.001, math.nan, math.inf, "5", b"", []])
def test_timeout_nonsense(seconds: Any) -> None:
    """Any other timeout is a ValueError that names the option."""
    with pytest.raises(ValueError, match="request_timeout"):
        check_timeout(seconds, "request_timeout")
    with pytest.raises(ValueError, match="timeout must be"):
        Message("a", timeout=seconds)


def test_json() -> None:
    """Message.json() has compact JSON as its text body and the object itself as its params."""
    request = {"id": 1, "params": ["ü", None]}
    message = Message.json(request)
    assert message.params is request
    assert isinstance(message.body, str)
    assert json.loads(message.body) == request
    assert " " not in message.body


def test_json_options() -> None:
    """Message.json() takes the options of a message."""

    def hear(*args: object) -> None: ...

    message = Message.json([], hear, on_failure=hear, timeout=3, in_flight="resend")
    assert [getattr(message, name) for name in ATTRIBUTES] == ["[]", [], hear, hear, 3, "resend"]


def test_json_of_what_is_none() -> None:
    """Message.json() of something that JSON does not have is a TypeError."""
    with pytest.raises(TypeError):
        Message.json(object())


def test_repr_hides_the_body() -> None:
    """The repr shows kind and size, and nothing of the body or the params."""
    assert repr(Message("secret", {"token": "secret"})) == "<Message text, 6 long>"
    assert repr(Message(b"secret")) == "<Message binary, 6 long>"


def test_identity() -> None:
    """Messages are equal by identity only, so that each is an entry of its own in a queue."""
    assert Message("a") != Message("a")
    assert len({Message("a"), Message("a")}) == 2


def test_received() -> None:
    """A message from the wire has its body and nothing else, on every attribute."""
    message = received(b"x")
    assert type(message) is Message
    assert [getattr(message, name) for name in ATTRIBUTES] == [b"x", None, None, None, None, None]
    assert repr(message) == "<Message binary, 1 long>"


def test_weak_references() -> None:
    """A message can be referred to weakly, and goes when nobody needs it."""
    message = Message("a")
    watch = weakref.ref(message)
    assert watch() is message
    del message
    gc.collect()
    assert watch() is None
