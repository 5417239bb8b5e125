"""A game loop with a websocket in it: 60 frames a second, and in each of them one `poll`, which never blocks.

Give the URL of a server that pushes messages as the only argument; without one this starts a server in a process of
its own, which pushes 2,000 messages a second. Prints how long the longest poll took, beside the longest round in which
there was nothing to poll: what is as long as that was the machine's doing.
"""

import subprocess
import sys
import threading
import time

from evtws import WebSocketPeer
from evtws.testing import Server

FRAMES_A_SECOND = 60
SECONDS = 5
MESSAGES_A_SECOND = 2000


def timed_poll(peer: WebSocketPeer) -> float:
    began = time.perf_counter()
    peer.poll()
    return time.perf_counter() - began


def main(url: str) -> None:
    threads = threading.active_count()
    peer, idle = WebSocketPeer(), WebSocketPeer()
    peer.connect_to_url(url)
    packets = frames = 0
    longest = longest_idle = 0.0
    began = time.monotonic()
    while frames < FRAMES_A_SECOND * SECONDS:
        longest = max(longest, timed_poll(peer))
        longest_idle = max(longest_idle, timed_poll(idle))
        if peer.get_ready_state() == peer.STATE_CLOSED:
            print("lost:", peer.error)
            return
        while peer.get_available_packet_count():
            peer.get_packet()
            packets += 1
        frames += 1  # here the game would draw
        time.sleep(max(0.0, began + frames / FRAMES_A_SECOND - time.monotonic()))
    print(f"{frames} frames, {packets} packets")
    print(f"longest poll {longest * 1000:.2f} ms, longest empty round {longest_idle * 1000:.2f} ms")
    print(f"{threading.active_count() - threads} threads were started")
    peer.close()
    while peer.get_ready_state() != peer.STATE_CLOSED:
        peer.poll()
        time.sleep(1 / FRAMES_A_SECOND)
    print(f"closed with {peer.get_close_code()}")


def push() -> None:
    """Push to whoever is connected, until the other process is done."""
    done = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        done.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    with Server() as server:
        print(server.url, flush=True)
        began, rounds = time.monotonic(), 0
        while not done.wait(max(0.0, began + rounds / 100 - time.monotonic())):
            rounds += 1
            for client in server.connections:
                for _ in range(MESSAGES_A_SECOND // 100):
                    client.send('{"event": "moved", "x": 1, "y": 2}')


if __name__ == "__main__":
    if sys.argv[1:] == ["--push"]:
        push()
    elif len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        command = [sys.executable, __file__, "--push"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            main(process.stdout.readline().strip())
            process.communicate()
