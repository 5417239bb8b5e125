"""NonBlockingSocket: one TCP connection, perhaps under TLS, that never blocks. Used by one thread alone."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import struct

_CHUNK = 65536
_WRITES_PER_FLUSH = 16  # a peer that reads fast must not keep the others waiting
_RECORDS_PER_READ = 16  # a TLS read gives one record, and a record is often one small message


class NonBlockingSocket:
    """A socket with a write buffer; whatever goes wrong on it reads as its end.

    It is plain TCP, or an SSLSocket whose handshake may still be to be done, or with a server's `context` is made
    one. `unsent` is what waits to be written, and `wants` the selector events that the TLS handshake waits for.
    Raises OSError, and leaves the socket to the caller, if the peer is gone already.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext | None = None) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            sock.getpeername()  # wrap_socket would lose the socket if the peer were gone
            sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self.sock = sock
        self.unsent = bytearray()
        self.wants = selectors.EVENT_READ
        self.secure = not isinstance(sock, ssl.SSLSocket)
        self._reads = 1 if self.secure else _RECORDS_PER_READ

    def secured(self) -> bool:
        """Take the TLS handshake as far as it goes; whether it is complete. Raises OSError when it fails."""
        assert isinstance(self.sock, ssl.SSLSocket)
        try:
            self.sock.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as exc:
            wants_write = isinstance(exc, ssl.SSLWantWriteError)
            self.wants = selectors.EVENT_WRITE if wants_write else selectors.EVENT_READ
            return False
        return True

    @property
    def pending(self) -> int:
        """Bytes that can be read although the descriptor does not say so: TLS has decrypted them already."""
        return self.sock.pending() if isinstance(self.sock, ssl.SSLSocket) else 0

    def read(self) -> bytes | None:
        """What can be read now, None if nothing, b"" at the end."""
        # A chunk is larger than a TLS record (16 KiB): nothing decrypted stays behind unseen in OpenSSL.
        chunks: list[bytes] = []
        try:
            while len(chunks) < self._reads and (not chunks or chunks[-1]):
                chunks.append(self.sock.recv(_CHUNK))
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return b"".join(chunks) or None
        except OSError:
            pass
        return b"".join(chunks)

    def flush(self) -> None:
        """Write what the kernel takes now. Raises OSError when the connection is broken."""
        try:
            for _ in range(_WRITES_PER_FLUSH):
                if not self.unsent:
                    return
                # Both views are given back at once: one that a traceback held would forbid to change `unsent`.
                with memoryview(self.unsent) as view, view[:_CHUNK] as chunk:
                    sent = self.sock.send(chunk)
                del self.unsent[:sent]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass

    def say_goodbye(self) -> None:
        """Send TLS's close_notify, where there is TLS."""
        if isinstance(self.sock, ssl.SSLSocket):
            try:
                self.sock.unwrap()
            except (OSError, ValueError):
                pass  # the usual SSLWantReadError: the alert is sent, the peer's own is not awaited

    def end_writing(self) -> None:
        """Send a FIN."""
        try:
            # SSLSocket.shutdown would forget TLS, and what is read afterwards would be ciphertext.
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
        except OSError:
            pass

    def close(self, *, reset: bool = False) -> None:
        """Close the socket; with `reset` by an RST, which also throws away what is under way."""
        if reset:
            with contextlib.suppress(OSError):  # closed already; or, on macOS, reset by the peer
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
