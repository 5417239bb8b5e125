"""What can go wrong below a connection over TLS once it is open."""

from __future__ import annotations

import ssl
import time

import pytest
import trustme

from evtws import ConnectionLost
from evtws.testing import ClientConnection, FaultProxy, Server

from ..timing import MS, SOON
from .support import Ear, ask, dialled, frame

pytestmark = pytest.mark.usefixtures("nothing_leaks")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture(scope="module")
def serving(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize("raw", [b"", frame(0x01, b"half"), frame(0x81, b"whole")[:4]])
def test_b3_tls_ends_without_a_word(raw: bytes, serving: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """B3: a TLS connection that ends without close_notify is a ConnectionLost like any other, never an SSLError."""
    ear = Ear()

    def script(client: ClientConnection, _body: str | bytes) -> None:
        client.send_raw(raw)
        client.drop()

    with Server(script, ssl=serving) as server, dialled(server.url, ear, ssl=trusting) as connection:
        with pytest.raises(ConnectionLost) as caught:
            connection.request(ask(), timeout=SOON)
        assert type(ear.one_error()) is type(caught.value) is ConnectionLost
        assert ear.messages == []


@pytest.mark.parametrize("count", [1, 4, 5, 6, 20, 100])
def test_b3_tls_ends_inside_a_record(count: int, serving: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    """B3: a TLS connection that is cut inside a record is a ConnectionLost, and the record is not delivered."""
    ear = Ear()
    with (
        Server(lambda client, _: client.send("1" * 1000), ssl=serving) as server,
        FaultProxy(server.port) as proxy,
        dialled(proxy.url_of(server.url), ear, ssl=trusting) as connection,
    ):
        proxy.to_client.cut_in(count)
        with pytest.raises(ConnectionLost) as caught:
            connection.request(ask(), timeout=SOON)
        assert type(ear.one_error()) is type(caught.value) is ConnectionLost
        assert ear.messages == []


@pytest.mark.parametrize("size", [1000, 65536])
@pytest.mark.parametrize("who", ["engine", "caller"])
def test_b7_bytes_inside_openssl(
    who: str, size: int, serving: ssl.SSLContext, trusting: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B7: messages that OpenSSL holds decrypted while the socket is idle are delivered without delay."""
    # Less than a record at a time, so that some of each stays inside OpenSSL.
    monkeypatch.setattr("evtws.transport.READ_SIZE", size)
    ear = Ear()
    records = [frame(0x81, b"%d" % number) * 300 for number in range(10, 40)] + [frame(0x82, b'"%060000d"' % 1) * 3]

    def script(client: ClientConnection, body: str | bytes) -> None:
        for record in records:
            client.send_raw(record)
        client.send(body)
        client.send_raw(frame(0x81, b"5") * 500)

    with Server(script, ssl=serving) as server, dialled(server.url, ear, ssl=trusting) as connection:
        if who == "caller":
            assert connection.request(ask(), timeout=SOON).params == {"id": 1}
        else:
            connection.send("{}")
        began = time.monotonic()
        count = 30 * 300 + 3 + 500 + (who == "engine")
        ear.wait_for(lambda: len(ear.messages) == count)
        assert time.monotonic() - began < 3000 * MS
