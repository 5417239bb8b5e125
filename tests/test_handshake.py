"""The HTTP upgrade, both roles, without a network."""

import base64
import hashlib
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evtws.errors import HandshakeError
from evtws.handshake import (
    BODY_LIMIT,
    ClientHandshake,
    ServerHandshake,
    UpgradeRequest,
    UpgradeResponse,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the example of RFC 6455 section 1.3, and its answer
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def request_bytes(*lines: str, first: str = "GET /chat?token=7 HTTP/1.1", without: str = "\0") -> bytes:
    """A client's request: the usual headers but for those that start with `without`, and `lines`."""
    usual = [
        "Host: example.org:8080",
        "Connection: keep-alive, Upgrade",
        "Upgrade: WebSocket",
        f"Sec-WebSocket-Key: {KEY}",
        "Sec-WebSocket-Version: 13",
    ]
    kept = [line for line in usual if not line.startswith(without)]
    return "\r\n".join([first, *kept, *lines, "", ""]).encode("latin-1")


def client(**options: object) -> ClientHandshake:
    """A client's handshake for ws://example.org/."""
    return ClientHandshake(**{"host": "example.org", "target": "/", **options})  # type: ignore[arg-type]


def accept_token(request: bytes) -> str:
    """The answer to a request's key, worked out apart from the code under test."""
    key = dict(line.split(": ", 1) for line in request.decode("latin-1").split("\r\n")[1:-2])["Sec-WebSocket-Key"]
    return base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()


def response_bytes(
    handshake: ClientHandshake,
    *lines: str,
    first: str = "HTTP/1.1 101 Switching Protocols",
    without: str = "\0",
) -> bytes:
    """The server's answer to this handshake's request, changed as `request_bytes` is."""
    usual = [
        "Connection: Upgrade",
        "Upgrade: websocket",
        f"Sec-WebSocket-Accept: {accept_token(handshake.request())}",
    ]
    kept = [line for line in usual if not line.startswith(without)]
    return "\r\n".join([first, *kept, *lines, "", ""]).encode("latin-1")


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """`data` cut at these places."""
    places = sorted({cut % len(data) for cut in cuts} - {0})
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        yield data[start:end]


# The server's side


def test_server_reads_a_request() -> None:
    """A request gives its target, host, headers with lower-case names and the subprotocols that it offers."""
    handshake = ServerHandshake()
    request = handshake.feed(request_bytes("Sec-WebSocket-Protocol: chat, Chat", "X-Token:  a b "))
    assert request is not None
    assert (request.target, request.host) == ("/chat?token=7", "example.org:8080")
    assert request.subprotocols == ("chat", "Chat")
    assert ("x-token", "a b") in request.headers
    assert ("host", "example.org:8080") in request.headers
    assert ("sec-websocket-protocol", "chat, Chat") in request.headers
    assert "sec-websocket-extensions" not in dict(request.headers)


def test_server_shows_the_extensions_that_were_offered() -> None:
    """Offered extensions are among the request's headers, and are not accepted."""
    handshake = ServerHandshake()
    request = handshake.feed(request_bytes("Sec-WebSocket-Extensions: permessage-deflate; a=1"))
    assert request is not None
    assert dict(request.headers)["sec-websocket-extensions"] == "permessage-deflate; a=1"
    assert b"Extensions" not in handshake.accept()


def test_server_answers_with_the_token_of_the_key() -> None:
    """The acceptance is a 101 with the Sec-WebSocket-Accept of RFC 6455's example, and what was added."""
    handshake = ServerHandshake()
    handshake.feed(request_bytes())
    lines = handshake.accept(headers=[("X-Served-By", "a\tb")]).split(b"\r\n")
    assert lines[0].startswith(b"HTTP/1.1 101 ")
    assert f"Sec-WebSocket-Accept: {ACCEPT}".encode() in lines
    assert b"X-Served-By: a\tb" in lines
    assert lines[-2:] == [b"", b""]


@pytest.mark.parametrize(
    ("supported", "chosen", "expected"),
    [
        (["b", "a"], None, "b"),
        (["z"], None, None),
        ([], None, None),
        (["b"], "a", "a"),
    ],
)
def test_server_chooses_the_subprotocol(supported: list[str], chosen: str | None, expected: str | None) -> None:
    """The server takes the first supported subprotocol that was offered, unless it is told which."""
    peer = client(subprotocols=["a", "b"])
    handshake = ServerHandshake(supported_subprotocols=supported)
    handshake.feed(peer.request())
    response = peer.feed(handshake.accept(subprotocol=chosen))
    assert response is not None
    assert response.subprotocol == expected


def test_server_accepts_no_subprotocol_that_was_not_offered() -> None:
    """Choosing a subprotocol that differs from the offered one by its case is a ValueError."""
    handshake = ServerHandshake()
    handshake.feed(request_bytes("Sec-WebSocket-Protocol: chat"))
    with pytest.raises(ValueError, match="did not offer"):
        handshake.accept(subprotocol="Chat")


def test_server_refuses() -> None:
    """A refusal is a whole response with its length and `Connection: close`."""
    handshake = ServerHandshake()
    handshake.feed(request_bytes())
    head, body = handshake.reject(401, [("WWW-Authenticate", "Basic")], b"who?").split(b"\r\n\r\n")
    lines = [line.lower() for line in head.split(b"\r\n")]
    assert lines[0].startswith(b"http/1.1 401 ")
    assert {b"www-authenticate: basic", b"content-length: 4", b"connection: close"} <= set(lines)
    assert body == b"who?"


@pytest.mark.parametrize("status", [101, 199, 600, 304])
def test_server_refuses_with_a_status_that_can_be(status: int) -> None:
    """A status that cannot end a refused upgrade with a body is a ValueError."""
    handshake = ServerHandshake()
    handshake.feed(request_bytes())
    with pytest.raises(ValueError, match=str(status)):
        handshake.reject(status, body=b"x")


def test_server_answers_once() -> None:
    """Accepting without a request, and answering twice, are RuntimeErrors."""
    handshake = ServerHandshake()
    with pytest.raises(RuntimeError):
        handshake.accept()
    handshake.feed(request_bytes())
    handshake.accept()
    with pytest.raises(RuntimeError):
        handshake.accept()
    with pytest.raises(RuntimeError):
        handshake.reject(400)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(request_bytes(first="POST / HTTP/1.1"), 400, id="method"),
        pytest.param(request_bytes(first="GET / HTTP/1.0"), 400, id="http/1.0"),
        pytest.param(request_bytes(first="GET /"), 400, id="http/0.9"),
        pytest.param(request_bytes(first="GET /a b HTTP/1.1"), 400, id="space in the target"),
        pytest.param(request_bytes(without="Host"), 400, id="no host"),
        pytest.param(request_bytes("Host: other"), 400, id="two hosts"),
        pytest.param(request_bytes("Host: \xff\xfe", without="Host"), 400, id="host of bytes"),
        pytest.param(request_bytes(without="Connection"), 400, id="no connection"),
        pytest.param(request_bytes("Connection: close", without="Connection"), 400, id="connection"),
        pytest.param(request_bytes(without="Upgrade"), 400, id="no upgrade"),
        pytest.param(request_bytes("Upgrade: h2c", without="Upgrade"), 400, id="upgrade"),
        pytest.param(request_bytes(without="Sec-WebSocket-Key"), 400, id="no key"),
        pytest.param(request_bytes(f"Sec-WebSocket-Key: {KEY}"), 400, id="two keys"),
        pytest.param(request_bytes("Sec-WebSocket-Key: c2hvcnQ=", without="Sec-WebSocket-Key"), 400, id="short"),
        pytest.param(request_bytes("Sec-WebSocket-Key: *", without="Sec-WebSocket-Key"), 400, id="no base64"),
        pytest.param(request_bytes("Sec-WebSocket-Key: \xff", without="Sec-WebSocket-Key"), 400, id="no ascii"),
        pytest.param(request_bytes("Sec-WebSocket-Version: 8", without="Sec-WebSocket-Version"), 426, id="version"),
        pytest.param(request_bytes("Sec-WebSocket-Protocol: \xe9"), 400, id="subprotocol of bytes"),
        pytest.param(request_bytes("Content-Length: 3"), 400, id="body"),
        pytest.param(request_bytes("Transfer-Encoding: chunked"), 400, id="chunked body"),
        pytest.param(request_bytes("no colon"), 400, id="header without a colon"),
        pytest.param(request_bytes(" folded: x", "bad name: x"), 400, id="header name"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", 400, id="tls"),
        pytest.param(b"\r\n\r\n", 400, id="blank"),
    ],
)
def test_server_hears_a_malformed_request(data: bytes, status: int) -> None:
    """What is no upgrade request is a HandshakeError with the status to answer, and can be answered."""
    handshake = ServerHandshake()
    with pytest.raises(HandshakeError) as caught:
        handshake.feed(data)
    assert caught.value.status == status
    answer = handshake.reject(status, caught.value.headers.items())
    assert answer.startswith(b"HTTP/1.1 %d " % status)


def test_server_tells_its_version() -> None:
    """A request of another websocket version is answered with the version that is spoken."""
    handshake = ServerHandshake()
    with pytest.raises(HandshakeError) as caught:
        handshake.feed(request_bytes("Sec-WebSocket-Version: 7", without="Sec-WebSocket-Version"))
    assert caught.value.headers == {"sec-websocket-version": "13"}
    assert caught.value.__cause__ is not None


def test_server_hears_the_end_of_the_connection() -> None:
    """The end of the connection within the request is a HandshakeError that nobody can be answered."""
    handshake = ServerHandshake()
    assert handshake.feed(request_bytes()[:-1]) is None
    with pytest.raises(HandshakeError) as caught:
        handshake.feed(b"")
    assert caught.value.status is None


@pytest.mark.parametrize("more", [0, 1])
def test_server_bounds_the_header(more: int) -> None:
    """A header of `header_limit` bytes is taken; one byte more is refused with 431, complete or not."""
    data = request_bytes()
    handshake = ServerHandshake(header_limit=len(data) - more)
    if not more:
        assert handshake.feed(data) is not None
        return
    with pytest.raises(HandshakeError) as caught:
        handshake.feed(data[:-1] + b"x")
    assert caught.value.status == 431


def test_server_takes_a_header_of_many_lines() -> None:
    """A header of 60 kB in 3,000 lines, fed byte by byte at its end, is taken."""
    data = request_bytes(*(f"X-{n}: {'v' * 10}" for n in range(3000)))
    handshake = ServerHandshake()
    assert handshake.feed(data[:-100]) is None
    requests = [handshake.feed(data[at : at + 1]) for at in range(len(data) - 100, len(data))]
    assert requests[:-1] == [None] * 99
    assert requests[-1] is not None
    assert len(requests[-1].headers) > 3000


def test_server_keeps_nothing_of_a_header_without_end() -> None:
    """An endless header ends at the limit, with the memory of the limit."""
    handshake = ServerHandshake(header_limit=100_000)
    tracemalloc.start()
    handshake.feed(b"GET / HTTP/1.1\r\nX: ")
    for _ in range(9):
        assert handshake.feed(b"x" * 10_000) is None
    with pytest.raises(HandshakeError):
        handshake.feed(b"x" * 10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


# The client's side


def test_client_asks() -> None:
    """A request has its target, host, headers and subprotocols, and another key each time."""
    first, second = (
        client(
            host="example.org:8080",
            target="/chat?x=%20",
            headers=[("X-A", "b"), ("X-A", "\xe9")],
            subprotocols=["a", "b"],
        )
        for _ in range(2)
    )
    lines = first.request().split(b"\r\n")
    assert lines[0] == b"GET /chat?x=%20 HTTP/1.1"
    assert {b"Host: example.org:8080", b"X-A: b", b"X-A: \xe9", b"Sec-WebSocket-Protocol: a, b"} <= set(lines)
    assert first.request() == first.request()
    assert accept_token(first.request()) != accept_token(second.request())
    assert ServerHandshake().feed(first.request()) is not None


@pytest.mark.parametrize("host", ["[::1]:80", "127.0.0.1", "localhost:1", "bücher.example:443"])
def test_client_names_any_host(host: str) -> None:
    """A host is a name in any script, or an address of either family, with or without a port."""
    request = ServerHandshake().feed(client(host=host).request())
    assert request is not None
    assert request.host == host


@pytest.mark.parametrize("host", ["", "a b", "a\r\nX: y", "a/b", "user@host", "a..b", "é" * 64])
def test_client_refuses_a_bad_host(host: str) -> None:
    """A host that is none is a ValueError."""
    with pytest.raises(ValueError, match=r"host|label|idna|IDNA"):
        client(host=host)


@pytest.mark.parametrize("target", ["", "chat", "/a b", "/\r\nX: y", "/é", "/a#b", "http://h/"])
def test_client_refuses_a_bad_target(target: str) -> None:
    """A target that is no path is a ValueError that does not show it."""
    with pytest.raises(ValueError, match="target") as caught:
        client(target=target)
    assert not target or target not in str(caught.value)


@pytest.mark.parametrize("names", [["a", "a"], ["a b"], [""], ["a,b"], ["é"]])
def test_client_refuses_bad_subprotocols(names: list[str]) -> None:
    """A subprotocol that is no token, or comes twice, is a ValueError."""
    with pytest.raises(ValueError, match="subprotocol"):
        client(subprotocols=names)


@pytest.mark.parametrize("value", ["secret\r\nX: y", "secret\n", "secret\r", "secret\0", "secret\x7f", "secret€"])
def test_header_values_are_checked(value: str) -> None:
    """A header value that HTTP cannot carry is a ValueError that names the header, not the value."""
    server = ServerHandshake()
    server.feed(request_bytes())
    for make in (
        lambda: client(headers=[("X-Token", value)]),
        lambda: server.accept(headers=[("X-Token", value)]),
        lambda: server.reject(400, [("X-Token", value)]),
    ):
        with pytest.raises(ValueError, match="X-Token") as caught:
            make()
        assert "secret" not in str(caught.value)
    assert server.accept().startswith(b"HTTP/1.1 101")


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\nb", "é"])
def test_header_names_are_checked(name: str) -> None:
    """A header name that is no token is a ValueError."""
    with pytest.raises(ValueError, match="no header name"):
        client(headers=[(name, "x")])


@pytest.mark.parametrize("name", ["Host", "sec-websocket-KEY", "Upgrade", "Content-Length"])
def test_headers_of_the_upgrade_are_not_the_callers(name: str) -> None:
    """A header that the upgrade makes itself is a ValueError."""
    with pytest.raises(ValueError, match="made by the upgrade"):
        client(headers=[(name, "x")])


def test_server_may_answer_an_extension_that_was_not_asked_for() -> None:
    """A test server can claim an extension, and the client refuses it."""
    peer, server = client(), ServerHandshake()
    server.feed(peer.request())
    answer = server.accept(headers=[("Sec-WebSocket-Extensions", "permessage-deflate")])
    with pytest.raises(HandshakeError, match="extension"):
        peer.feed(answer)


def test_client_reads_the_acceptance() -> None:
    """An acceptance gives the subprotocol and the headers that are not the upgrade's own."""
    handshake = client(subprotocols=["chat"])
    data = response_bytes(handshake, "Sec-WebSocket-Protocol: chat", "Set-Cookie: a=b")
    response = handshake.feed(data + b"\x81\x01x")
    assert response == UpgradeResponse("chat", [("set-cookie", "a=b")])
    assert handshake.rest == b"\x81\x01x"


def test_client_needs_no_subprotocol_chosen() -> None:
    """A server that chooses none of the offered subprotocols is accepted."""
    handshake = client(subprotocols=["chat"])
    response = handshake.feed(response_bytes(handshake))
    assert response is not None
    assert response.subprotocol is None


def test_client_skips_interim_responses() -> None:
    """Responses 100 to 199 other than 101 are skipped, however they are cut."""
    handshake = client()
    interim = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    data = interim + response_bytes(handshake)
    assert handshake.feed(data[:50]) is None
    assert handshake.feed(data[50:]) is not None


def test_client_bounds_interim_responses() -> None:
    """Interim responses without end are a HandshakeError at the limit."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\n"
    handshake = client(header_limit=3 * len(interim))
    assert [handshake.feed(interim) for _ in range(3)] == [None] * 3
    with pytest.raises(HandshakeError, match="too long"):
        handshake.feed(interim)


@pytest.mark.parametrize(
    ("lines", "without"),
    [
        pytest.param([], "Connection", id="no connection"),
        pytest.param([], "Upgrade", id="no upgrade"),
        pytest.param(["Upgrade: h2c"], "Upgrade", id="upgrade"),
        pytest.param([], "Sec", id="no accept"),
        pytest.param([f"Sec-WebSocket-Accept: {ACCEPT}"], "Sec", id="wrong accept"),
        pytest.param([f"Sec-WebSocket-Accept: {ACCEPT}"], "\0", id="two accepts"),
        pytest.param(["Sec-WebSocket-Extensions: permessage-deflate"], "\0", id="unasked extension"),
        pytest.param(["Sec-WebSocket-Protocol: other"], "\0", id="unoffered subprotocol"),
        pytest.param(["Sec-WebSocket-Protocol: Chat"], "\0", id="subprotocol of another case"),
        pytest.param(["Sec-WebSocket-Protocol: chat", "Sec-WebSocket-Protocol: chat"], "\0", id="two subprotocols"),
        pytest.param(["Sec-WebSocket-Protocol: \xe9"], "\0", id="subprotocol of bytes"),
        pytest.param(["no colon"], "\0", id="no header"),
    ],
)
def test_client_refuses_a_wrong_101(lines: list[str], without: str) -> None:
    """A 101 that does not accept what was asked is a HandshakeError with that status."""
    handshake = client(subprotocols=["chat"])
    with pytest.raises(HandshakeError) as caught:
        handshake.feed(response_bytes(handshake, *lines, without=without))
    assert caught.value.status == 101


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n", 200),
        (b"HTTP/1.x 200 OK\r\n\r\n", None),
        (b"HTTP/1.1 twohundred\r\n\r\n", None),
        (b"HTTP/2 200\r\n\r\n", None),
        (b"SSH-2.0-OpenSSH_9.6\r\n", None),
        (b"<html>", None),
    ],
)
def test_client_hears_what_is_no_http(data: bytes, status: int | None) -> None:
    """What is not HTTP/1.1 is a HandshakeError as soon as that is known."""
    with pytest.raises(HandshakeError) as caught:
        client().feed(data)
    assert caught.value.status == status


def test_client_hears_the_end_of_the_connection() -> None:
    """The end of the connection within the response's header is a HandshakeError."""
    handshake = client()
    assert handshake.feed(b"HTTP/1.1 101 ") is None
    with pytest.raises(HandshakeError, match="ended"):
        handshake.feed(b"")


@pytest.mark.parametrize(
    "fed",
    [
        pytest.param([b"Content-Length: 4\r\n\r\nbody"], id="length"),
        pytest.param([b"Content-Length: 4\r\n\r\n", b"bo", b"dy"], id="length in pieces"),
        pytest.param([b"Content-Length: 9\r\n\r\nbody", b""], id="cut off"),
        pytest.param([b"\r\nbody", b""], id="to the end"),
        pytest.param([b"Transfer-Encoding: chunked\r\n\r\n4\r\n", b"body\r\n0\r\n\r\n"], id="chunked"),
        pytest.param([b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\nzzz\r\n"], id="broken chunks"),
    ],
)
def test_client_collects_the_body_of_a_refusal(fed: list[bytes]) -> None:
    """A refusal is a HandshakeError with status, headers and body, once the body is complete or cut off."""
    handshake = client()
    head = b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\n"
    for each in [head + fed[0], *fed[1:]][:-1]:
        assert handshake.feed(each) is None
    with pytest.raises(HandshakeError) as caught:
        handshake.feed(fed[-1] if len(fed) > 1 else head + fed[0])
    assert caught.value.status == 401
    assert caught.value.headers["www-authenticate"] == "Basic"
    assert caught.value.body == b"body"


def test_client_needs_no_body_to_be_refused() -> None:
    """A refusal whose header says that there is no body is raised at once."""
    with pytest.raises(HandshakeError) as caught:
        client().feed(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    assert (caught.value.status, caught.value.body) == (403, b"")


def test_client_bounds_the_body_of_a_refusal() -> None:
    """Of a body without end the first 4 KiB are kept, and then nothing more is awaited."""
    handshake = client()
    assert handshake.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n") is None
    assert handshake.feed(b"x" * (BODY_LIMIT - 1)) is None
    with pytest.raises(HandshakeError) as caught:
        handshake.feed(b"x" * 100_000)
    assert caught.value.body == b"x" * BODY_LIMIT


# Both


@given(st.lists(st.integers(0, 10_000)), st.lists(st.integers(0, 10_000)), st.binary(max_size=50))
def test_any_cut_gives_the_same(there: list[int], back: list[int], rest: bytes) -> None:
    """However the bytes are cut, both sides read the same, and keep what follows the header."""
    peer = client(target="/a?b", headers=[("X-A", "1")], subprotocols=["s"])
    server = ServerHandshake(supported_subprotocols=["s"])
    requests = [server.feed(piece) for piece in pieces(peer.request(), there)]
    assert all(request is None for request in requests[:-1])
    assert isinstance(requests[-1], UpgradeRequest)
    answer = server.accept(headers=[("X-B", "2")])
    fed = list(pieces(answer, back))
    fed[-1] += rest
    responses = [peer.feed(piece) for piece in fed]
    assert all(response is None for response in responses[:-1])
    assert responses[-1] == UpgradeResponse("s", [("x-b", "2")])
    assert (server.rest, peer.rest) == (b"", rest)


junk_line = st.text(st.characters(max_codepoint=255, exclude_characters="\n"), max_size=40)


@given(st.lists(junk_line, max_size=4), st.sampled_from(["GET / HTTP/1.1", "HTTP/1.1 101 X", "HTTP/1.1 404 X"]))
def test_junk_is_a_handshake_error_or_nothing(lines: list[str], first: str) -> None:
    """Whatever headers come, no error but HandshakeError is raised."""
    server, peer = ServerHandshake(), client()
    requested = request_bytes(*lines, first=first)
    responded = response_bytes(peer, *lines, first=first)
    for feed, data in ((server.feed, requested), (peer.feed, responded)):
        try:
            feed(data)
        except HandshakeError:
            pass


def test_what_was_said_stays_out_of_reprs() -> None:
    """The repr of a request or a response shows neither its query nor its headers."""
    peer, server = client(target="/?token=secret", headers=[("X-T", "secret")]), ServerHandshake()
    request = server.feed(peer.request())
    response = peer.feed(server.accept(headers=[("Set-Cookie", "secret")]))
    assert "secret" not in repr(request) + repr(response)
