"""A WebSocketPeer that connects: MQTT to mosquitto, and graphql-ws, on one thread."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from evtws import ConnectionLost, Message, WebSocketPeer
from tests.timing import SOON

from . import mqtt, servers
from .mqtt import Kind, Packet
from .polled import poll_until, poll_until_closed, received
from .servers import Server


@pytest.fixture(autouse=True)
def without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection ends because its TCP ends, not because a second has passed."""
    monkeypatch.setattr("evtws.polled_websocket.FAREWELL", 10 * SOON)


@contextmanager
def opened(url: str, *subprotocols: str, max_queued_packets: int = 2048) -> Iterator[WebSocketPeer]:
    """A peer that is OPEN; in the end it is dropped."""
    peer = WebSocketPeer()
    peer.supported_protocols, peer.max_queued_packets = subprotocols, max_queued_packets
    peer.connect_to_url(url)
    try:
        poll_until(peer, lambda: peer.get_ready_state() is peer.STATE_OPEN)
        yield peer
    finally:
        peer.close(-1)


def closed(peer: WebSocketPeer) -> tuple[int, str]:
    """Code and reason of the close frame that comes, once TCP has ended too."""
    poll_until_closed(peer)
    return peer.get_close_code(), peer.get_close_reason()


_names = count(1)


class Client:
    """An MQTT client that is logged in."""

    def __init__(self, peer: WebSocketPeer) -> None:
        self.peer = peer
        self.name = f"polled-{next(_names)}"
        self._split = mqtt.Packets()
        self._packets: list[Packet] = []
        self.send(mqtt.connect(self.name))
        assert self.packet() == Packet(Kind.CONNACK, 0, b"\0\0")

    def send(self, message: Message) -> None:
        """Send a packet."""
        assert isinstance(message.body, bytes)
        self.peer.put_packet(message.body)

    def packet(self) -> Packet:
        """The next packet, wherever the server has cut and joined them."""
        while not self._packets:
            self._packets += [message.params for message in self._split(Message(received(self.peer)))]
        return self._packets.pop(0)


@pytest.fixture
def client(mosquitto: Server) -> Iterator[Client]:
    with opened(mosquitto.url, "mqtt") as peer:
        assert peer.get_selected_protocol() == "mqtt"
        yield Client(peer)


@pytest.mark.parametrize("size", [0, 1, 30_000])
def test_mqtt_publishes_and_receives(client: Client, size: int) -> None:
    """What is published to a topic that is subscribed to comes back, and is acknowledged."""
    client.send(mqtt.subscribe(10, f"{client.name}/#"))
    assert client.packet() == Packet(Kind.SUBACK, 0, b"\0\x0a\1")
    payload = bytes(range(250)) * (size // 250) + bytes(size % 250)
    client.send(mqtt.publish(11, f"{client.name}/x", payload))
    echo, answer = sorted((client.packet(), client.packet()), key=lambda packet: packet.kind)
    assert (echo.topic, echo.payload) == (f"{client.name}/x", payload)
    assert (answer.kind, answer.number) == (Kind.PUBACK, 11)


def test_mqtt_hears_another_client(client: Client, mosquitto: Server) -> None:
    """What one peer publishes another one receives, though both are polled by one thread."""
    client.send(mqtt.subscribe(1, "between/peers", 0))
    assert client.packet().kind is Kind.SUBACK
    with opened(mosquitto.url, "mqtt") as peer:
        other = Client(peer)
        for number in range(50):
            other.send(mqtt.publish(0, "between/peers", b"%d" % number))
        assert [client.packet().payload for _ in range(50)] == [b"%d" % number for number in range(50)]


def test_mqtt_is_left(client: Client) -> None:
    """mosquitto ends TCP after DISCONNECT, without a close frame: that is a loss, though a wanted one."""
    client.send(mqtt.disconnect())
    assert closed(client.peer) == (-1, "")
    assert type(client.peer.error) is ConnectionLost


def test_mosquitto_answers_a_close_frame(client: Client) -> None:
    """mosquitto answers our close frame by its code and reason, and that is a clean end."""
    client.peer.close(1000, "done")
    assert closed(client.peer) == (1000, "done")
    assert client.peer.error is None


PROTOCOL = "graphql-transport-ws"
INIT = {"type": "connection_init"}


def operation(query: str) -> dict[str, Any]:
    """The message that begins an operation."""
    return {"id": "q", "type": "subscribe", "payload": {"query": query}}


@contextmanager
def graphql_peer(server: Server, **settings: Any) -> Iterator[WebSocketPeer]:
    """A peer after its connection_ack."""
    with opened(server.url, PROTOCOL, **settings) as peer:
        assert peer.get_selected_protocol() == PROTOCOL
        say(peer, INIT)
        assert heard(peer) == {"type": "connection_ack"}
        yield peer


def say(peer: WebSocketPeer, message: dict[str, Any] | str) -> None:
    """Send JSON, or what is none."""
    peer.send_text(message if isinstance(message, str) else json.dumps(message))


def heard(peer: WebSocketPeer) -> Any:
    """The next message."""
    return json.loads(received(peer))


def results(peer: WebSocketPeer, query: str) -> list[Any]:
    """The data of each result of an operation."""
    say(peer, operation(query))
    replies = [heard(peer)]
    while replies[-1]["type"] == "next":
        replies.append(heard(peer))
    assert replies.pop() == {"id": "q", "type": "complete"}
    return [reply["payload"]["data"] for reply in replies]


def test_graphql_answers_operations(graphql: Server) -> None:
    """A query has its one result, a subscription all of them in their order, more than fit in one read."""
    with graphql_peer(graphql) as peer:
        assert results(peer, "{hello}") == [{"hello": "hello world"}]
        assert results(peer, "subscription{count(to: 5000)}") == [{"count": number} for number in range(5000)]


def test_graphql_sends_more_than_the_queue_holds(graphql: Server) -> None:
    """A peer with room for three packets never holds more than three, and in the end is given all, in their order."""
    with graphql_peer(graphql, max_queued_packets=3) as peer:
        say(peer, operation("subscription{count(to: 500)}"))
        replies: list[Any] = []
        while not replies or replies[-1]["type"] == "next":
            replies.append(heard(peer))
            assert peer.get_available_packet_count() < 3
    assert [reply["payload"]["data"]["count"] for reply in replies[:-1]] == list(range(500))


ENDLESS = operation('subscription{endless(tag: "polled")}')


@pytest.mark.parametrize(
    ("code", "reason", "messages"),
    [
        (4400, "Invalid message received", ["nonsense"]),
        (4401, "Unauthorized", [ENDLESS]),
        (4403, "Forbidden", [INIT | {"payload": {"forbidden": True}}]),
        (4409, "Subscriber for q already exists", [INIT, ENDLESS, ENDLESS]),
        (4429, "Too many initialisation requests", [INIT, INIT]),
    ],
)
def test_graphql_closes_with_its_own_codes(graphql: Server, code: int, reason: str, messages: list[Any]) -> None:
    """A peer that breaks the rules of graphql-ws has the code and the reason that it is closed with; it is no error."""
    with opened(graphql.url, PROTOCOL) as peer:
        for message in messages:
            say(peer, message)
            if message is INIT and ENDLESS in messages:
                assert heard(peer) == {"type": "connection_ack"}
        assert closed(peer) == (code, reason)
        assert peer.error is None


def test_graphql_is_closed(graphql: Server) -> None:
    """graphql-ws answers our close frame by its code and reason, also in the midst of a subscription."""
    with graphql_peer(graphql) as peer:
        say(peer, ENDLESS)
        assert heard(peer)["type"] == "next"
        peer.close(3001, "enough")
        assert closed(peer) == (3001, "enough")
        assert peer.error is None


def test_graphql_says_goodbye(tmp_path: Path) -> None:
    """A server that is told to end closes with 1001, and ends by itself, because our close frame and TCP's end come."""
    with servers.graphql(tmp_path) as server:
        with graphql_peer(server) as peer:
            server.process.terminate()
            assert closed(peer)[0] == 1001
        assert server.process.wait(SOON) == 0
