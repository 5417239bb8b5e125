"""The frame codec beside two that others wrote, and over every way to cut the stream."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websocket import ABNF
from websocket._abnf import frame_buffer
from wsproto import connection as wsproto
from wsproto import events
from wsproto.frame_protocol import FrameProtocol, ParseFailed

from evtws.errors import ProtocolError
from evtws.frames import (
    Close,
    Decoder,
    Opcode,
    Ping,
    Pong,
    Received,
    encode,
    encode_close,
    encode_message,
)
from evtws.masking import apply_mask

Verdict = tuple[list[Received], int | None]
TEXTS = ["", "a", "é€😀", "x" * 125, "€" * 42, "😀" * 5000, "y" * 70000]
BODIES: list[str | bytes] = [*TEXTS, *(text.encode()[::-1] for text in TEXTS)]


def ours(chunks: list[bytes], *, masked: bool, max_size: int | None = None, limit: int = 500) -> Verdict:
    """What our decoder makes of these chunks: the items, and the code of the error if there is one."""
    decoder = Decoder(expect_masked=masked, max_size=max_size)
    items: list[Received] = []
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            while decoder.has_more:
                items += decoder.take(limit)
    except ProtocolError as error:
        return items, error.code
    return items, None


def cut(stream: bytes, rng: random.Random) -> list[bytes]:
    """The stream in pieces of random sizes, of which many are small."""
    at, pieces = 0, []
    while at < len(stream):
        size = rng.choice([1, 2, 3, 17, 130, 5000, 70000])
        pieces.append(stream[at : at + size])
        at += size
    return pieces


# websocket-client


def read_abnf(stream: bytes) -> list[tuple[int, int, object]]:
    """The frames that websocket-client reads from a stream: final, opcode, payload."""
    rest = [stream]

    def recv(size: int) -> bytes:
        part, rest[0] = rest[0][:size], rest[0][size:]
        return part

    buffer = frame_buffer(recv, skip_utf8_validation=True)
    found: list[tuple[int, int, object]] = []
    while rest[0]:
        frame = buffer.recv_frame()
        found.append((frame.fin, frame.opcode, frame.data))
    return found


@pytest.mark.parametrize("masked", [False, True])
def test_websocket_client_reads_our_frames(masked: bool) -> None:
    """Every frame that we make is read by websocket-client as we meant it."""
    stream, expected = b"", []
    for body in BODIES:
        payload = body.encode() if isinstance(body, str) else body
        stream += encode_message(body, masked=masked) + encode(0, payload, masked=masked, fin=False)
        expected += [(1, 1 if isinstance(body, str) else 2, payload), (0, 0, payload)]
    stream += encode_close(4001, "bye", masked=masked) + encode(Opcode.PING, b"p", masked=masked)
    expected += [(1, 8, struct.pack("!H", 4001) + b"bye"), (1, 9, b"p")]
    assert read_abnf(stream) == expected


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_we_read_websocket_clients_frames(masked: bool, seed: int) -> None:
    """Every frame that websocket-client makes is read by us, however it is cut."""
    stream, expected = b"", []
    for body in BODIES:
        data = body.encode() if isinstance(body, str) else body
        opcode = ABNF.OPCODE_TEXT if isinstance(body, str) else ABNF.OPCODE_BINARY
        stream += ABNF(1, 0, 0, 0, opcode, int(masked), data).format()
        stream += ABNF(1, 0, 0, 0, ABNF.OPCODE_PONG, int(masked), data[:125]).format()
        expected += [body, Pong(data[:125])]
    assert ours(cut(stream, random.Random(seed)), masked=masked) == (expected, None)


@pytest.mark.parametrize("size", [*range(10), 130, 2047, 2048, 2049, 2050, 2051, 100_001])
def test_masks_equal_websocket_clients(size: int) -> None:
    """Our masking gives what websocket-client's gives."""
    rng = random.Random(size)
    data, key = rng.randbytes(size), rng.randbytes(4)
    assert apply_mask(data, key) == ABNF.mask(key, data)


# wsproto


def theirs(chunks: list[bytes], *, masked: bool) -> Verdict:
    """What wsproto makes of these chunks, its frames joined to messages."""
    protocol = FrameProtocol(client=not masked, extensions=[])
    items: list[Received] = []
    parts: list[Any] = []
    controls: dict[int, Callable[[Any], Received]] = {
        8: lambda payload: Close(int(payload[0]), payload[1] or ""),
        9: lambda payload: Ping(bytes(payload)),
        10: lambda payload: Pong(bytes(payload)),
    }
    try:
        for chunk in chunks:
            protocol.receive_bytes(chunk)
            for frame in protocol.received_frames():
                if frame.opcode in controls:
                    items.append(controls[frame.opcode](frame.payload))
                    if int(frame.opcode) == Opcode.CLOSE:
                        return items, None
                    continue
                parts.append(frame.payload)
                if frame.message_finished:
                    items.append(("" if int(frame.opcode) == Opcode.TEXT else b"").join(parts))
                    parts = []
    except ParseFailed as exc:
        return items, int(exc.code)
    return items, None


def script(rng: random.Random) -> list[tuple[Received, int]]:
    """Random things to say: messages, each with a number of fragments, and control frames."""
    said: list[tuple[Received, int]] = []
    for _ in range(rng.randrange(1, 12)):
        text = "".join(rng.choice("a€é😀\r\n\0") for _ in range(rng.choice([0, 1, 5, 60, 200, 30000])))
        body: Received = text if rng.random() < 0.5 else rng.randbytes(len(text))
        said.append((rng.choice([body, body, Ping(rng.randbytes(5)), Pong(b"")]), rng.randrange(1, 6)))
    return said


def say(connection: wsproto.Connection, what: Received, fragments: int, rng: random.Random) -> list[bytes]:
    """The frames by which wsproto says this, a ping between any two fragments."""
    if isinstance(what, Ping):
        return [connection.send(events.Ping(payload=what.payload))]
    if isinstance(what, Pong):
        return [connection.send(events.Pong(payload=what.payload))]
    assert isinstance(what, (str, bytes))
    bounds = sorted(rng.randrange(len(what) + 1) for _ in range(fragments - 1))
    edges = [0, *bounds, len(what)]
    kind: Any = events.TextMessage if isinstance(what, str) else events.BytesMessage
    frames = []
    for i in range(fragments):
        part = what[edges[i] : edges[i + 1]]
        frames.append(connection.send(kind(data=part, message_finished=i == fragments - 1)))
    return frames


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_we_read_what_wsproto_says(masked: bool, seed: int) -> None:
    """Messages, fragments and control frames that wsproto sends come out as they were said."""
    rng = random.Random(seed)
    connection = wsproto.Connection(wsproto.CLIENT if masked else wsproto.SERVER)
    expected: list[Received] = []
    stream = b""
    for what, fragments in script(rng):
        frames = say(connection, what, fragments, rng)
        ping = connection.send(events.Ping(payload=b"between"))
        stream += ping.join(frames)
        expected += [Ping(b"between")] * (len(frames) - 1) + [what]
    stream += connection.send(events.CloseConnection(code=4001, reason="é"))
    expected.append(Close(4001, "é"))
    assert ours(cut(stream, rng), masked=masked) == (expected, None)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_wsproto_reads_what_we_say(masked: bool, seed: int) -> None:
    """Messages, fragments cut within characters, and control frames that we send are read by wsproto."""
    rng = random.Random(seed)
    stream, expected = b"", []
    for what, fragments in script(rng):
        expected.append(what)
        if isinstance(what, (Ping, Pong)):
            opcode = Opcode.PING if isinstance(what, Ping) else Opcode.PONG
            stream += encode(opcode, what.payload, masked=masked)
            continue
        assert isinstance(what, (str, bytes))
        if fragments == 1:
            stream += encode_message(what, masked=masked)
            continue
        data = what.encode() if isinstance(what, str) else what
        edges = [0, *sorted(rng.randrange(len(data) + 1) for _ in range(fragments - 1)), len(data)]
        for i in range(fragments):
            opcode = Opcode.CONT if i else Opcode.TEXT if isinstance(what, str) else Opcode.BINARY
            part = data[edges[i] : edges[i + 1]]
            stream += encode(opcode, part, masked=masked, fin=i == fragments - 1)
    stream += encode_close(1000, "done", masked=masked)
    expected.append(Close(1000, "done"))
    assert theirs(cut(stream, rng), masked=masked) == (expected, None)


def a_frame(first: int, second: int, payload: bytes) -> bytes:
    """A whole frame with any first two octets; what `second` says is kept to."""
    size, key = second & 0x7F, b"\x12\x34\x56\x78" if second & 0x80 else b""
    if size < 126:
        length, payload = b"", payload[:size].ljust(size, b"z")
    else:
        length = len(payload).to_bytes(2 if size == 126 else 8, "big")
    return bytes((first, second)) + length + key + (apply_mask(payload, key) if key else payload)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_every_first_octet_gets_wsprotos_verdict(masked: bool, inside: bool) -> None:
    """For every first octet, length form and mask, outside and inside a message, we judge as wsproto does."""
    start = a_frame(0x01, (0x80 if masked else 0) | 2, b"hi") if inside else b""
    for first in range(256):
        for size in (0, 1, 2, 7, 125, 126, 127):
            for mask in (0, 0x80):
                for length in (0, 125, 126) if size > 125 else (0,):
                    payload = b"\x03\xe8" + b"z" * (length - 2) if length else b""
                    stream = start + a_frame(first, mask | size, payload)
                    assert ours([stream], masked=masked) == theirs([stream], masked=masked), stream[:16]


def test_every_close_code_gets_wsprotos_verdict() -> None:
    """Every close code is judged as by wsproto, but for 1014, which IANA registered after it was written."""
    differ = []
    for code in [*range(6000), *range(6000, 65536, 97)]:
        stream = b"\x88\x02" + code.to_bytes(2, "big")
        if ours([stream], masked=False) != theirs([stream], masked=False):
            differ.append(code)
    assert differ == [1014]


@pytest.mark.parametrize("payload", [b"\x03", b"\x03\xe8\xff", b"\x03\xe8\xe2\x82", b"\x03\xedx", b"\x03\xe8ok"])
def test_close_payloads_get_wsprotos_verdict(payload: bytes) -> None:
    """Half a code, a bad code and a bad reason are refused where wsproto refuses them."""
    stream = bytes((0x88, len(payload))) + payload
    assert ours([stream], masked=False) == theirs([stream], masked=False)


# Every prefix of every character


def test_a_cut_text_is_refused_exactly_when_no_character_can_follow() -> None:
    """Of two octets, and of three, precisely those that begin no character's UTF-8 are refused at once."""
    codes = (code for code in range(0x80, 0x110000, 64) if not 0xD800 <= code < 0xE000)
    whole = [chr(code + last).encode() for code in codes for last in (0, 63)]
    good = {octets[:size] for octets in whole for size in (1, 2, 3) if size < len(octets)}
    good |= {bytes((lead, low)) for lead in range(0xC2, 0xE0) for low in range(0x80, 0xC0)}
    thirds = [0x7F, 0x80, 0xBF, 0xC0]
    for lead in range(0x80, 0x100):
        for low in range(0x100):
            octets = bytes((lead, low))
            assert (ours([b"\x81\x7d" + octets], masked=False)[1] is None) == (octets in good), octets
            if octets in good and lead >= 0xF0:
                for third in thirds:
                    longer = octets + bytes((third,))
                    assert (ours([b"\x81\x7d" + longer], masked=False)[1] is None) == (longer in good), longer


# Every split of the stream

good_frames = st.one_of(
    st.text(max_size=200).map(lambda text: ("message", text)),
    st.binary(max_size=200).map(lambda data: ("message", data)),
    st.integers(100, 3000).map(lambda size: ("message", "é" * size)),
    st.integers(65530, 65540).map(lambda size: ("message", b"x" * size)),
    st.tuples(st.sampled_from([0, 1, 2]), st.binary(max_size=140), st.booleans()),
    st.tuples(st.sampled_from([0, 1]), st.text(max_size=60).map(str.encode), st.booleans()),
    st.tuples(st.sampled_from([9, 10]), st.binary(max_size=125), st.just(True)),
)
any_frames = st.one_of(
    good_frames,
    st.sampled_from(["", "why", "é€"]).map(lambda reason: ("close", reason)),
    st.binary(min_size=2, max_size=14).map(lambda junk: ("junk", junk)),
)


def to_bytes(frame: Any, masked: bool) -> bytes:
    """The wire form of a drawn frame."""
    if frame[0] == "message":
        return encode_message(frame[1], masked=masked)
    if frame[0] == "close":
        return encode_close(1000, frame[1], masked=masked)
    if frame[0] == "junk":
        return bytes(frame[1])
    return encode(frame[0], frame[1], masked=masked, fin=frame[2])


@given(
    frames=st.lists(any_frames, max_size=12),
    masked=st.booleans(),
    cuts=st.lists(st.integers(0, 1 << 17), max_size=30),
    small=st.integers(1, 9),
    max_size=st.sampled_from([None, 0, 50, 150, 66000]),
    limit=st.integers(1, 5),
)
@settings(max_examples=150, deadline=None)
def test_any_split_gives_the_same_items_and_the_same_error(
    frames: list[Any], masked: bool, cuts: list[int], small: int, max_size: int | None, limit: int
) -> None:
    """However a stream is cut, and however few are taken at once, its items and its error are the same."""
    stream = b"".join(to_bytes(frame, masked) for frame in frames)
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    pieces = [stream[a:b] for a, b in pairwise(edges)]
    octets = [stream[at : at + small] for at in range(0, min(len(stream), 3000), small)]
    octets.append(stream[len(octets) * small :])
    whole = ours([stream], masked=masked, max_size=max_size)
    assert ours(pieces, masked=masked, max_size=max_size) == whole
    assert ours(octets, masked=masked, max_size=max_size, limit=limit) == whole
    backlog = Decoder(expect_masked=masked, max_size=max_size)
    for piece in pieces:
        backlog.feed(piece)
    items: list[Received] = []
    code = None
    while backlog.has_more:
        try:
            items += backlog.take(limit)
        except ProtocolError as error:
            code = error.code
    assert (items, code) == whole


@given(frames=st.lists(good_frames, max_size=8), masked=st.booleans())
@settings(max_examples=150, deadline=None)
def test_streams_of_whole_frames_get_wsprotos_verdict(frames: list[Any], masked: bool) -> None:
    """Any series of whole frames, in a right order or not, is judged as by wsproto."""
    stream = b"".join(to_bytes(frame, masked) for frame in frames)
    assert ours([stream], masked=masked) == theirs([stream], masked=masked)


@given(junk=st.binary(max_size=200), masked=st.booleans())
@settings(max_examples=300, deadline=None)
def test_any_bytes_end_in_items_or_one_error(junk: bytes, masked: bool) -> None:
    """Whatever bytes come, the decoder gives items or a protocol error and nothing else."""
    _, code = ours([junk], masked=masked, max_size=1000)
    assert code in (None, 1002, 1007, 1009)
