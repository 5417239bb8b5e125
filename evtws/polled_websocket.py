"""PolledWebSocket: an opened websocket, either role, that does a bounded amount of work each time it is polled."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import NamedTuple

from .errors import ConnectionClosed, ConnectionLost, ProtocolError
from .frames import Close, Decoder, Opcode, Ping, Received, encode, encode_close, encode_message
from .nonblocking import NonBlockingSocket

#: How often one `exchange` reads at most, and how many frames it takes, so that a fast peer cannot hold its caller:
#: so many small frames take about a millisecond.
READS = 4
FRAMES = 256
#: Seconds that the peer is given to end TCP once close frames went both ways; it should do so at once.
FAREWELL = 1.0


class Packet(NamedTuple):
    """One message: its bytes, and whether it was text."""

    body: bytes
    is_text: bool


class Inbox:
    """The packets that wait to be taken: full at `max_packets` packets, or at `max_bytes` bytes of them."""

    def __init__(self, max_packets: int, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._max_packets = max_packets
        self._packets: deque[Packet] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._packets)

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be read."""
        return len(self._packets) >= self._max_packets or self._bytes >= self.max_bytes

    def put(self, body: str | bytes) -> None:
        """Append a message."""
        packet = Packet(body.encode() if isinstance(body, str) else body, isinstance(body, str))
        self._packets.append(packet)
        self._bytes += len(packet.body)

    def get(self) -> Packet:
        """Take the oldest one. Raises IndexError if there is none."""
        packet = self._packets.popleft()
        self._bytes -= len(packet.body)
        return packet


class PolledWebSocket:
    """A websocket over `stream`, of which `rest` was read already; what comes goes to `inbox`.

    It lives until `over`; `error` is what ended it then, a ConnectionClosed if that was a close frame of the peer's.
    """

    def __init__(self, stream: NonBlockingSocket, rest: bytes, inbox: Inbox, *, is_server: bool) -> None:
        self._stream = stream
        self._inbox = inbox
        self._is_server = is_server
        self._decoder = Decoder(expect_masked=is_server, max_size=inbox.max_bytes)
        self._decoder.feed(rest)
        #: Whether the socket is closed.
        self.over = False
        self.error: ConnectionLost | None = None
        #: The peer's close frame, or None.
        self.close_frame: Close | None = None
        #: When the patience with a peer that is to end ends (monotonic seconds); infinite: nobody waits for that.
        self.give_up_at = math.inf
        self._close_sent = False
        # What ends it, found behind packets that its owner may still want to answer.
        self._last: Close | ProtocolError | None = None
        self._parting = False  # nothing counts any more but the end of the stream
        self._said_goodbye = False
        self._pong: bytes | None = None
        self._frames_left = FRAMES
        # How many bytes had been queued when each packet was that is not written whole yet.
        self._ends: deque[int] = deque()
        self._queued = 0

    # -- what its caller waits for

    def fileno(self) -> int:
        """The socket's descriptor; -1 once it is closed."""
        return self._stream.sock.fileno()

    @property
    def wants_read(self) -> bool:
        """Whether bytes to read are of use now."""
        return not self.over and (self._parting or not self._inbox.is_full)

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait for room."""
        return bool(self._stream.unsent)

    @property
    def has_more(self) -> bool:
        """Whether there is something to do although the descriptor tells nothing."""
        if self._last is not None:
            return not self.over
        return self.wants_read and (self._decoder.has_more or self._stream.pending > 0)

    # -- out

    @property
    def unsent(self) -> int:
        """Bytes that were accepted and that the operating system has not taken yet."""
        return len(self._stream.unsent)

    @property
    def unsent_packets(self) -> int:
        """Packets of which some bytes are among those."""
        written = self._queued - self.unsent
        while self._ends and self._ends[0] <= written:
            self._ends.popleft()
        return len(self._ends)

    def send(self, body: str | bytes) -> None:
        """Write a message, as far as the operating system takes it now."""
        self._write(encode_message(body, masked=not self._is_server))
        self._ends.append(self._queued)
        self._flush()

    def close(self, code: int | None, reason: str, give_up_at: float) -> None:
        """Write a close frame behind all that was sent. Raises ValueError for one that may not be sent."""
        frame = encode_close(code, reason, masked=not self._is_server)
        if not self._close_sent:
            self._write(frame)
            self._close_sent = True
            self.give_up_at = give_up_at
            self._flush()

    def abort(self, error: ConnectionLost | None) -> None:
        """Close the socket at once, without a word to the peer."""
        if not self.over:
            self.over, self.error = True, error
            self._stream.unsent.clear()
            self._stream.close()

    def _write(self, frame: bytes) -> None:
        self._stream.unsent += frame
        self._queued += len(frame)

    def _flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._stream.unsent.clear()  # reading finds out why; the peer's close frame may be there
        if self._pong is not None and not self._stream.unsent and not self._close_sent:
            # Of several pings that came meanwhile the newest is answered (RFC 6455 section 5.5.3).
            pong, self._pong = self._pong, None
            self._write(encode(Opcode.PONG, pong, masked=not self._is_server))
            self._flush()

    # -- both ways

    def exchange(self) -> None:
        """Write and read what can be written and read now, within a bound.

        A close frame or a fault that came behind packets is left to the next exchange: until then they can be answered.
        """
        if self.over:
            return
        self._flush()
        waiting = len(self._inbox)
        try:
            if self._parting:
                self._read_to_the_end()
            elif self._last is None:
                self._read()
        except ConnectionLost as error:
            self.abort(self.error or error)
        if self._last is not None and len(self._inbox) == waiting:
            self._end_by(self._last)
        if self._parting and not self.wants_write:
            self._say_goodbye()
        if time.monotonic() >= self.give_up_at:
            self.abort(self.error or ConnectionLost("the peer did not answer the close frame in time"))

    def _read(self) -> None:
        self._frames_left = FRAMES
        for _ in range(READS):
            if not self._take():
                return
            data = self._stream.read()
            if data is None:
                return
            if not data:
                raise ConnectionLost("the peer ended the connection without a close frame")
            self._decoder.feed(data)
        self._take()

    def _take(self) -> bool:
        """Handle what was read, as long as there is room and within the bound; whether to read on."""
        while self._decoder.has_more and self._last is None:
            if self._inbox.is_full or not self._frames_left:
                return False
            self._frames_left -= 1
            try:
                for item in self._decoder.take(1):
                    self._handle(item)
            except ProtocolError as error:
                self._last = error
        return self._last is None and not self._inbox.is_full

    def _handle(self, item: Received) -> None:
        if isinstance(item, (str, bytes)):
            self._inbox.put(item)
        elif isinstance(item, Ping):
            self._pong = item.payload
            self._flush()
        elif isinstance(item, Close):
            self._last = item

    # -- the end

    def _end_by(self, last: Close | ProtocolError) -> None:
        """Answer the close frame, or the fault by one, and wait for the end of the stream."""
        self._last = None
        if isinstance(last, Close):
            self.close_frame = last
            self.close(None if last.code == 1005 else last.code, last.reason, math.inf)
            self._part(ConnectionClosed(last.code, last.reason, by_peer=True))
        else:
            self.close(last.code, "", math.inf)
            self._part(last)

    def _part(self, error: ConnectionLost) -> None:
        self.error = error
        self._parting = True
        self.give_up_at = time.monotonic() + FAREWELL

    def _say_goodbye(self) -> None:
        """End our side of the stream, once all is written; a client leaves it to the server to be the first."""
        if not self._said_goodbye and (self._is_server or self.close_frame is None):
            self._said_goodbye = True
            self._stream.say_goodbye()
            self._stream.end_writing()

    def _read_to_the_end(self) -> None:
        """Read into nothing: bytes that lie unread when a socket is closed take our last ones from the peer."""
        for _ in range(READS):
            data = self._stream.read()
            if data is None:
                return
            if not data:
                self.abort(self.error)
                return
