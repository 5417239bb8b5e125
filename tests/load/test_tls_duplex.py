"""The load of tls_duplex.py, a tenth of it; all of it where EVTWS_FULL is set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.timing import MS

MESSAGES = 200_000 if os.environ.get("EVTWS_FULL") else 20_000

#: The longest that a run may take, in seconds: 20 for all messages on two cores.
PATIENCE = 300_000 * MS

ROOT = Path(__file__).parents[2]


def put_on(client: str) -> subprocess.CompletedProcess[str]:
    """The load on that client, in a process of its own, since OpenSSL may end it."""
    command = [sys.executable, "-W", "error", "-m", "tests.load.tls_duplex", "--client", client]
    command += ["--messages", str(MESSAGES)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)


def test_every_message_has_its_reply() -> None:
    """Messages each way at once, from four threads over TLS, all have their reply, and there is no error."""
    run = put_on("evtws")
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_lock_is_what_keeps_the_stream_whole() -> None:
    """With the transport's lock replaced by one that locks nothing the same load fails."""
    run = put_on("evtws-unlocked")
    assert run.returncode != 0, run.stdout
