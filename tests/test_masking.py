"""Masking: the xor of RFC 6455, and keys that nobody uses twice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from evtws import masking
from evtws.frames import Opcode, encode
from evtws.masking import apply_mask


def xor(data: bytes, key: bytes) -> bytes:
    """The masking of RFC 6455, octet by octet as the text has it."""
    return bytes(octet ^ key[i % 4] for i, octet in enumerate(data))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 125, 126, 1000, 2047, 2048, 2049, 2050, 2051, 65535, 65536])
def test_apply_mask_is_the_xor_of_the_rfc(size: int) -> None:
    """Masking is the octet-wise xor with the repeated key, at every length, and its own inverse."""
    data, key = os.urandom(size), os.urandom(4)
    assert apply_mask(data, key) == xor(data, key)
    assert apply_mask(apply_mask(data, key), key) == data


def mask_keys(count: int) -> list[bytes]:
    return [encode(Opcode.PING, b"", masked=True)[2:6] for _ in range(count)]


def test_mask_keys_differ_among_threads() -> None:
    """No key is used twice by threads that send at once (but for the chance of four random bytes)."""
    found: list[list[bytes]] = []
    threads = [threading.Thread(target=lambda: found.append(mask_keys(2000))) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    keys = [key for some in found for key in some]
    assert len(keys) == 8000
    assert len(set(keys)) >= 7990  # 8000 draws of 2**32 share one in 134 runs


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_draws_keys_of_its_own() -> None:
    """Parent and child do not send the same mask keys."""
    script = (
        "import os, sys; from evtws.frames import encode\n"
        "keys = lambda: b''.join(encode(9, b'', masked=True)[2:6] for _ in range(20)).hex()\n"
        "keys(); sys.stdout.flush(); pid = os.fork(); line = keys() + '\\n'\n"
        "os.write(1, line.encode())\n"
        "os._exit(0) if pid == 0 else os.waitpid(pid, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    mine, childs = done.stdout.split()
    assert len(mine) == len(childs) == 160
    assert mine != childs


def test_a_new_block_of_keys_is_drawn_when_one_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys come from blocks of random bytes: every four of them once, in whatever order."""
    block = bytes(range(256)) * 4
    monkeypatch.setattr(masking, "_keys", [])
    monkeypatch.setattr(os, "urandom", lambda size: block[:size])
    assert sorted(mask_keys(256)) == sorted(block[at : at + 4] for at in range(0, 1024, 4))
