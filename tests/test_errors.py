"""The specification of evtws/errors.py."""

import copy
import inspect
import pickle
import re

import pytest

from evtws import errors
from evtws.errors import (
    ConnectionClosed,
    ConnectionLost,
    EvtwsError,
    HandshakeError,
    MessageTooBig,
    NotConnected,
    ProtocolError,
    ProxyError,
    ReplyTimeout,
    SlowConsumer,
    SlowUserCode,
    StaleConnection,
    UserCodeError,
    Written,
)
from evtws.message import Message

#: One of each error, made as the code makes it.
SPECIAL: list[EvtwsError] = [
    ConnectionClosed(4000, "bye", by_peer=True),
    StaleConnection(2),
    ProtocolError("a reserved bit is set"),
    MessageTooBig(6, 5),
    ProxyError("refused", 407),
    HandshakeError("refused", 401, {"retry-after": "5"}, b"no"),
    ReplyTimeout("no reply in 5 s", waited=5.0, written="yes"),
    SlowConsumer("10 messages dropped", 10),
    SlowUserCode("msg_prep", 0.06),
    UserCodeError("msg_prep", ValueError("no JSON")),
]
PLAIN = [
    kind("text")
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, EvtwsError) and kind not in [type(error) for error in SPECIAL]
]
ALL = SPECIAL + PLAIN


def drawn() -> list[tuple[str, str, list[str]]]:
    """The tree of the module's docstring: (name, its parent, its builtin bases) of each error."""
    found: list[tuple[str, str, list[str]]] = []
    path: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"([ │├└─]*)([A-Z]\w+)(?: +\((\w+)\))?(?:  |$)", line)
        if match is None:
            continue
        depth, name, builtin = len(match[1]), match[2], match[3]
        path = [entry for entry in path if entry[0] < depth]
        found.append((name, path[-1][1] if path else "Exception", [builtin] if builtin else []))
        path.append((depth, name))
    return found


def test_tree_is_as_drawn() -> None:
    """The tree drawn on top of the file is the tree of the classes, builtin bases included."""
    real = {
        kind.__name__: [base.__name__ for base in kind.__bases__]
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, EvtwsError)
    }
    assert {name: [parent, *builtin] for name, parent, builtin in drawn()} == real


def test_every_error_has_a_docstring() -> None:
    """Each error says in a docstring of its own what it is."""
    assert [type(error).__name__ for error in ALL if not type(error).__dict__.get("__doc__")] == []


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_copy_and_pickle(error: EvtwsError) -> None:
    """A copied or pickled error has the same type, text, args and attributes."""
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert str(twin) == str(error) != ""
        assert twin.args == error.args
        assert vars(twin) == vars(error)


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_about(error: EvtwsError) -> None:
    """about() is a copy that concerns the message; the error itself stays as it is."""
    message, before = Message("b"), error.message
    about = error.about(message)
    assert about is not error
    assert type(about) is type(error)
    assert about.message is message
    assert error.message is before
    assert about.args == error.args
    assert vars(about) == {**vars(error), "message": message}


def test_about_keeps_the_cause() -> None:
    """about() keeps the cause."""
    error = NotConnected("not now")
    error.__cause__ = OSError("down")
    assert error.about(Message("a")).__cause__ is error.__cause__


@pytest.mark.parametrize("written", ["no", "maybe", "yes"])
def test_about_request(written: Written) -> None:
    """about_request() tells, as an attribute and in the text, how much of the request was written."""
    message = Message("a")
    error = ConnectionClosed(1001, "restart", by_peer=True)
    about = error.about_request(message, written)
    assert (about.message, about.written, about.code) == (message, written, 1001)
    assert str(about) == f"the peer closed the connection: 1001 restart (written: {written})"
    assert str(error) == "the peer closed the connection: 1001 restart"


def test_loss_says_that_nothing_was_written() -> None:
    """A loss that concerns no request has nothing written."""
    assert ConnectionLost("lost").written == "no"


def test_who_closed() -> None:
    """The text of ConnectionClosed says who closed, the code, and the reason where there is one."""
    assert str(ConnectionClosed(1000, by_peer=False)) == "the connection was closed by close(): 1000"
    assert str(ConnectionClosed(1011, "oops", by_peer=True)) == "the peer closed the connection: 1011 oops"


def test_facts_are_attributes() -> None:
    """What an error knows is in its attributes."""
    closed = ConnectionClosed(1001, "restart", by_peer=True)
    assert (closed.code, closed.reason, closed.by_peer) == (1001, "restart", True)
    assert StaleConnection(3).unanswered == 3
    assert (ProtocolError("bad").code, ProtocolError("bad", 1007).code) == (1002, 1007)
    too_big = MessageTooBig(6, 5)
    assert (too_big.code, too_big.size, too_big.limit) == (1009, 6, 5)
    assert (ProxyError("no").status, ProxyError("no", 407).status) == (None, 407)
    refused = HandshakeError("no", 503, {"retry-after": "5"}, b"busy")
    assert (refused.status, refused.headers, refused.body) == (503, {"retry-after": "5"}, b"busy")
    assert HandshakeError("no HTTP").status is None
    assert HandshakeError("no HTTP").headers == {}
    late = ReplyTimeout("late", waited=5.0, written="maybe")
    assert (late.waited, late.written) == (5.0, "maybe")
    assert SlowConsumer("slow", 7).dropped == 7
    assert SlowUserCode("f", 0.25).seconds == 0.25
    assert "f took 250 ms" in str(SlowUserCode("f", 0.25))


def test_user_code_error() -> None:
    """UserCodeError names the function, what it raised and the message that it was given."""
    message, cause = Message("a"), ValueError("no JSON")
    error = UserCodeError("msg_prep", cause, message)
    assert str(error) == "msg_prep raised ValueError: no JSON"
    assert error.message is message
    assert error.__cause__ is cause


def test_handshake_errors_share_no_headers() -> None:
    """Two errors without headers do not have the same dict."""
    assert HandshakeError("a").headers is not HandshakeError("b").headers
