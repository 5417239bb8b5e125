"""TLS for tests: a certificate for this machine, and the throw-away authority that signed it."""

from __future__ import annotations

import functools
import ssl
from typing import Any


def tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for 127.0.0.1 and localhost, and a client's context that trusts it and nobody else.

    The contexts are new at each call and may be changed. The keys are made once per process.
    Raises ImportError where trustme, which makes them, is not installed.
    """
    authority, certificate = _keys()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return server, client


@functools.cache
def _keys() -> tuple[Any, Any]:
    """The authority and the certificate, of trustme's types."""
    try:
        import trustme
    except ImportError as exc:
        raise ImportError("certificates for tests are made by trustme: pip install 'evtws[testing]'") from exc
    authority = trustme.CA()
    return authority, authority.issue_cert("127.0.0.1", "localhost")
