"""Scripts for the kit's RawServer, and what a process has open."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable

from evtws.testing import RawConnection

Script = Callable[[RawConnection], object]


def descriptors() -> int:
    """How many file descriptors this process has open; 0 where that cannot be told."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def closed_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def upgrading(*headers: str) -> Script:
    """A script that accepts the upgrade, and then only listens."""

    def script(peer: RawConnection) -> None:
        peer.upgrade(*headers)
        peer.hold()

    return script


def refusing(*lines: str, body: bytes = b"") -> Script:
    """A script that answers with a status line and headers, and then only listens."""

    def script(peer: RawConnection) -> None:
        peer.answer(*lines, body=body)
        peer.hold()

    return script
