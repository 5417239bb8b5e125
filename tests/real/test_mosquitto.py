"""evtws with mosquitto's MQTT: a login before all else, packet ids over binary messages, packets cut anywhere."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

import evtws
from evtws import Message
from tests.timing import MS, SOON

from . import mqtt
from .mqtt import Kind, Packet
from .servers import Server

_names = count(1)


class Client:
    """An MQTT client: it says CONNECT after each open, and acknowledges what it is sent with QoS 1."""

    def __init__(self, server: Server, **options: Any) -> None:
        self.name = f"evtws-{next(_names)}"
        #: The PUBLISH packets that were received, oldest first.
        self.published: queue.Queue[Packet] = queue.Queue()
        #: The CONNACK of each login.
        self.greetings: list[Packet] = []
        #: A login waits for this.
        self.may_login = threading.Event()
        self.may_login.set()
        #: The connection was lost.
        self.lost = threading.Event()
        self._packets = mqtt.Packets()
        settings: dict[str, Any] = {
            "subprotocols": ["mqtt"],
            "split": self._packets,
            "match_key": (mqtt.request_key, mqtt.response_key),
            "prepare": self._login,
            "on_message": self._heard,
            "on_disconnected": lambda *_: self.lost.set(),
            "ping_interval": None,
            "request_timeout": SOON,
        }
        self.connection = evtws.Connection(**(settings | options))
        self.connection.dial(server.url)

    def _login(self, connection: evtws.Connection) -> None:
        assert self.may_login.wait(SOON)
        self._packets.reset()
        answer: Packet = connection.request(mqtt.connect(self.name)).params
        if answer.body != b"\0\0":
            raise PermissionError(f"CONNACK {answer.body.hex()}")
        self.greetings.append(answer)

    def _heard(self, message: Message, connection: evtws.Connection) -> None:
        packet: Packet = message.params
        if packet.qos:
            connection.send(mqtt.puback(packet.number))
        self.published.put(packet)

    def ask(self, message: Message) -> Packet:
        """The packet that answers this one."""
        answer = self.connection.request(message).params
        assert isinstance(answer, Packet)
        return answer

    def heard(self) -> Packet:
        """The next PUBLISH of the server's."""
        return self.published.get(timeout=SOON)


@contextmanager
def opened(server: Server, **options: Any) -> Iterator[Client]:
    """A client that is logged in."""
    client = Client(server, **options)
    with client.connection:
        yield client


def test_the_login_comes_before_all_else(mosquitto: Server) -> None:
    """The connection is OPEN once `prepare` has said CONNECT and had its CONNACK."""
    with opened(mosquitto) as client:
        assert client.connection.is_connected
        assert client.connection.subprotocol == "mqtt"
        assert [greeting.kind for greeting in client.greetings] == [Kind.CONNACK]


def test_what_waits_for_the_connection_goes_out_after_the_login(mosquitto: Server) -> None:
    """After each open the login comes first, and what was sent meanwhile from elsewhere after it."""
    with opened(mosquitto, reconnect=True, outbox=10) as client:
        client.may_login.clear()
        client.connection.reconnect_now()
        assert client.lost.wait(SOON)
        waiting = [client.connection.submit(mqtt.publish(number, "evtws/out", b"waits")) for number in (2, 3)]
        assert client.connection.stats().outbox == 2
        client.may_login.set()
        assert [future.result(SOON).params.number for future in waiting] == [2, 3]
        assert len(client.greetings) == 2


def test_a_refused_login_ends_the_attempt(mosquitto: Server) -> None:
    """What the server says against CONNECT is what `dial` raises: here it closes the connection."""
    client = evtws.Connection(
        subprotocols=["mqtt"],
        split=mqtt.Packets(),
        match_key=(mqtt.request_key, mqtt.response_key),
        prepare=lambda connection: connection.request(mqtt.connect("evtws", protocol="NONE"), SOON),
    )
    with pytest.raises((evtws.ConnectionLost, evtws.PrepareError)):
        client.dial(mosquitto.url)
    assert client.state is evtws.State.CLOSED


def test_a_subscription_is_answered_by_its_packet_id(mosquitto: Server) -> None:
    """Each SUBSCRIBE in flight is answered by the SUBACK with its packet id."""
    with opened(mosquitto) as client:
        asked = [
            mqtt.subscribe(number, f"{client.name}/{number}", qos) for number, qos in ((10, 0), (11, 1), (65535, 2))
        ]
        answers = [future.result(SOON).params for future in client.connection.submit_many(asked)]
    assert [(answer.kind, answer.number, answer.body[2]) for answer in answers] == [
        (Kind.SUBACK, 10, 0),
        (Kind.SUBACK, 11, 1),
        (Kind.SUBACK, 65535, 2),
    ]


def test_the_servers_packet_ids_are_a_space_of_their_own(mosquitto: Server) -> None:
    """A PUBLISH of the server's with the packet id of one of ours, which comes first, does not answer it."""
    with opened(mosquitto) as client:
        client.ask(mqtt.subscribe(1, f"{client.name}/#"))
        # The server counts from 1 too.
        answers = [client.ask(mqtt.publish(number, f"{client.name}/x", b"%d" % number)) for number in (1, 2, 3)]
        echoes = [client.heard() for _ in range(3)]
    assert [(answer.kind, answer.number) for answer in answers] == [(Kind.PUBACK, number) for number in (1, 2, 3)]
    assert [(echo.number, echo.payload) for echo in echoes] == [(number, b"%d" % number) for number in (1, 2, 3)]


def test_a_packet_id_is_free_once_it_is_answered(mosquitto: Server) -> None:
    """With duplicate_keys="refuse" a packet id in flight is refused, and accepted again after its answer."""
    asked = mqtt.publish(5, "evtws/none", b"x")
    with opened(mosquitto, duplicate_keys="refuse") as client:
        # It cannot be answered before its last byte is there.
        first = client.connection.submit(Message(asked.body[:-1], asked.params))
        with pytest.raises(ValueError, match="pending already"):
            client.connection.submit(mqtt.publish(5, "evtws/none", b"y"))
        client.connection.send(asked.body[-1:])
        assert first.result(SOON).params.number == 5
        assert client.ask(mqtt.publish(5, "evtws/none", b"z")).number == 5


def test_packets_may_be_cut_across_messages(mosquitto: Server) -> None:
    """A packet whose bytes are sent in several messages is one packet to the server, and is answered as one."""
    with opened(mosquitto) as client:
        client.ask(mqtt.subscribe(1, f"{client.name}/#"))
        asked = mqtt.publish(2, f"{client.name}/cut", b"in three")
        body = asked.body
        assert isinstance(body, bytes)
        client.connection.send(body[:1])
        client.connection.send(body[1:7])
        answer = client.ask(Message(body[7:], asked.params))
        assert (answer.kind, answer.number) == (Kind.PUBACK, 2)
        assert client.heard().payload == b"in three"


def test_several_packets_may_share_a_message(mosquitto: Server) -> None:
    """Packets that are sent joined in one message are all taken, in their order."""
    with opened(mosquitto) as client:
        client.ask(mqtt.subscribe(1, f"{client.name}/#"))
        quiet = [mqtt.publish(0, f"{client.name}/{n}", b"%d" % n) for n in range(5)]
        last = mqtt.publish(9, f"{client.name}/last", b"last")
        answer = client.ask(Message(mqtt.joined([*quiet, last]), last.params))
        assert answer.number == 9
        heard = [client.heard() for _ in range(6)]
    assert [packet.payload for packet in heard] == [b"0", b"1", b"2", b"3", b"4", b"last"]


def test_a_large_packet_comes_whole(mosquitto: Server) -> None:
    """A payload of 30 KB, which the server reads in pieces, comes back as it was sent."""
    payload = bytes(range(250)) * 120
    with opened(mosquitto) as client:
        client.ask(mqtt.subscribe(1, f"{client.name}/#"))
        assert client.ask(mqtt.publish(2, f"{client.name}/large", payload)).number == 2
        assert client.heard().payload == payload


def test_pings_of_mqtts_own_are_answered(mosquitto: Server) -> None:
    """PINGREQ as the connection's ping, sent as a message, is answered by PINGRESP, which `is_pong` knows."""
    pongs: queue.Queue[Packet] = queue.Queue()

    def is_pong(message: Message) -> bool:
        if message.params.kind is not Kind.PINGRESP:
            return False
        pongs.put(message.params)
        return True

    settings = {"ping_interval": 20 * MS, "ping_as": "message", "ping_msg": mqtt.ping().body, "is_pong": is_pong}
    with opened(mosquitto, unreceived_ping_threshold=20, **settings) as client:
        for _ in range(3):
            pongs.get(timeout=SOON)
        assert client.connection.stats().rtt_min is not None
        assert client.connection.stats().unmatched == 0


STREAM = [
    mqtt.publish(number, "a/b", b"x" * size) for number, size in ((1, 0), (0, 3), (2, 121), (3, 200), (0, 20_000))
]
BYTES = mqtt.joined(STREAM)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 129, 4096, len(BYTES)])
def test_packets_are_found_wherever_their_bytes_are_cut(size: int) -> None:
    """The stateful `split` finds the same packets in messages of every size."""
    split = mqtt.Packets()
    pieces = [BYTES[at : at + size] for at in range(0, len(BYTES), size)]
    found = [message for piece in pieces for message in split(Message(piece))]
    assert [(message.body, message.params) for message in found] == [(one.body, one.params) for one in STREAM]


def test_a_cut_packet_is_forgotten_with_its_connection() -> None:
    """After `reset` the bytes of a packet that was cut by the connection's end are not part of the next one."""
    split = mqtt.Packets()
    assert split(Message(BYTES[:5])) == []
    split.reset()
    assert [message.params for message in split(Message(BYTES))] == [message.params for message in STREAM]
