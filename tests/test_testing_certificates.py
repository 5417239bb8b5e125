"""The certificates of the testing kit, with a handshake in memory and with Python's own client over TCP."""

import ssl
import sys

import pytest

from evtws.testing import Server, certificates, tls_contexts


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A TLS handshake in memory, with a client that expects this name; raises what the client or the server raises."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(to_client, to_server, server_hostname=name)
    there = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [here, there]
    while waiting:
        end = waiting.pop(0)
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(end)


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_client_trusts_the_certificate(name: str) -> None:
    """The client's context verifies the server's certificate for 127.0.0.1 and for localhost."""
    server, client = tls_contexts()
    shake_hands(server, client, name)


def test_other_names_are_refused() -> None:
    """The certificate is for no other name."""
    server, client = tls_contexts()
    with pytest.raises(ssl.SSLCertVerificationError, match="example"):
        shake_hands(server, client, "example.org")


def test_nobody_else_trusts_it() -> None:
    """A client with the system's authorities refuses the certificate."""
    server, _ = tls_contexts()
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, ssl.create_default_context(), "localhost")


def test_contexts_are_new_and_keys_are_not() -> None:
    """Each call gives contexts of its own, and each client's context trusts each server's."""
    first, second = tls_contexts(), tls_contexts()
    assert len({*first, *second}) == 4
    shake_hands(first[0], second[1], "localhost")


def test_missing_trustme_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without trustme the error says what to install, and a Server opens nothing."""
    monkeypatch.setitem(sys.modules, "trustme", None)
    certificates._keys.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'evtws\[testing\]'"):
        tls_contexts()
    with pytest.raises(ImportError, match="trustme"):
        Server(ssl=True)
