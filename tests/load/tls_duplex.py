"""Many messages each way at once over one TLS connection: does every one get its reply, and what does that take?

    python -m tests.load.tls_duplex [--client evtws|evtws-unlocked|websocket-client] [--messages 200000]

Two threads that read and write one SSLSocket corrupt the TLS stream (cpython#77271), so this is what evtws's lock is
for: `evtws-unlocked` is evtws with that lock replaced by one that locks nothing, and `websocket-client` is the bare
library with a reader and a sender thread. Prints a row of a table; ends 0 if every message had its reply and there
was no error, else 1, or by whatever signal OpenSSL dies of. The server, an echo, is a process of its own.
"""

from __future__ import annotations

import argparse
import platform
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trustme
import websocket

import evtws
from evtws.testing import Server
from evtws.transport import Transport
from tests.timing import MS

#: The threads that send at once.
SENDERS = 4

#: The requests in flight of one of them.
WINDOW = 256

#: How long one message may take, in seconds.
PATIENCE = 20_000 * MS

#: Every so many messages there is a large one, which no single read or write takes.
LARGE_EVERY, LARGE = 20, 100_000


def body_of(sender: int, number: int) -> str:
    """The message with that number; the first twelve characters tell it from all others."""
    size = LARGE if number % LARGE_EVERY == LARGE_EVERY - 1 else number * 7919 % 300
    return f"{sender:02}{number:010}{'x' * size}"


def key_of(message: evtws.Message) -> str | bytes:
    """A `match_key`: what tells a message from all others."""
    return message.body[:12]


class Tally:
    """What came and what went wrong; from any thread."""

    def __init__(self) -> None:
        # Guards what follows.
        self._lock = threading.Lock()
        self.replies = 0
        self.errors: list[str] = []
        #: Something went wrong, and nobody need go on.
        self.failed = threading.Event()

    def replied(self) -> None:
        """Another reply came, and it is the right one."""
        with self._lock:
            self.replies += 1

    def fail(self, error: object) -> None:
        """Something went wrong."""
        if isinstance(error, evtws.SlowUserCode):
            return  # a busy machine
        with self._lock:
            self.errors.append(f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error))
        self.failed.set()

    def guarded(self, function: Callable[..., object]) -> Callable[..., None]:
        """The same function, with what it raises told here."""

        def run(*arguments: Any) -> None:
            try:
                function(*arguments)
            except Exception as exc:
                self.fail(exc)

        return run


def run_together(tally: Tally, *tasks: tuple[Callable[..., object], tuple[Any, ...]]) -> None:
    """Run these functions, each in a thread, and wait until all have returned."""
    threads = [threading.Thread(target=tally.guarded(task), args=arguments, daemon=True) for task, arguments in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- evtws


def with_evtws(url: str, context: ssl.SSLContext, messages: int, tally: Tally) -> None:
    """The load on one Connection: SENDERS threads, each with its window of Futures."""
    connection = evtws.Connection(
        ssl=context,
        match_key=key_of,
        on_message=lambda message, _: tally.fail(f"nobody asked for {key_of(message)!r}"),
        on_error=tally.fail,
        request_timeout=PATIENCE,
    )
    connection.dial(url)
    with connection:
        share = messages // SENDERS
        run_together(tally, *((_send_with_evtws, (connection, sender, share, tally)) for sender in range(SENDERS)))


def _send_with_evtws(connection: evtws.Connection, sender: int, messages: int, tally: Tally) -> None:
    window: deque[tuple[str, Future[evtws.Message]]] = deque()
    for number in range(messages):
        if tally.failed.is_set():
            return
        body = body_of(sender, number)
        window.append((body, connection.submit(body)))
        if len(window) == WINDOW:
            _check(*window.popleft(), tally)
    for asked in window:
        _check(*asked, tally)


def _check(body: str, future: Future[evtws.Message], tally: Tally) -> None:
    reply = future.result(2 * PATIENCE).body
    if reply != body:
        raise ValueError(f"{body[:12]} was answered by {reply[:12]!r}, {len(reply)} long")
    tally.replied()


class NoLock:
    """What stands in for the transport's lock, and locks nothing."""

    def locked(self) -> bool:
        """False, even to whoever holds it."""
        return False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        pass


def with_evtws_unlocked(url: str, context: ssl.SSLContext, messages: int, tally: Tally) -> None:
    """The same load, with the transport's lock replaced by one that locks nothing."""
    make = Transport.__init__

    def make_unlocked(self: Any, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        self._door._lock = NoLock()

    Transport.__init__ = make_unlocked  # type: ignore[method-assign]
    with_evtws(url, context, messages, tally)


# -- websocket-client


def with_websocket_client(url: str, context: ssl.SSLContext, messages: int, tally: Tally) -> None:
    """The same messages on a bare websocket-client, one thread sending and one receiving."""
    # Its own check of the text, in Python, would take most of the time.
    connection: Any = websocket.create_connection(url, PATIENCE, sslopt={"context": context}, skip_utf8_validation=True)
    try:
        run_together(tally, (_send_bare, (connection, messages, tally)), (_receive_bare, (connection, messages, tally)))
    finally:
        connection.shutdown()


def _send_bare(connection: Any, messages: int, tally: Tally) -> None:
    for number in range(messages):
        if tally.failed.is_set():
            return
        connection.send(body_of(number % SENDERS, number // SENDERS))


def _receive_bare(connection: Any, messages: int, tally: Tally) -> None:
    for number in range(messages):
        body = connection.recv()
        if body != body_of(number % SENDERS, number // SENDERS):
            raise ValueError(f"reply {number} is {body[:12]!r}, {len(body)} long")
        tally.replied()


CLIENTS = {
    "evtws": with_evtws,
    "evtws-unlocked": with_evtws_unlocked,
    "websocket-client": with_websocket_client,
}


# -- the server


def serve(certificate: str) -> None:
    """Echo over TLS, as the file says, until standard input ends; prints the URL first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Server(lambda client, body: client.send(body), ssl=context, record=False) as server:
        print(server.url, flush=True)
        sys.stdin.read()


@contextmanager
def echo_server(certificate: trustme.LeafCert) -> Iterator[str]:
    """A process that echoes with this certificate; yields its URL."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "server.pem")
        certificate.private_key_and_cert_chain_pem.write_to_path(file)
        command = [sys.executable, "-m", "tests.load.tls_duplex", "--serve", str(file)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield process.stdout.readline().strip()
            finally:
                process.stdin.close()
                try:
                    process.wait(PATIENCE)
                finally:
                    process.kill()


def measure(client: str, messages: int) -> tuple[Tally, float]:
    """Put the load on that client; what came of it, and the seconds that it took."""
    authority, tally = trustme.CA(), Tally()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with echo_server(authority.issue_cert("127.0.0.1")) as url:
        before = time.perf_counter()
        try:
            CLIENTS[client](url, context, messages, tally)
        except Exception as exc:
            tally.fail(exc)
        return tally, time.perf_counter() - before


def main() -> int:
    """What the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="tls_duplex", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--client", choices=CLIENTS, default="evtws")
    parser.add_argument("--messages", type=int, default=200_000, help="each way")
    parser.add_argument("--serve", metavar="CERTIFICATE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        serve(options.serve)
        return 0
    tally, seconds = measure(options.client, options.messages)
    first = tally.errors[0] if tally.errors else ""
    print(
        f"| Python {platform.python_version():7} | {options.client:16} | {tally.replies:7,} of {options.messages:7,} "
        f"| {len(tally.errors):4} errors | {seconds:6.1f} s | {first[:100]} |"
    )
    return int(bool(tally.errors) or tally.replies != options.messages)


if __name__ == "__main__":
    sys.exit(main())
