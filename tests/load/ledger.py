"""What became of each of many requests to a Fickle server, and what does not hold of that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import evtws
from evtws.message import InFlight
from tests.load.fickle import Fickle

#: The errors by which a request may end.
FAILURES = (evtws.ReplyTimeout, evtws.ConnectionLost, evtws.WriteTimeout, evtws.OutboxFull, evtws.NotConnected)

#: So many of the newest messages are remembered.
RECENT = 256


class Ledger:
    """What became of each request. From any thread: what is changed together is changed by one list's append."""

    def __init__(self, requests: int) -> None:
        self.endings: list[list[str]] = [[] for _ in range(requests)]
        self.written: list[str | None] = [None] * requests
        self.in_flight: list[InFlight] = ["fail"] * requests
        #: The serial numbers of what was received, as replies and as answers to nothing.
        self.replies: list[int] = []
        self.extras: list[int] = []
        #: What does not hold.
        self.wrong: list[str] = []
        #: Messages that may be pending, for whoever wants to remove one, and what their thread wants to hear of that.
        self.recent: deque[tuple[int, evtws.Message, Callable[[], object]]] = deque(maxlen=RECENT)

    def replied(self, number: int, reply: evtws.Message) -> None:
        """A reply came for that request."""
        if reply.params["id"] != number:
            self.wrong.append(f"{number} had the reply to {reply.params['id']}")
        self.replies.append(reply.params["serial"])

    def ended(self, number: int, how: str | BaseException) -> None:
        """That request ended."""
        if isinstance(how, str):
            self.endings[number].append(how)
            return
        self.endings[number].append(type(how).__name__)
        if isinstance(how, (evtws.ReplyTimeout, evtws.ConnectionLost)):
            self.written[number] = how.written
        elif isinstance(how, FAILURES):
            self.written[number] = "no"
        elif not isinstance(how, evtws.RequestCancelled):
            self.wrong.append(f"{number} ended by {how!r}")


def check(ledger: Ledger, fickle: Fickle, threads: int) -> list[str]:
    """What does not hold of what became of the requests, in words."""
    wrong = list(ledger.wrong)
    for number, endings in enumerate(ledger.endings):
        seen = fickle.seen.get(number, [])
        written, in_flight = ledger.written[number], ledger.in_flight[number]
        told = f"{number} ({in_flight}) ended by {endings}, written={written}, seen on {seen}"
        if len(endings) != 1:
            wrong.append(f"{told}: not once")
        if written == "no" and seen:
            wrong.append(f"{told}: it was written")
        if len(set(seen)) < len(seen) or (len(seen) > 1 and in_flight != "resend"):
            wrong.append(f"{told}: came twice")
    share = len(ledger.endings) // threads
    for first in range(0, len(ledger.endings), share):
        wrong += check_order(ledger, fickle, range(first, min(first + share, len(ledger.endings))))
    return wrong + check_received(ledger, fickle)


def check_order(ledger: Ledger, fickle: Fickle, numbers: range) -> list[str]:
    """What does not hold of the order of one thread's requests: between two that came, none is missing.

    A request that was written, as its error says, on a connection on which later ones came, must have come.
    """
    wrong = []
    came = [number for number in fickle.seen if number in numbers and ledger.in_flight[number] != "resend"]
    # The server may read on what was left of a connection when the next one is there already.
    came.sort(key=lambda number: fickle.seen[number])
    if came != sorted(came):
        wrong.append(f"{numbers}: not in order")
    at, before = iter([*came, None]), None
    after = next(at)
    for number in numbers:
        if number == after:
            before, after = after, next(at)
        elif ledger.in_flight[number] == "resend" or ledger.written[number] != "yes":
            continue
        elif before is not None and after is not None and fickle.seen[before] == fickle.seen[after]:
            wrong.append(f"{number} was written, between {before} and {after}, and never came")
    return wrong


def check_received(ledger: Ledger, fickle: Fickle) -> list[str]:
    """What does not hold of the replies: each is delivered once, to its request or as an extra, in order."""
    wrong = []
    replies, extras = set(ledger.replies), set(ledger.extras)
    if len(replies) + len(extras) != len(ledger.replies) + len(ledger.extras) or replies & extras:
        wrong.append("a reply was delivered twice")
    received = replies | extras
    answered: set[int] = set()
    for index, sent in enumerate(fickle.sent):
        is_last = fickle.calm and index == len(fickle.sent) - 1
        until = sent[-1][0] if is_last else max((serial for serial, _ in sent if serial in received), default=0)
        for serial, number in sent:
            if serial > until:
                break  # cut
            endings = [] if number is None or number < 0 else ledger.endings[number]
            # What is under way to a stream when it is left is nobody's.
            if serial not in received and endings not in (["ReplyTimeout"], ["RequestCancelled"]):
                wrong.append(f"{serial}, for {number}, was not delivered on connection {index}")
            if endings == ["reply"] and number is not None and number not in answered:
                answered.add(number)
                if serial not in replies:
                    wrong.append(f"{serial}, the first reply to {number}, was not taken for one")
    return wrong


def check_stats(stats: evtws.Stats, ledger: Ledger) -> list[str]:
    """What does not add up."""
    wrong = []
    if stats.late + stats.duplicate + stats.unmatched != len(ledger.extras):
        wrong.append(f"{len(ledger.extras)} extras, but {stats}")
    if stats.pending or stats.outbox or stats.callbacks_queued or stats.callbacks_failed or stats.callbacks_dropped:
        wrong.append(f"something is left: {stats}")
    return wrong
