"""WebSocketPeer: a websocket that its owner polls, client or server, with the names of Godot's class.

It emits nothing and starts no thread: whoever has a loop of his own (a game, a GUI's timer, a selector) calls `poll`,
and looks at what has come. No call ever blocks. The one deviation from Godot's `WebSocketPeer` (4.x, its class
reference): where that returns an error number, this raises.

    peer = WebSocketPeer()
    peer.connect_to_url("wss://example.com/game")
    while peer.get_ready_state() != peer.STATE_CLOSED:
        peer.poll()
        while peer.get_available_packet_count():
            print(peer.get_packet())
        ...  # the next frame of the game
    print(peer.get_close_code(), peer.get_close_reason())
"""

from __future__ import annotations

import math
import os
import socket
import ssl as tls
import time
from collections.abc import Sequence
from enum import IntEnum

from .errors import ConnectionLost, DialError, DialTimeout, EvtwsError, NotConnected, OutboxFull
from .frames import Close, encode_close
from .polled_opening import Opened, Opening, Want, client_context, open_client, open_server, peer_of
from .polled_websocket import Inbox, PolledWebSocket
from .state import Signal, State, transition
from .target import check_headers, check_subprotocols, parse_url

Buffer = bytes | bytearray | memoryview


class WriteMode(IntEnum):
    """How `send` sends bytes (Godot's numbers)."""

    TEXT = 0
    BINARY = 1


class WebSocketPeer:
    """A websocket that is polled. Not for several threads at once.

    These are to be set before `connect_to_url` or `accept_stream`; the defaults are Godot's:

    `handshake_headers`: more headers of the upgrade, each as "Name: value". `supported_protocols`: the subprotocols
    that a client offers, or a server chooses from, the favourite first. `inbound_buffer_size`: bytes of packets that
    may wait to be got, and of one message; a larger message closes the connection with 1009. `outbound_buffer_size`:
    bytes that may wait to be written. `max_queued_packets`: packets that may wait, either way. While the inbound queue
    is full nothing is read; what the outbound one has no room for is refused.

    And of evtws: `handshake_timeout`, the seconds that the opening may take, and `close_timeout`, those that the peer
    has to answer a close frame (10 and 5, as of a `Connection`; None: no limit).
    """

    STATE_CONNECTING = State.CONNECTING
    STATE_OPEN = State.OPEN
    STATE_CLOSING = State.CLOSING
    STATE_CLOSED = State.CLOSED
    WRITE_MODE_TEXT = WriteMode.TEXT
    WRITE_MODE_BINARY = WriteMode.BINARY

    def __init__(self) -> None:
        self.handshake_headers: Sequence[str] = ()
        self.supported_protocols: Sequence[str] = ()
        self.inbound_buffer_size = 65535
        self.outbound_buffer_size = 65535
        self.max_queued_packets = 2048
        self.handshake_timeout: float | None = 10.0
        self.close_timeout: float | None = 5.0
        #: What ended the connection or the attempt to open one, if that was no clean close; or None.
        self.error: EvtwsError | None = None
        self._state = State.CLOSED
        self._begin("", is_server=False)

    def _begin(self, url: str, *, is_server: bool) -> None:
        self.error = None
        self._url = url
        self._is_server = is_server
        self._opening: Opening | None = None
        self._want = Want(at=0.0)
        self._deadline = math.inf
        self._websocket: PolledWebSocket | None = None
        self._sock: socket.socket | None = None
        self._inbox = Inbox(self.max_queued_packets, self.inbound_buffer_size)
        self._last_was_text = False
        self._peer_name: tuple[str, int] = ("", 0)
        self._protocol = ""

    def __repr__(self) -> str:
        return f"<WebSocketPeer {self._state.name}, {len(self._inbox)} packets>"

    # -- opening

    def connect_to_url(
        self,
        url: str,
        verify_tls: bool = True,
        trusted_tls_certificate: str | bytes | os.PathLike[str] | None = None,
        *,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        """Begin to connect as a client; CONNECTING until a `poll` finds it open, or CLOSED with an `error`.

        `verify_tls=False` accepts any certificate. `trusted_tls_certificate` is the only authority to trust then: a
        path, or the certificate itself as PEM text or DER bytes. `ssl` is a context of one's own, and used as it is.
        A host name is resolved, and the system's authorities are loaded, by a thread that lives as long as that takes.

        Raises IllegalTransition unless CLOSED, InvalidURL, ValueError for headers or subprotocols that cannot be
        sent, ssl.SSLError or OSError for a certificate that cannot be read.
        """
        state = transition(self._state, Signal.DIAL)
        target, headers = parse_url(url), self._headers()
        check_subprotocols(self.supported_protocols)
        if ssl is None and target.secure and (trusted_tls_certificate is not None or not verify_tls):
            ssl = client_context(verify_tls, trusted_tls_certificate)
        opening = open_client(url, target, ssl, headers, tuple(self.supported_protocols))
        self._begin(url, is_server=False)
        self._start(state, opening)

    def accept_stream(self, stream: socket.socket) -> None:
        """Begin to answer a client's upgrade on a connected TCP socket, which is the peer's from now on.

        An SSLSocket may be wrapped with `do_handshake_on_connect=False`, or be through its handshake. CONNECTING until
        a `poll` finds it open, or CLOSED with an `error`. Raises IllegalTransition unless CLOSED, ValueError for
        headers or subprotocols that cannot be sent, OSError for a socket that is not connected.
        """
        state = transition(self._state, Signal.DIAL)
        headers = self._headers()
        check_subprotocols(self.supported_protocols)
        peer = peer_of(stream)
        self._begin("", is_server=True)
        self._peer_name = peer
        self._start(state, open_server(stream, headers, tuple(self.supported_protocols)))

    def _headers(self) -> list[tuple[str, str]]:
        pairs = []
        for line in self.handshake_headers:
            name, colon, value = line.partition(":")
            if not colon:
                raise ValueError(f"a header is 'Name: value', and {name!r} has no colon")
            pairs.append((name, value.strip(" \t")))
        return check_headers(pairs)

    def _start(self, state: State, opening: Opening) -> None:
        self._state = state
        self._opening = opening
        self._deadline = _from_now(self.handshake_timeout)

    # -- polling

    def poll(self) -> None:
        """Do what can be done now, within a bound: open, read, write, answer pings, close. Never blocks, never raises
        for what the peer or the network does: see the state, and `error`."""
        if self._opening is not None:
            self._open()
        if self._websocket is not None:
            self._exchange(self._websocket)

    def _open(self) -> None:
        assert self._opening is not None
        try:
            self._want = next(self._opening)
            if time.monotonic() >= self._deadline:
                raise DialTimeout("the websocket was not open within handshake_timeout")
        except StopIteration as done:
            self._opened(done.value)
        except EvtwsError as error:
            self._end(error)
        except OSError as error:
            self._end(DialError(f"the websocket could not be opened: {error.strerror or error}"))

    def _opened(self, opened: Opened) -> None:
        self._opening = None
        self._state = transition(self._state, Signal.OPENED)
        self._url, self._protocol = opened.url, opened.subprotocol or ""
        self._sock = opened.sock.sock
        self._peer_name = opened.peer
        self._websocket = PolledWebSocket(opened.sock, opened.rest, self._inbox, is_server=self._is_server)

    def _exchange(self, websocket: PolledWebSocket) -> None:
        websocket.exchange()
        if websocket.over:
            self._end(None if websocket.close_frame is not None else websocket.error)
        elif websocket.close_frame is not None or websocket.error is not None:
            self._state = State.CLOSING

    def _end(self, error: EvtwsError | None) -> None:
        """CLOSED, and everything is given back but the packets."""
        self.error = error
        self._state = State.CLOSED
        if self._opening is not None:
            self._opening.close()
            self._opening = None

    def fileno(self) -> int:
        """The descriptor to wait for, for a selector of one's own; -1 while there is none. May change until OPEN."""
        if self._state is State.CLOSED:
            return -1
        return self._want.fd if self._websocket is None else self._websocket.fileno()

    @property
    def wants_read(self) -> bool:
        """Whether to poll when there is something to read; False while the inbound queue is full."""
        if self._state is State.CLOSED:
            return False
        return self._want.read if self._websocket is None else self._websocket.wants_read

    @property
    def wants_write(self) -> bool:
        """Whether to poll when there is room to write."""
        if self._state is State.CLOSED:
            return False
        return self._want.write if self._websocket is None else self._websocket.wants_write

    @property
    def poll_within(self) -> float | None:
        """Seconds after which to poll whatever the descriptor says, maybe 0; None: no need."""
        if self._state is State.CLOSED:
            return None
        at = min(self._want.at, self._deadline) if self._websocket is None else self._websocket.give_up_at
        if self._websocket is not None and self._websocket.has_more:
            return 0.0
        return None if math.isinf(at) else max(0.0, at - time.monotonic())

    # -- the state

    def get_ready_state(self) -> State:
        """Where the connection stands: one of the four STATE_ constants. A new peer is CLOSED."""
        return self._state

    @property
    def ready_state(self) -> State:
        """The same."""
        return self._state

    # -- packets

    def get_available_packet_count(self) -> int:
        """How many packets wait to be got; also once the connection is CLOSED."""
        return len(self._inbox)

    def get_packet(self) -> bytes:
        """The oldest packet, which is taken out of the queue. Raises IndexError if none waits."""
        if not self._inbox:
            raise IndexError("no packet waits to be got")
        packet = self._inbox.get()
        self._last_was_text = packet.is_text
        return packet.body

    def was_string_packet(self) -> bool:
        """Whether the packet that was got last was text."""
        return self._last_was_text

    def put_packet(self, buffer: Buffer) -> None:
        """Send a binary message; raises as `send`."""
        self.send(buffer)

    def send(self, message: Buffer, write_mode: int = WriteMode.BINARY) -> None:
        """Send bytes, as a binary message or as text.

        Raises NotConnected unless OPEN, OutboxFull if there is no room for it, ValueError for text that is not UTF-8,
        TypeError for a `str` (see `send_text`).
        """
        if not isinstance(message, (bytes, bytearray, memoryview)):
            raise TypeError(f"a packet is bytes, not {type(message).__name__}; send_text() sends text")
        body = bytes(message)
        if WriteMode(write_mode) is WriteMode.BINARY:
            self._send(body, len(body))
            return
        try:
            text = body.decode()
        except UnicodeDecodeError as exc:
            raise ValueError(f"text must be UTF-8: {exc.reason} at byte {exc.start}") from None
        self._send(text, len(body))

    def send_text(self, message: str) -> None:
        """Send a text message; raises as `send`."""
        if not isinstance(message, str):
            raise TypeError(f"text is str, not {type(message).__name__}; send() sends bytes")
        self._send(message, len(message.encode()))

    def _send(self, body: str | bytes, size: int) -> None:
        websocket = self._websocket
        if self._state is not State.OPEN or websocket is None:
            raise NotConnected(f"the peer is {self._state.name}")
        if websocket.unsent + size > self.outbound_buffer_size:
            raise OutboxFull(f"{websocket.unsent} bytes wait to be written, and {size} more are over the limit")
        if websocket.unsent_packets >= self.max_queued_packets:
            raise OutboxFull(f"{self.max_queued_packets} packets wait to be written")
        websocket.send(body)

    def get_current_outbound_buffered_amount(self) -> int:
        """Bytes that wait to be written, frame headers and all."""
        return 0 if self._websocket is None else self._websocket.unsent

    # -- closing

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Begin to close: CLOSING until a `poll` finds it CLOSED. Does nothing when CLOSING or CLOSED already.

        While CONNECTING, or with a negative code at any time, it is CLOSED at once, without a word to the peer.
        Raises ValueError for a code that may not be sent, and for a reason of over 123 bytes of UTF-8.
        """
        if code >= 0:
            encode_close(code, reason, masked=True)  # refuses what may not be sent
        if self._state is State.CONNECTING:
            self._end(None)
        elif code < 0 and self._websocket is not None:
            self._websocket.abort(None)
            if self._state is not State.CLOSED:
                self._end(ConnectionLost("close() was called with a negative code"))
        elif self._state is State.OPEN and self._websocket is not None:
            self._state = transition(self._state, Signal.CLOSE)
            self._websocket.close(code, reason, _from_now(self.close_timeout))

    def get_close_code(self) -> int:
        """The code of the peer's close frame, 1005 if it had none; -1 if none came: it was not closed cleanly."""
        return -1 if self._close_frame is None else self._close_frame.code

    def get_close_reason(self) -> str:
        """The reason of the peer's close frame; empty if none came."""
        return "" if self._close_frame is None else self._close_frame.reason

    @property
    def _close_frame(self) -> Close | None:
        """The peer's close frame; None if none came."""
        return None if self._websocket is None else self._websocket.close_frame

    # -- who it is

    def get_connected_host(self) -> str:
        """The peer's address; empty before there is a connection."""
        return self._peer_name[0]

    def get_connected_port(self) -> int:
        """The peer's port; 0 before there is a connection."""
        return self._peer_name[1]

    def get_requested_url(self) -> str:
        """The URL that was asked for; in the server's role it is made of the request line and its Host header."""
        return self._url

    def get_selected_protocol(self) -> str:
        """The subprotocol that was agreed on; empty: none."""
        return self._protocol

    def set_no_delay(self, enabled: bool) -> None:
        """Send small packets at once (TCP_NODELAY), which is on from the start. Raises NotConnected before OPEN."""
        if self._sock is None or self._state in (State.CONNECTING, State.CLOSED):
            raise NotConnected(f"the peer is {self._state.name}")
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(enabled))


def _from_now(seconds: float | None) -> float:
    return math.inf if seconds is None else time.monotonic() + seconds
