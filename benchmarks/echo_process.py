"""The process of the echo server: see echo_server. Ends when its standard input does."""

from __future__ import annotations

import asyncio
import gc
import sys

import picows
import uvloop

from .echo_server import BATCH, EVENT_SIZE

_EVENT = b'{"event":"tick","payload":"' + b"x" * (EVENT_SIZE - 29) + b'"}'
_FRAME = bytes((0x81, 126)) + EVENT_SIZE.to_bytes(2, "big") + _EVENT


class Echo(picows.WSListener):
    """One client's connection."""

    def __init__(self) -> None:
        self._to_push = 0
        self._paused = False

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == picows.WSMsgType.CLOSE:
            transport.send_close(picows.WSCloseCode.OK)
            transport.disconnect()
        elif frame.msg_type == picows.WSMsgType.TEXT:
            self._on_text(transport, frame.get_payload_as_bytes())

    def _on_text(self, transport: picows.WSTransport, body: bytes) -> None:
        if body.startswith(b"push "):
            self._to_push += int(body[5:])
            self._push(transport)
        elif body == b"bye":
            transport.send_close(picows.WSCloseCode.OK)
        elif b'"silent":true' not in body:
            transport.send(picows.WSMsgType.TEXT, body)

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


if __name__ == "__main__":
    gc.disable()
    uvloop.install()
    asyncio.run(main())
