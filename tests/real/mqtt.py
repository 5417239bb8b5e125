"""MQTT 3.1.1's packets, as far as the tests need them: written, read, and found in a stream of binary messages."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from evtws import Message


class Kind(IntEnum):
    """The packets' types (MQTT 3.1.1, table 2.1)."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    SUBSCRIBE = 8
    SUBACK = 9
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14


#: What answers what. An answer has the packet id of what it answers, if that has one.
ANSWERS = {
    Kind.CONNECT: Kind.CONNACK,
    Kind.PUBLISH: Kind.PUBACK,
    Kind.SUBSCRIBE: Kind.SUBACK,
    Kind.PINGREQ: Kind.PINGRESP,
}


@dataclass(frozen=True)
class Packet:
    """One control packet: its type, the four flags beside that, and what follows the fixed header."""

    kind: Kind
    flags: int
    body: bytes

    @property
    def qos(self) -> int:
        """A PUBLISH's quality of service."""
        return self.flags >> 1 & 3

    @property
    def number(self) -> int:
        """The packet id, counted by each side for itself; 0 where the type has none."""
        if self.kind is Kind.PUBLISH:
            start = 2 + len(self.topic.encode())
            return _short(self.body, start) if self.qos else 0
        return _short(self.body, 0) if self.kind in (Kind.PUBACK, Kind.SUBSCRIBE, Kind.SUBACK) else 0

    @property
    def topic(self) -> str:
        """A PUBLISH's topic."""
        return self.body[2 : 2 + _short(self.body, 0)].decode()

    @property
    def payload(self) -> bytes:
        """A PUBLISH's payload."""
        return self.body[2 + _short(self.body, 0) + 2 * bool(self.qos) :]


def _short(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def _text(text: str) -> bytes:
    return struct.pack("!H", len(text.encode())) + text.encode()


def _message(kind: Kind, flags: int, body: bytes) -> Message:
    """The packet as a binary message, whose params are the packet."""
    size, digits = len(body), bytearray()
    while size > 127:
        digits.append(size & 127 | 128)
        size >>= 7
    digits.append(size)
    return Message(bytes((kind << 4 | flags,)) + digits + body, Packet(kind, flags, body))


def connect(client: str, *, protocol: str = "MQTT") -> Message:
    """CONNECT with a clean session and a minute's keep-alive."""
    return _message(Kind.CONNECT, 0, _text(protocol) + bytes((4, 2, 0, 60)) + _text(client))


def subscribe(number: int, topic: str, qos: int = 1) -> Message:
    """SUBSCRIBE to one topic filter."""
    return _message(Kind.SUBSCRIBE, 2, struct.pack("!H", number) + _text(topic) + bytes((qos,)))


def publish(number: int, topic: str, payload: bytes) -> Message:
    """PUBLISH with QoS 1, or with QoS 0 where the packet id is 0."""
    identifier = struct.pack("!H", number) if number else b""
    return _message(Kind.PUBLISH, 2 * bool(number), _text(topic) + identifier + payload)


def puback(number: int) -> Message:
    """PUBACK for a PUBLISH of the server's."""
    return _message(Kind.PUBACK, 0, struct.pack("!H", number))


def ping() -> Message:
    """PINGREQ."""
    return _message(Kind.PINGREQ, 0, b"")


def disconnect() -> Message:
    """DISCONNECT."""
    return _message(Kind.DISCONNECT, 0, b"")


def joined(messages: Iterable[Message]) -> bytes:
    """The bytes of several packets."""
    return b"".join(message.body for message in messages if isinstance(message.body, bytes))


def request_key(message: Message) -> tuple[Kind, int]:
    """The key of a request: what answers it, and its packet id."""
    packet = message.params
    return ANSWERS[packet.kind], packet.number


def response_key(message: Message) -> tuple[Kind, int] | None:
    """The key of what is received; a PUBLISH of the server's answers nothing, whatever its packet id is."""
    packet = message.params
    return None if packet.kind is Kind.PUBLISH else (packet.kind, packet.number)


class Packets:
    """A `split` for a byte stream: packets may be cut across messages, and several may share one.

    `reset` forgets what is cut; a `prepare` calls it, because nothing of it comes on the next connection.
    """

    def __init__(self) -> None:
        self._rest = b""

    def reset(self) -> None:
        """Forget the packet of which a part came."""
        self._rest = b""

    def __call__(self, message: Message) -> list[Message]:
        """A message for each packet that is whole now; its params are the packet."""
        assert isinstance(message.body, bytes)
        self._rest += message.body
        return list(self._take())

    def _take(self) -> Iterable[Message]:
        while (end := self._end()) is not None:
            start, stop = end
            whole, self._rest = self._rest[:stop], self._rest[stop:]
            yield Message(whole, Packet(Kind(whole[0] >> 4), whole[0] & 15, whole[start:]))

    def _end(self) -> tuple[int, int] | None:
        """Where the first packet's body begins and ends; None if it is not whole."""
        size = shift = 0
        for at in range(1, min(len(self._rest), 5)):
            size |= (self._rest[at] & 127) << shift
            shift += 7
            if self._rest[at] < 128:
                stop = at + 1 + size
                return (at + 1, stop) if stop <= len(self._rest) else None
        return None
