"""The frame codec: RFC 6455 section 5, rule by rule, in both roles."""

from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Iterator

import pytest

from evtws.errors import MessageTooBig, ProtocolError
from evtws.frames import (
    Close,
    Decoder,
    Opcode,
    Ping,
    Pong,
    Received,
    check_close_code,
    encode,
    encode_close,
    encode_message,
)

KEY = b"\x37\xfa\x21\x3d"
SENDABLE = [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999]
NOT_SENDABLE = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]

#: (valid beginning, the byte that spoils it), from Autobahn's section 6 and RFC 3629.
BAD_UTF8 = [
    (b"", b"\x80"),
    (b"", b"\xc0"),
    (b"", b"\xc1"),
    (b"", b"\xf5"),
    (b"", b"\xff"),
    (b"abc\xce", b"a"),
    (b"\xe0", b"\x80"),
    (b"\xe2\x82", b"("),
    (b"\xed", b"\xa0"),
    (b"\xf0", b"\x80"),
    (b"\xce\xba\xe1\xbd\xb9\xf4", b"\x90"),
    (b"\xf0\x9f\x98", b"\xff"),
]


def xor(data: bytes, key: bytes) -> bytes:
    """The masking of RFC 6455, octet by octet as the text has it."""
    return bytes(octet ^ key[i % 4] for i, octet in enumerate(data))


def raw(first: int, payload: bytes = b"", *, masked: bool = False, size: int | None = None) -> bytes:
    """A frame by hand; `size` is declared instead of the payload's."""
    size = len(payload) if size is None else size
    bit = 0x80 if masked else 0
    if size < 126:
        header = struct.pack("!BB", first, bit | size)
    elif size < 1 << 16:
        header = struct.pack("!BBH", first, bit | 126, size)
    else:
        header = struct.pack("!BBQ", first, bit | 127, size)
    return header + (KEY + xor(payload, KEY) if masked else payload)


def chunked(stream: bytes, size: int) -> Iterator[bytes]:
    """The stream in chunks of `size` bytes."""
    return (stream[at : at + size] for at in range(0, len(stream), size))


def has_more(decoder: Decoder) -> bool:
    """The property, asked anew: a type checker takes it for a constant."""
    return decoder.has_more


def drain(decoder: Decoder, limit: int = 500) -> list[Received]:
    """All that can be taken without more bytes."""
    items: list[Received] = []
    while decoder.has_more:
        items += decoder.take(limit)
    return items


def run(
    stream: bytes, *, masked: bool = False, max_size: int | None = None, chunk: int = 1 << 20
) -> tuple[list[Received], int | None]:
    """The items of a stream and the code of the error that ends it, if one does."""
    decoder = Decoder(expect_masked=masked, max_size=max_size)
    items: list[Received] = []
    try:
        for piece in chunked(stream, chunk):
            decoder.feed(piece)
            while decoder.has_more:
                items += decoder.take()
    except ProtocolError as error:
        return items, error.code
    return items, None


def refused(stream: bytes, code: int = 1002, *, masked: bool = False) -> bool:
    """Whether the stream, whole and octet by octet, gives no item and this code."""
    return all(run(stream, masked=masked, chunk=chunk) == ([], code) for chunk in (1 << 20, 1))


# Messages


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("size", "chunk"),
    [
        *((size, chunk) for size in (0, 1, 125, 126, 127) for chunk in (1, 3, 1 << 20)),
        *((size, chunk) for size in (65535, 65536, 70000) for chunk in (101, 4096, 1 << 20)),
    ],
)
def test_a_message_of_any_length_class_arrives_whole(masked: bool, size: int, chunk: int) -> None:
    """A text and a binary message of every length class arrive as they were, in both roles and any chunks."""
    text, data = "é" * (size // 2) + "x" * (size % 2), os.urandom(size)
    stream = raw(0x81, text.encode(), masked=masked) + raw(0x82, data, masked=masked)
    assert run(stream, masked=masked, chunk=chunk) == ([text, data], None)


def test_line_ends_are_kept_in_a_cut_text() -> None:
    """Carriage returns and line feeds of a text in pieces stay as they are."""
    stream = raw(0x01, b"a\r\nb\r") + raw(0x80, b"\nc\n\r")
    assert run(stream, chunk=1) == (["a\r\nb\r\nc\n\r"], None)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
def test_fragments_are_joined_and_control_frames_between_them_come_first(masked: bool, chunk: int) -> None:
    """Fragments make one message, and a control frame between them comes out at once."""
    stream = b"".join(
        raw(first, payload, masked=masked)
        for first, payload in [
            (0x01, "h€".encode()[:2]),
            (0x89, b"now"),
            (0x00, "h€".encode()[2:]),
            (0x00, b""),
            (0x8A, b""),
            (0x80, b"!"),
            (0x02, b""),
            (0x80, b"\xff\x00"),
            (0x81, b"after"),
        ]
    )
    expected = [Ping(b"now"), Pong(b""), "h€!", b"\xff\x00", "after"]
    assert run(stream, masked=masked, chunk=chunk) == (expected, None)


def test_a_control_frame_does_not_wait_for_the_message_around_it() -> None:
    """A ping inside a fragmented message is given before the rest of the message has come."""
    decoder = Decoder(expect_masked=False, max_size=None)
    decoder.feed(raw(0x01, b"a") + raw(0x89, b"p"))
    assert drain(decoder) == [Ping(b"p")]
    decoder.feed(raw(0x80, b"b"))
    assert drain(decoder) == ["ab"]


def test_control_frames_of_one_payload_are_told_apart() -> None:
    """A ping and a pong of one payload are not equal."""
    items: list[Received] = [Ping(b"x"), Pong(b"x")]
    assert items[0] != items[1]


@pytest.mark.parametrize("opcode", [0x89, 0x8A])
def test_a_control_frame_carries_up_to_125_bytes(opcode: int) -> None:
    """A ping and a pong of 125 bytes are taken, octet by octet too."""
    items, code = run(raw(opcode, b"z" * 125), chunk=1)
    assert (items, code) == ([(Ping if opcode == 0x89 else Pong)(b"z" * 125)], None)


# What is refused


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bit", [0x40, 0x20, 0x10, 0x70])
@pytest.mark.parametrize("opcode", list(Opcode))
def test_a_reserved_bit_is_refused(masked: bool, bit: int, opcode: int) -> None:
    """A frame with a reserved bit is a protocol error, whatever its opcode."""
    assert refused(raw(0x80 | bit | opcode, b"", masked=masked), masked=masked)


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
@pytest.mark.parametrize("fin", [0x80, 0])
def test_a_reserved_opcode_is_refused(opcode: int, fin: int) -> None:
    """A reserved opcode is a protocol error, outside and inside a fragmented message."""
    assert refused(raw(fin | opcode, b"x"))
    assert refused(raw(0x01, b"x") + raw(fin | opcode, b"x"))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("first", [0x81, 0x82, 0x01, 0x89, 0x8A, 0x88])
@pytest.mark.parametrize("size", [0, 4, 125])
def test_a_frame_masked_against_its_role_is_refused(masked: bool, first: int, size: int) -> None:
    """A masked frame to a client, and an unmasked one to a server, is a protocol error."""
    assert refused(raw(first, b"\x03\xe8" * (size // 2), masked=not masked), masked=masked)


@pytest.mark.parametrize("size", [126, 65536])
def test_a_long_frame_masked_against_its_role_is_refused(size: int) -> None:
    """The role is judged before an extended length is read."""
    assert refused(raw(0x82, b"", masked=True, size=size))
    assert refused(raw(0x82, b"", size=size), masked=True)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("!BBH", 0x82, 126, 0),
        struct.pack("!BBH", 0x82, 126, 125),
        struct.pack("!BBQ", 0x82, 127, 0),
        struct.pack("!BBQ", 0x82, 127, 125),
        struct.pack("!BBQ", 0x82, 127, 65535),
        struct.pack("!BBQ", 0x82, 127, 1 << 63),
        struct.pack("!BBQ", 0x82, 127, (1 << 64) - 1),
    ],
)
def test_a_length_in_a_wrong_form_is_refused_by_its_header(header: bytes) -> None:
    """A length that is not the shortest form, or has its top bit set, is a protocol error."""
    assert refused(header)
    assert refused(header + b"\x00" * 200)
    assert refused(header[:1] + bytes((header[1] | 0x80,)) + header[2:] + KEY, masked=True)


@pytest.mark.parametrize("opcode", [8, 9, 10])
def test_a_fragmented_or_long_control_frame_is_refused(opcode: int) -> None:
    """A control frame that is not final, or over 125 bytes, is a protocol error known from two bytes."""
    assert refused(raw(opcode, b"\x03\xe8"))
    assert refused(raw(0x80 | opcode, size=126)[:2])
    assert refused(raw(0x80 | opcode, size=65536)[:2])


@pytest.mark.parametrize("first", [0x00, 0x80])
def test_a_continuation_of_nothing_is_refused(first: int) -> None:
    """A continuation frame without a message to continue is a protocol error, after a whole message too."""
    assert refused(raw(first, b"x"))
    assert run(raw(0x81, b"a") + raw(first, b"x")) == (["a"], 1002)
    assert run(raw(0x01, b"a") + raw(0x80, b"b") + raw(first, b"x")) == (["ab"], 1002)


@pytest.mark.parametrize("first", [0x01, 0x81, 0x02, 0x82])
def test_a_message_inside_another_is_refused(first: int) -> None:
    """A data frame that begins a message inside a fragmented one is a protocol error."""
    assert refused(raw(0x01, b"x") + raw(first, b"y"))
    assert refused(raw(0x02, b"") + raw(first, b""))


# UTF-8


@pytest.mark.parametrize(("start", "bad"), BAD_UTF8)
@pytest.mark.parametrize("masked", [False, True])
def test_bad_text_is_refused(start: bytes, bad: bytes, masked: bool) -> None:
    """Text that is not UTF-8 ends the stream with 1007, after what stood before it."""
    stream = raw(0x81, b"ok", masked=masked) + raw(0x81, start + bad + b"tail", masked=masked)
    assert run(stream, masked=masked) == (["ok"], 1007)
    assert run(stream, masked=masked, chunk=1) == (["ok"], 1007)


@pytest.mark.parametrize(("start", "bad"), BAD_UTF8)
@pytest.mark.parametrize("masked", [False, True])
def test_bad_text_in_a_cut_frame_fails_at_its_bad_byte(start: bytes, bad: bytes, masked: bool) -> None:
    """A frame of which only a part came fails as soon as its bad octet is there, and not before."""
    stream = raw(0x81, start + bad + b"x" * 500, masked=masked)
    until = stream.index(xor(start + bad, KEY) if masked else start + bad, 4) + len(start + bad)
    decoder = Decoder(expect_masked=masked, max_size=None)
    decoder.feed(stream[: until - 1])
    assert drain(decoder) == []
    decoder.feed(stream[until - 1 : until])
    with pytest.raises(ProtocolError, match="UTF-8") as caught:
        decoder.take()
    assert caught.value.code == 1007
    whole = Decoder(expect_masked=masked, max_size=None)
    whole.feed(stream[:until])
    with pytest.raises(ProtocolError, match="UTF-8"):
        whole.take()


@pytest.mark.parametrize(("start", "bad"), BAD_UTF8)
def test_bad_text_in_fragments_fails_in_the_bad_fragment(start: bytes, bad: bytes) -> None:
    """A fragmented text fails in the fragment that spoils it, not at the message's end."""
    decoder = Decoder(expect_masked=False, max_size=None)
    decoder.feed(raw(0x01, start) + raw(0x00))
    assert drain(decoder) == []
    decoder.feed(raw(0x00, bad))
    with pytest.raises(ProtocolError, match="UTF-8"):
        decoder.take()


@pytest.mark.parametrize("cut", [b"\xce", b"a\xe2\x82", b"\xf0\x9f\x98"])
def test_text_that_ends_within_a_character_is_refused(cut: bytes) -> None:
    """Text whose last character is cut is refused: in one frame, in fragments, by an empty last fragment."""
    assert refused(raw(0x81, cut), 1007)
    assert refused(raw(0x01, cut) + raw(0x80), 1007)
    assert refused(raw(0x01, cut[:-1]) + raw(0x80, cut[-1:]), 1007)


def test_binary_messages_hold_any_octets() -> None:
    """What is not UTF-8 is right in a binary message."""
    data = bytes(range(256))
    assert run(raw(0x82, data) + raw(0x02, data) + raw(0x80, data), chunk=7) == ([data, data + data], None)


def test_an_error_does_not_carry_the_payload() -> None:
    """The error of bad text has no context that would show the payload in a log."""
    for stream in (raw(0x81, b"secret\xff"), raw(0x88, b"\x03\xe8secret\xff")):
        decoder = Decoder(expect_masked=False, max_size=None)
        decoder.feed(stream)
        with pytest.raises(ProtocolError) as caught:
            decoder.take()
        assert caught.value.__context__ is None
        assert "secret" not in str(caught.value)


# Close frames


def test_a_close_frame_has_its_code_and_reason() -> None:
    """A close frame gives its code and reason, and 1005 if it has none."""
    assert run(raw(0x88)) == ([Close(1005, "")], None)
    assert run(raw(0x88, b"\x0f\xa1")) == ([Close(4001, "")], None)
    assert run(raw(0x88, b"\x03\xe8" + "€".encode() * 41), chunk=1) == ([Close(1000, "€" * 41)], None)


@pytest.mark.parametrize("code", SENDABLE)
def test_a_legal_close_code_is_taken_and_sent(code: int) -> None:
    """Every code that may stand in a close frame is taken, and may be sent."""
    check_close_code(code)
    assert run(raw(0x88, code.to_bytes(2, "big"))) == ([Close(code, "")], None)
    assert run(encode_close(code, "why", masked=False)) == ([Close(code, "why")], None)


@pytest.mark.parametrize("code", NOT_SENDABLE)
def test_an_illegal_close_code_is_refused_both_ways(code: int) -> None:
    """A code that may not stand in a close frame is a protocol error, and a ValueError for the sender."""
    assert refused(raw(0x88, code.to_bytes(2, "big")))
    with pytest.raises(ValueError, match=str(code)):
        check_close_code(code)
    with pytest.raises(ValueError, match=str(code)):
        encode_close(code, "", masked=False)


def test_a_broken_close_payload_is_refused() -> None:
    """Half a close code is a protocol error, and a reason that is not UTF-8 has the code 1007."""
    assert refused(raw(0x88, b"\x03"))
    assert refused(raw(0x88, b"\x03\xe8\xff"), 1007)
    assert refused(raw(0x88, b"\x03\xe8\xe2\x82"), 1007)


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_what_follows_a_close_frame_is_ignored(chunk: int) -> None:
    """Nothing that follows a close frame is parsed, were it ever so wrong."""
    stream = raw(0x81, b"a") + raw(0x88) + raw(0x81, b"b") + b"\xff" * 20
    assert run(stream, chunk=chunk) == (["a", Close(1005, "")], None)


def test_a_close_frame_inside_a_message_ends_it() -> None:
    """A close frame inside a fragmented message is given, and the message is not."""
    assert run(raw(0x01, b"a") + raw(0x88) + raw(0x80, b"b")) == ([Close(1005, "")], None)


# Errors in their order


def test_good_items_come_before_the_error_behind_them() -> None:
    """What stood before a fault is returned first; the next take raises, once, and then nothing is left."""
    decoder = Decoder(expect_masked=False, max_size=None)
    decoder.feed(raw(0x81, b"a") + raw(0x89, b"b") + raw(0xC1, b"c") + raw(0x81, b"d"))
    assert decoder.take() == ["a", Ping(b"b")]
    assert has_more(decoder)
    with pytest.raises(ProtocolError, match="reserved bit"):
        decoder.take()
    assert not has_more(decoder)
    decoder.feed(raw(0x81, b"e"))
    assert not has_more(decoder)
    assert decoder.take() == []


def test_nothing_is_parsed_after_an_error() -> None:
    """After an error that take raised at once, what is fed is ignored."""
    decoder = Decoder(expect_masked=False, max_size=None)
    decoder.feed(b"\xff\x00")
    with pytest.raises(ProtocolError):
        decoder.take()
    decoder.feed(raw(0x81, b"e"))
    assert not has_more(decoder)
    assert decoder.take() == []


# The size of a message


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("limit", [0, 100, 125, 126, 1000, 65535, 65536])
def test_max_size_is_inclusive_and_judged_by_the_header(masked: bool, limit: int) -> None:
    """A message of exactly max_size passes; one more byte is 1009 before any of the payload has come."""
    data = b"x" * limit
    assert run(raw(0x82, data, masked=masked), masked=masked, max_size=limit) == ([data], None)
    whole = raw(0x82, data + b"x", masked=masked)
    assert run(whole, masked=masked, max_size=limit) == ([], 1009)
    decoder = Decoder(expect_masked=masked, max_size=limit)
    decoder.feed(raw(0x82, size=limit + 1, masked=masked))
    with pytest.raises(MessageTooBig) as caught:
        decoder.take()
    assert (caught.value.size, caught.value.limit, caught.value.code) == (limit + 1, limit, 1009)


def test_max_size_counts_the_whole_message_in_bytes() -> None:
    """Fragments add up, in bytes and not in characters, and the count begins anew with each message."""
    assert run(raw(0x01, b"12345") + raw(0x80, b"67890"), max_size=10) == (["1234567890"], None)
    assert run((raw(0x01, b"12345") + raw(0x80, b"6789")) * 3, max_size=10) == (["123456789"] * 3, None)
    assert run(raw(0x01, b"12345") + raw(0x00, b"") + raw(0x00, size=6), max_size=10) == ([], 1009)
    assert run(raw(0x81, "é".encode() * 6), max_size=10) == ([], 1009)
    assert run(raw(0x89, b"p" * 50) + raw(0x81, b"ok"), max_size=10) == ([Ping(b"p" * 50), "ok"], None)


def test_a_huge_declared_frame_takes_no_memory() -> None:
    """A frame that declares 2**62 bytes is refused by its header; without a limit nothing is allocated."""
    header = raw(0x82, size=1 << 62)
    assert run(header, max_size=16 << 20) == ([], 1009)
    tracemalloc.start()
    assert run(header + b"abc") == ([], None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


# The work of one take


def test_take_returns_at_most_its_limit() -> None:
    """A take returns at most `limit` items, and has_more tells that there are more."""
    decoder = Decoder(expect_masked=False, max_size=None)
    decoder.feed((raw(0x81, b"a") + raw(0x89)) * 10)
    counts = []
    while decoder.has_more:
        counts.append(len(decoder.take(3)))
    assert counts == [3, 3, 3, 3, 3, 3, 2]
    assert decoder.take() == []


def test_every_fragment_counts_against_the_limit() -> None:
    """A flood of empty fragments returns to the caller after `limit` of them."""
    decoder = Decoder(expect_masked=False, max_size=None)
    decoder.feed(raw(0x01) + raw(0x00) * 998 + raw(0x80, b"x"))
    assert decoder.take(500) == []
    assert has_more(decoder)
    assert decoder.take(499) == []
    assert has_more(decoder)
    assert decoder.take(1) == ["x"]
    assert not has_more(decoder)


def test_has_more_is_false_while_bytes_are_wanting() -> None:
    """A cut frame is no work: has_more is False until bytes come, wherever the frame is cut."""
    for stream in (raw(0x81, b"x" * 200), raw(0x89, b"p" * 20), raw(0x82, b"y" * 70000, masked=True)):
        decoder = Decoder(expect_masked=stream[1] >= 0x80, max_size=None)
        assert not has_more(decoder)
        for at in range(20):
            decoder.feed(stream[at : at + 1])
            assert has_more(decoder)
            assert decoder.take() == []
            assert not has_more(decoder)


def test_has_more_settles_when_the_limit_falls_before_a_cut_frame() -> None:
    """A take that ends at its limit before a cut frame leaves has_more to be settled by one empty take."""
    decoder = Decoder(expect_masked=False, max_size=None)
    decoder.feed(raw(0x81, b"a") + raw(0x81, b"b")[:1])
    assert decoder.take(1) == ["a"]
    assert decoder.take(1) == []
    assert not has_more(decoder)


def test_chunks_keep_their_order_when_a_limit_falls_between_two() -> None:
    """What is fed after a take that ended at a chunk's end comes after the chunks in store."""
    decoder = Decoder(expect_masked=False, max_size=None)
    decoder.feed(raw(0x81, b"a"))
    decoder.feed(raw(0x81, b"b"))
    assert decoder.take(1) == ["a"]
    decoder.feed(raw(0x81, b"c"))
    assert drain(decoder, 1) == ["b", "c"]


@pytest.mark.parametrize("first", [0x81, 0x82])
def test_a_message_that_was_taken_is_not_kept(first: int) -> None:
    """A message that came in pieces is the caller's alone once it was taken."""
    decoder = Decoder(expect_masked=False, max_size=None)
    stream = raw(first, bytes(1_000_000))
    tracemalloc.start()
    for chunk in chunked(stream, 65536):
        decoder.feed(chunk)
        drain(decoder)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 150_000


class Counted(bytes):
    """Bytes that count how many of them are copied by slicing and joining."""

    copied = 0

    def __getitem__(self, at: object) -> object:  # type: ignore[override]
        part = super().__getitem__(at)  # type: ignore[call-overload]
        if isinstance(part, bytes):
            Counted.copied += len(part)
        return part

    def __radd__(self, left: bytes) -> Counted:
        if not left:
            return self  # as CPython does for bytes
        Counted.copied += len(left) + len(self)
        return Counted(bytes.__add__(left, self))


def copies(chunks: list[bytes], *, backlog: bool = False, limit: int = 500) -> int:
    """The bytes copied to decode these chunks, each taken as it comes or all after the last."""
    counted = [Counted(chunk) for chunk in chunks]
    Counted.copied = 0
    decoder = Decoder(expect_masked=False, max_size=None)
    for chunk in counted:
        decoder.feed(chunk)
        if not backlog:
            drain(decoder, limit)
    drain(decoder, limit)
    return Counted.copied


@pytest.mark.parametrize("backlog", [False, True])
@pytest.mark.parametrize("limit", [1, 500])
@pytest.mark.parametrize("frame", [raw(0x82, b"x" * 130), raw(0x89, b"p" * 20), raw(0x81, b"x" * 3000)])
def test_each_byte_is_copied_a_constant_number_of_times(frame: bytes, limit: int, backlog: bool) -> None:
    """However many frames and chunks are in store, and however few are taken at once, copies stay few."""
    stream = frame * (120_000 // len(frame))
    assert copies(list(chunked(stream, 4096)), backlog=backlog, limit=limit) < 3.2 * len(stream)


@pytest.mark.parametrize("backlog", [False, True])
def test_a_large_frame_in_chunks_is_not_scanned_again(backlog: bool) -> None:
    """A frame of 4 MiB in chunks is sliced once, and its bytes joined once."""
    stream = raw(0x82, bytes(4 << 20))
    assert copies(list(chunked(stream, 65536)), backlog=backlog) < 1.1 * len(stream)


@pytest.mark.parametrize("payload", [b"", b"x"])
@pytest.mark.parametrize("start", [0x01, 0x02])
def test_a_flood_of_fragments_is_bounded_in_memory(payload: bytes, start: int) -> None:
    """Fragments cost the memory of their payload and no more, whatever their number."""
    count = 20_000
    chunk = raw(0x00, payload) * 1000
    decoder = Decoder(expect_masked=False, max_size=None)
    decoder.feed(raw(start, payload))
    tracemalloc.start()
    for _ in range(count // 1000):
        decoder.feed(chunk)
        assert drain(decoder) == []
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 10_000 + 16 * count * len(payload)
    decoder.feed(raw(0x80))
    (message,) = drain(decoder)
    assert isinstance(message, (str, bytes))
    assert len(message) == (count + 1) * len(payload)


# Encoding and masking


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_a_frame_is_encoded_in_the_shortest_form(masked: bool, size: int) -> None:
    """An encoded frame has its first byte, the shortest length, a mask if asked for, and the payload."""
    data = os.urandom(size)
    for first, frame in [
        (0x82, encode_message(data, masked=masked)),
        (0x82, encode(Opcode.BINARY, data, masked=masked)),
        (0x00, encode(Opcode.CONT, data, masked=masked, fin=False)),
        (0x81, encode_message("y" * size, masked=masked)),
    ]:
        payload = b"y" * size if first == 0x81 else data
        header = raw(first, masked=masked, size=size)
        if masked:
            header = header[:-4] + frame[len(header) - 4 : len(header)]
            payload = xor(payload, header[-4:])
        assert frame == header + payload


def test_text_is_sent_as_utf8_and_a_lone_surrogate_is_refused() -> None:
    """Text goes out as UTF-8; what has no UTF-8 is a ValueError."""
    assert encode_message("é€", masked=False) == raw(0x81, "é€".encode())
    with pytest.raises(ValueError, match="surrogates"):
        encode_message("\ud800", masked=False)


@pytest.mark.parametrize("opcode", [Opcode.CLOSE, Opcode.PING, Opcode.PONG])
def test_a_control_frame_that_breaks_the_rules_is_not_encoded(opcode: int) -> None:
    """A control frame over 125 bytes or not final is a ValueError."""
    assert encode(opcode, b"x" * 125, masked=False) == raw(0x80 | opcode, b"x" * 125)
    with pytest.raises(ValueError, match="125"):
        encode(opcode, b"x" * 126, masked=False)
    with pytest.raises(ValueError, match="final"):
        encode(opcode, b"", masked=False, fin=False)


@pytest.mark.parametrize("opcode", [3, 7, 11, 15, 16, 0x81, -1])
def test_a_reserved_opcode_is_not_encoded(opcode: int) -> None:
    """An opcode that the RFC reserves, or that is none, is a ValueError."""
    with pytest.raises(ValueError, match="Opcode"):
        encode(opcode, b"", masked=False)


def test_a_close_frame_is_encoded_within_its_bounds() -> None:
    """A close frame takes no code at all, and a reason of at most 123 bytes with a code only."""
    assert encode_close(None, "", masked=False) == raw(0x88)
    assert encode_close(1000, "€" * 41, masked=False) == raw(0x88, b"\x03\xe8" + "€".encode() * 41)
    with pytest.raises(ValueError, match="123"):
        encode_close(1000, "€" * 41 + "x", masked=False)
    with pytest.raises(ValueError, match="code"):
        encode_close(None, "why", masked=False)


def test_a_close_frame_is_masked_when_asked() -> None:
    """A client's close frame is masked."""
    assert run(encode_close(1001, "bye", masked=True), masked=True) == ([Close(1001, "bye")], None)
    assert run(encode_close(None, "", masked=True), masked=True) == ([Close(1005, "")], None)
