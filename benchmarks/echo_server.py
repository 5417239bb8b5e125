"""A fast echo server in a process of its own: picows on uvloop.

It answers a text message with the same text, but for three kinds:

* one that holds `"silent":true` gets no answer, ever;
* `push N` gets N events of 130 bytes, as fast as the peer takes them;
* `bye` gets a close frame, so that a client whose reader thread sits in `recv()` ends of itself.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

#: Events that are written at once: together less than the transport's default high-water mark, 64 KiB.
BATCH = 400

EVENT_SIZE = 130
_EVENT = b'{"event":"tick","payload":"' + b"x" * (EVENT_SIZE - 29) + b'"}'
_FRAME = bytes((0x81, 126)) + EVENT_SIZE.to_bytes(2, "big") + _EVENT


@contextmanager
def echo_server() -> Iterator[str]:
    """The URL of an echo server that lives as long as this context.

    Raises RuntimeError when it does not start: the extra `evtws[bench]` has what it needs.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.echo_server"],
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


def _serve() -> None:
    # Imported here, because the clients' process needs neither.
    import picows
    import uvloop

    text, close = picows.WSMsgType.TEXT, picows.WSMsgType.CLOSE

    class Echo(picows.WSListener):
        """One client's connection."""

        def __init__(self) -> None:
            self._to_push = 0
            self._paused = False

        def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
            if frame.msg_type == close:
                transport.send_close(picows.WSCloseCode.OK)
                transport.disconnect()
            elif frame.msg_type == text:
                self._on_text(transport, frame.get_payload_as_bytes())

        def _on_text(self, transport: picows.WSTransport, body: bytes) -> None:
            if body.startswith(b"push "):
                self._to_push += int(body[5:])
                self._push(transport)
            elif body == b"bye":
                transport.send_close(picows.WSCloseCode.OK)
            elif b'"silent":true' not in body:
                transport.send(text, body)

        def _push(self, transport: picows.WSTransport) -> None:
            """Write the next batch of events and come back for the rest, or wait while the peer is behind."""
            if self._paused or not self._to_push or transport.is_disconnected:
                return
            count = min(BATCH, self._to_push)
            self._to_push -= count
            # Ready-made frames, because a send() each would be a system call each.
            transport.underlying_transport.write(_FRAME * count)
            asyncio.get_running_loop().call_soon(self._push, transport)

        def on_ws_connected(self, transport: picows.WSTransport) -> None:
            self._transport = transport

        def pause_writing(self) -> None:
            self._paused = True

        def resume_writing(self) -> None:
            self._paused = False
            self._push(self._transport)

    async def main() -> None:
        server = await picows.ws_create_server(lambda request: Echo(), "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        # The parent's end of the pipe closes with it, however it ends.
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        server.close()

    gc.disable()
    uvloop.install()
    asyncio.run(main())


if __name__ == "__main__":
    _serve()
