"""What to dial: URLs, headers and subprotocols, checked before anything is sent."""

from __future__ import annotations

import pytest

from evtws.errors import InvalidURL
from evtws.target import URL, Request, Target, check_headers, check_subprotocols, parse_url


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("ws://a.example", URL("a.example", 80, "/", False, None)),
        ("WSS://A.Example/", URL("a.example", 443, "/", True, None)),
        ("ws://a:8080/x;y=1/z;w?q=%20&r=/?", URL("a", 8080, "/x;y=1/z;w?q=%20&r=/?", False, None)),
        ("ws://a:?q", URL("a", 80, "/?q", False, None)),
        ("ws://127.0.0.1:1/", URL("127.0.0.1", 1, "/", False, None)),
        ("wss://[0:0::1]:65535/", URL("::1", 65535, "/", True, None)),
        ("ws://[fe80::1%eth0]/", URL("fe80::1%eth0", 80, "/", False, None)),
        ("ws://bücher.example/é", URL("xn--bcher-kva.example", 80, "/%C3%A9", False, None)),
        ("ws://user:p%40ss@a/", URL("a", 80, "/", False, "Basic dXNlcjpwQHNz")),
        ("ws://user@a/", URL("a", 80, "/", False, "Basic dXNlcjo=")),
    ],
)
def test_a_url(url: str, parts: URL) -> None:
    """A URL is parsed into what the request needs, its user and password into an Authorization header."""
    assert parse_url(url) == parts


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://a/?secret", "begin with ws: or wss:"),
        ("a/?secret", "begin with ws: or wss:"),
        ("", "begin with ws: or wss:"),
        ("ws:///?secret", "host is empty"),
        ("ws:a/?secret", "host is empty"),
        ("ws://a..b/?secret", "host is malformed"),
        ("ws://a%20b/?secret", "host is empty or malformed"),
        ("ws://[::g]/?secret", "malformed"),
        ("ws://[::1/?secret", "malformed"),
        (f"ws://{'a' * 64}.example/?secret", "malformed"),
        ("ws://a:0/?secret", "port is 0"),
        ("ws://a:65536/?secret", "malformed"),
        ("ws://a:x/?secret", "malformed"),
        ("ws://a/?secret#x", "fragment"),
        ("ws://a/?secret#", "fragment"),
        ("ws://a/ ?secret", "space or a control character"),
        (" ws://a/?secret", "space or a control character"),
        ("ws://a/?secret\r\nX: y", "space or a control character"),
        ("ws://a/?secret\x7f", "space or a control character"),
    ],
)
def test_an_invalid_url(url: str, why: str) -> None:
    """What is wrong with a URL is an InvalidURL that says what, without quoting the URL."""
    with pytest.raises(InvalidURL, match=why) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "authority", "http"),
    [
        ("ws://a/x?y", "a", "http://a/x?y"),
        ("wss://a:443", "a", "https://a/"),
        ("wss://a:80", "a:80", "https://a:80/"),
        ("ws://[::1]/", "[::1]", "http://[::1]/"),
        ("ws://[fe80::1%eth0]:8/", "[fe80::1]:8", "http://[fe80::1]:8/"),
    ],
)
def test_authority(url: str, authority: str, http: str) -> None:
    """The Host header leaves out the scheme's own port, and an IPv6 zone."""
    assert parse_url(url).authority == authority
    assert parse_url(url).http == http


def test_headers_are_pairs() -> None:
    """Headers are a mapping or pairs, which may repeat a name."""
    assert check_headers({"A": "1", "B": "é \t"}) == [("A", "1"), ("B", "é \t")]
    assert check_headers([("A", "1"), ("A", "2")]) == [("A", "1"), ("A", "2")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Token", "secret\r\nX: y"),
        ("X-Token", "secret\n"),
        ("X-Token", "secret\0"),
        ("X-Token", "secret\x01"),
        ("X-Token", "secret\x7f"),
        ("X-Token", "secret\u0100"),
        ("X Token", "secret"),
        ("X-Token:", "secret"),
        ("X-Tokén", "secret"),
        ("", "secret"),
        ("Sec-WebSocket-Key", "secret"),
        ("sec-websocket-protocol", "secret"),
        ("UPGRADE", "secret"),
        ("Connection", "secret"),
        ("Content-Length", "secret"),
        ("Transfer-Encoding", "secret"),
    ],
)
def test_a_header_that_may_not_be_sent(name: str, value: str) -> None:
    """A header that would break the request or the handshake is a ValueError that names it, not its value."""
    with pytest.raises(ValueError, match="header") as caught:
        check_headers({name: value})
    assert name in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("subprotocols", ["chat", ["a", "a"], ["a b"], [""], ["a,b"]])
def test_subprotocols_that_may_not_be_offered(subprotocols: list[str]) -> None:
    """Subprotocols are a sequence of different tokens."""
    with pytest.raises(ValueError, match="subprotocol"):
        check_subprotocols(subprotocols)


def test_a_request() -> None:
    """The request line and the headers beside the upgrade's own, in Latin-1, in the order given."""
    request = Request(parse_url("ws://u:p@a:8/x?y"), [("B", "é"), ("A", "1")], ("s", "t"))
    assert request.first_line() == b"GET /x?y HTTP/1.1\r\n"
    assert request.lines([]) == (
        b"Host: a:8\r\nAuthorization: Basic dTpw\r\nSec-WebSocket-Protocol: s, t\r\nB: \xe9\r\nA: 1\r\n"
    )


def test_a_request_of_the_users_own() -> None:
    """The user's Host and Authorization replace the usual ones; all cookies go into one header."""
    given = [("host", "b"), ("AUTHORIZATION", "x"), ("Cookie", "m=1"), ("cookie", "n=2")]
    lines = Request(parse_url("ws://u:p@a/"), given, ()).lines(["o=3"])
    assert lines == b"host: b\r\nAUTHORIZATION: x\r\nCookie: m=1; n=2; o=3\r\n"


def test_secrets_are_not_shown() -> None:
    """The repr of a Target shows neither URL nor headers nor proxy."""
    target = Target("ws://a/?secret", headers={"A": "secret"}, proxy="http://u:secret@b")
    assert "secret" not in repr(target)
