"""Bytes to frames and whole messages and back: RFC 6455 section 5, strict, for both roles.

No socket, no thread, no clock: whoever has the bytes feeds them to a `Decoder`, takes what they mean, and
writes what the `encode` functions return. A client masks what it sends and expects unmasked frames; a server
the reverse.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO, StringIO
from struct import Struct

from .errors import MessageTooBig, ProtocolError
from .masking import apply_mask, new_key


class Opcode(IntEnum):
    """The kinds of frame (RFC 6455 section 5.2); the other ten are reserved."""

    CONT = 0
    TEXT = 1
    BINARY = 2
    CLOSE = 8
    PING = 9
    PONG = 10


@dataclass(frozen=True, slots=True)
class Ping:
    """A ping frame; it is to be answered by a pong of the same payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """A pong frame, asked for or not."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """A close frame; `code` is 1005 if it had none (RFC 6455 section 7.1.5)."""

    code: int
    reason: str


#: What a Decoder gives: a whole text message, a whole binary one, or a control frame.
Received = str | bytes | Ping | Pong | Close

# Plain integers: to look one up in an enumeration costs as much as the rest of a check.
_TEXT, _BINARY, _CLOSE, _PING, _PONG = 1, 2, 8, 9, 10
_FIN = _MASKED = 0x80
_RESERVED_BITS = 0x70
_CONTROL_MAX = 125  # bytes
_UNLIMITED = 1 << 64  # bytes; more than any frame can declare

_medium_header = Struct("!BBH").pack
_long_header = Struct("!BBQ").pack
_utf8_decoder = codecs.getincrementaldecoder("utf-8")


def check_close_code(code: int) -> None:
    """Raise ValueError unless `code` may stand in a close frame (RFC 6455 section 7.4, IANA's registry)."""
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise ValueError(f"{code} is no close code that may be sent")


def encode(opcode: int, payload: bytes, *, masked: bool, fin: bool = True) -> bytes:
    """One frame.

    ValueError for a reserved opcode, and for a control frame that is over 125 bytes or not final.
    """
    if Opcode(opcode) >= Opcode.CLOSE and not (fin and len(payload) <= _CONTROL_MAX):
        raise ValueError(f"a control frame is final and at most {_CONTROL_MAX} bytes long")
    return _frame(opcode | _FIN if fin else opcode, payload, masked)


def encode_message(body: str | bytes, *, masked: bool) -> bytes:
    """A whole message in one frame: text for `str`, binary for `bytes`.

    UnicodeEncodeError (a ValueError) for a lone surrogate.
    """
    if isinstance(body, str):
        return _frame(_FIN | _TEXT, body.encode(), masked)
    return _frame(_FIN | _BINARY, body, masked)


def encode_close(code: int | None, reason: str, *, masked: bool) -> bytes:
    """A close frame; a `code` of None sends none.

    ValueError for a code that may not be sent, a reason of more than 123 bytes, or a reason without a code.
    """
    if code is None:
        if reason:
            raise ValueError("a close reason needs a code")
        return encode(Opcode.CLOSE, b"", masked=masked)
    check_close_code(code)
    payload = code.to_bytes(2, "big") + reason.encode()
    if len(payload) > _CONTROL_MAX:
        raise ValueError(f"a close reason is at most {_CONTROL_MAX - 2} bytes long in UTF-8")
    return encode(Opcode.CLOSE, payload, masked=masked)


def _frame(first: int, payload: bytes, masked: bool) -> bytes:
    size = len(payload)
    bit = _MASKED if masked else 0
    if size < 126:
        header = bytes((first, bit | size))
    elif size < 65536:
        header = _medium_header(first, bit | 126, size)
    else:
        header = _long_header(first, bit | 127, size)
    if not masked:
        return header + payload
    key = new_key()
    return b"".join((header, key, apply_mask(payload, key)))


class Decoder:
    """The bytes that one peer sends, as messages and control frames in their order.

    `expect_masked` is True for a server's decoder. `max_size` is the size in bytes, inclusive, that a whole
    message may have; it is judged by a frame's header, before any of its payload is kept; None sets no limit.
    After a close frame or an error the decoder is done: whatever else is fed is ignored.
    """

    def __init__(self, *, expect_masked: bool, max_size: int | None) -> None:
        self._mask_bit = _MASKED if expect_masked else 0
        self._max_size = _UNLIMITED if max_size is None else max_size
        # What was fed: the chunk in work, how far it is read, and those behind it. Two are joined only where
        # one ends within a header or control frame, so that feeding costs the same however much is in store.
        self._data, self._at = b"", 0
        self._chunks: deque[bytes] = deque()
        self._starved = True  # nothing more can be done with the bytes at hand
        self._done = False
        self._error: ProtocolError | None = None  # found behind items that were returned
        # The message of which a part came: whether there is one, its body, the size of its frames so far.
        self._inside = False
        self._body: StringIO | BytesIO = BytesIO()
        self._size = 0
        self._utf8 = _utf8_decoder()  # refuses bad text as soon as it comes, wherever it is cut
        # The data frame of which a part came: the bytes to come, their key, whether it ends the message.
        self._left, self._key, self._fin = 0, b"", True

    @property
    def has_more(self) -> bool:
        """Whether `take` can do more without more bytes.

        After a `take` that reached its limit it may be True for a cut frame; the next `take` settles that.
        """
        if self._error is not None:
            return True
        return not self._starved and (self._at < len(self._data) or bool(self._chunks))

    def feed(self, data: bytes) -> None:
        """Append received bytes; they are kept, not copied."""
        if self._done:
            return
        if self._at == len(self._data) and not self._chunks:
            self._data, self._at = data, 0
        else:
            self._chunks.append(data)
        self._starved = False

    def take(self, limit: int = 500) -> list[Received]:
        """What the bytes so far mean, after at most `limit` frames; a fragment counts as a frame.

        Raises ProtocolError or MessageTooBig, once; if good items stood before the fault, they are returned,
        and the next call raises.
        """
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        items: list[Received] = []
        try:
            self._take(items, limit)
        except ProtocolError as error:
            self._finish()
            if not items:
                raise
            self._error = error.with_traceback(None)
        return items

    def _take(self, items: list[Received], limit: int) -> None:
        while limit > 0 and not self._done:
            if not self._inside:
                before = len(items)
                self._take_whole(items, limit)
                limit -= len(items) - before
                if self._at == len(self._data) and not self._chunks:
                    return
            if limit > 0:
                if self._take_piece(items) if self._left else self._take_frame(items):
                    limit -= 1
                elif not self._next_chunk():
                    return

    def _next_chunk(self) -> bool:
        if not self._chunks:
            self._starved = True
            return False
        self._data, self._at = self._data[self._at :] + self._chunks.popleft(), 0
        return True

    def _finish(self) -> None:
        self._done = True
        self._data, self._at, self._body = b"", 0, BytesIO()
        self._chunks.clear()

    def _take_whole(self, items: list[Received], limit: int) -> None:
        """Take messages of one whole frame, the hot path; what else it meets it leaves to `_take_frame`."""
        data, at, end = self._data, self._at, len(self._data)
        mask_bit, max_size, append = self._mask_bit, self._max_size, items.append
        try:
            for _ in range(limit):
                first = data[at]
                size = data[at + 1] ^ mask_bit
                start = at + 2
                if size > 125:
                    if size != 126:
                        break
                    size = data[start] << 8 | data[at + 3]
                    if size < 126:
                        break
                    start = at + 4
                if mask_bit:
                    start += 4
                stop = start + size
                if stop > end or size > max_size:
                    break
                payload = data[start:stop]
                if mask_bit:
                    payload = apply_mask(payload, data[start - 4 : start])
                if first == 0x81:
                    append(payload.decode())
                elif first == 0x82:
                    append(payload)
                else:
                    break
                at = stop
                if at == end:
                    break
        except (IndexError, UnicodeDecodeError):
            pass  # a header is cut, or text is bad: the careful path finds it again
        self._at = at

    def _take_frame(self, items: list[Received]) -> bool:
        """Take the next frame, or the start of a data frame; False if the bytes do not reach."""
        data, at, end = self._data, self._at, len(self._data)
        start = at + 2
        if start > end:
            return False
        first, second = data[at], data[at + 1]
        opcode, size = first & 0x0F, second & 0x7F
        self._check_start(first, second)
        if size > 125:
            start += 2 if size == 126 else 8
            if start > end:
                return False
            size = _length(data[at + 2 : start])
        if opcode < _CLOSE and self._size + size > self._max_size:
            raise MessageTooBig(self._size + size, self._max_size)
        key = b""
        if self._mask_bit:
            key = data[start : start + 4]
            start += 4
        if start > end or (opcode >= _CLOSE and start + size > end):
            return False
        self._at = start
        if opcode < _CLOSE:
            if opcode:
                self._inside = True
                self._body = StringIO() if opcode == _TEXT else BytesIO()
            self._size += size
            self._left, self._key, self._fin = size, key, first >= _FIN
            self._take_piece(items)
        else:
            self._at += size
            payload = data[start : self._at]
            items.append(_CONTROLS[opcode](apply_mask(payload, key) if key else payload))
            if opcode == _CLOSE:
                self._finish()
        return True

    def _check_start(self, first: int, second: int) -> None:
        """Raise ProtocolError for a fault in the first two bytes of a frame."""
        opcode = first & 0x0F
        if first & _RESERVED_BITS:
            raise ProtocolError("a reserved bit is set, and no extension was agreed on")
        if second & _MASKED != self._mask_bit:
            raise ProtocolError("a frame is not masked" if self._mask_bit else "a frame is masked")
        if _BINARY < opcode < _CLOSE or opcode > _PONG:
            raise ProtocolError(f"opcode {opcode} is reserved")
        if opcode >= _CLOSE:
            if first < _FIN:
                raise ProtocolError("a control frame is fragmented")
            if second & 0x7F > _CONTROL_MAX:
                raise ProtocolError(f"a control frame is over {_CONTROL_MAX} bytes long")
        elif opcode and self._inside:
            raise ProtocolError("a message begins inside another one")
        elif not opcode and not self._inside:
            raise ProtocolError("a continuation frame continues nothing")

    def _take_piece(self, items: list[Received]) -> bool:
        """Take what there is of the present data frame; False if that is nothing."""
        piece = self._data[self._at : self._at + self._left]
        self._at += len(piece)
        self._left -= len(piece)
        ends = self._fin and not self._left
        if self._key:
            turn = len(piece) & 3
            piece, self._key = apply_mask(piece, self._key), self._key[turn:] + self._key[:turn]
        body = self._body
        if isinstance(body, StringIO):
            body.write(_decode(self._utf8, piece, ends))
        else:
            body.write(piece)
        if ends:
            items.append(body.getvalue())
            self._inside, self._body, self._size = False, BytesIO(), 0
        return bool(piece)


def _length(field: bytes) -> int:
    """The extended length, in bytes, that `field` says."""
    size = int.from_bytes(field, "big")
    if size >> 63:
        raise ProtocolError("the top bit of a 64-bit length is set")
    if size < (126 if len(field) == 2 else 65536):
        raise ProtocolError("a length is not written in the shortest way")
    return size


def _close(payload: bytes) -> Close:
    if not payload:
        return Close(1005, "")
    if len(payload) == 1:
        raise ProtocolError("a close frame has half a code")
    code = int.from_bytes(payload[:2], "big")
    try:
        check_close_code(code)
    except ValueError:
        raise ProtocolError(f"a close frame has the code {code}") from None
    return Close(code, _decode(_utf8_decoder(), payload[2:], True))


def _decode(decoder: codecs.IncrementalDecoder, data: bytes, final: bool) -> str:
    try:
        text = decoder.decode(data, final)
        # Of a surrogate, which UTF-8 cannot hold, the decoder waits for the third byte; the second tells it.
        kept = decoder.getstate()[0]
        if kept[:1] != b"\xed" or kept[1:] < b"\xa0":
            return text
        reason = "a surrogate"
    except UnicodeDecodeError as exc:
        reason = exc.reason
    # Outside the except block: as a context that error would carry the payload into logs.
    raise ProtocolError(f"text is not UTF-8: {reason}", 1007)


_CONTROLS: dict[int, Callable[[bytes], Ping | Pong | Close]] = {_CLOSE: _close, _PING: Ping, _PONG: Pong}
