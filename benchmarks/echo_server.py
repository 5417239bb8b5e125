"""A fast echo server in a process of its own: picows on uvloop.

It answers a text message with the same text, but for three kinds:

* one that holds `"silent":true` gets no answer, ever;
* `push N` gets N events of 130 bytes, as fast as the peer takes them;
* `bye` gets a close frame, so that a client whose reader thread sits in `recv()` ends of itself.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Events that are written at once: together less than the transport's default high-water mark, 64 KiB.
BATCH = 400

EVENT_SIZE = 130


@contextmanager
def echo_server() -> Iterator[str]:
    """The URL of an echo server that lives as long as this context.

    Raises RuntimeError when it does not start: the extra `evtws[bench]` has what it needs.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.echo_process"],
        cwd=Path(__file__).resolve().parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        if not port:
            raise RuntimeError("the echo server did not start; is evtws[bench] installed?")
        try:
            yield f"ws://127.0.0.1:{port}/"
        finally:
            process.stdin.close()
