"""Target: what to dial; its URL, headers and subprotocols, checked before anything is sent."""

from __future__ import annotations

import base64
import ipaddress
import re
import ssl
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast
from urllib.parse import quote, unquote, urlsplit

from .errors import InvalidURL
from .proxy import ProxySetting
from .resolve import host_port

_RESERVED = ("upgrade", "connection", "content-length", "transfer-encoding")
_HOST = re.compile(r"[0-9A-Za-z._~-]+")
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
Headers = Mapping[str, str] | Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Target:
    """What to dial, and how.

    `headers` are added to the request; Host replaces the usual one, Origin is not sent unless it is here.
    `ssl_context` None is `default_context()`; `server_hostname` None is the URL's host. `proxy` is one URL,
    None for none, True for what the environment says. At most `redirects` redirects are followed, and only
    within the origin (scheme, host and port).
    """

    url: str = field(repr=False)
    headers: Headers = field(default=(), repr=False)
    subprotocols: Sequence[str] = ()
    ssl_context: ssl.SSLContext | None = None
    server_hostname: str | None = None
    proxy: ProxySetting = field(default=True, repr=False)
    redirects: int = 0


class URL(NamedTuple):
    """The parts of a websocket URL; `resource` is the path with its query.

    `authorization` is the Authorization header that a `user:password@` means, or None.
    """

    host: str
    port: int
    resource: str
    secure: bool
    authorization: str | None

    @property
    def authority(self) -> str:
        """What the Host header says: the port is left out where it is the scheme's own."""
        host = self.host.partition("%")[0]  # an IPv6 zone means nothing to others
        if self.port == (443 if self.secure else 80):
            return host_port(host, 0)[:-2]
        return host_port(host, self.port)

    @property
    def http(self) -> str:
        """The URL as HTTP has it, for cookies and redirects."""
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.resource}"


def parse_url(url: str) -> URL:
    """The parts of a `ws:` or `wss:` URL; raises InvalidURL, which never quotes it."""
    if any(char <= " " or char == "\x7f" for char in url):
        raise InvalidURL("the URL contains a space or a control character")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise InvalidURL("the URL's host or port is malformed") from exc
    if parts.scheme not in ("ws", "wss"):
        raise InvalidURL("the URL does not begin with ws: or wss:")
    if "#" in url:
        raise InvalidURL("the URL has a fragment, which websocket URLs must not have (RFC 6455 section 3)")
    if port == 0:
        raise InvalidURL("the URL's port is 0")
    secure = parts.scheme == "wss"
    resource = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=string.punctuation)
    host = _checked_host(parts.hostname or "")
    return URL(
        host,
        port or (443 if secure else 80),
        resource,
        secure,
        _authorization(parts.username, parts.password),
    )


def _checked_host(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        name = host.encode("idna").decode()
    except UnicodeError as exc:
        raise InvalidURL("the URL's host is malformed") from exc
    if not _HOST.fullmatch(name):
        raise InvalidURL("the URL's host is empty or malformed")
    return name


def _authorization(username: str | None, password: str | None) -> str | None:
    if username is None:
        return None
    credentials = f"{unquote(username)}:{unquote(password or '')}".encode()
    return f"Basic {base64.b64encode(credentials).decode()}"


def check_headers(headers: Headers) -> list[tuple[str, str]]:
    """`headers` as pairs; raises ValueError, which names the header but never quotes its value."""
    pairs = list(cast(Mapping[str, str], headers).items() if isinstance(headers, Mapping) else headers)
    for name, value in pairs:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a header")
        if name.lower() in _RESERVED or name.lower().startswith("sec-websocket-"):
            raise ValueError(f"the header {name} is the handshake's own")
        if not _VALUE.fullmatch(value):
            raise ValueError(f"the value of the header {name} is no text of one Latin-1 line")
    return pairs


def check_subprotocols(subprotocols: Sequence[str]) -> None:
    """Raise ValueError unless each is a token and there once."""
    if isinstance(subprotocols, str) or len({*subprotocols}) != len(subprotocols):
        raise ValueError("subprotocols is a sequence of different names")
    for name in subprotocols:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a subprotocol")


@dataclass(frozen=True, repr=False)
class Request:
    """What is asked of the server beside the upgrade itself; made from checked parts."""

    url: URL
    headers: list[tuple[str, str]]
    subprotocols: tuple[str, ...]

    def first_line(self) -> bytes:
        """The request line."""
        return f"GET {self.url.resource} HTTP/1.1\r\n".encode("ascii")

    def lines(self, cookies: list[str]) -> bytes:
        """The headers beside those that make it an upgrade, each with its line end."""
        given = {name.lower() for name, _ in self.headers}
        pairs = [] if "host" in given else [("Host", self.url.authority)]
        if self.url.authorization is not None and "authorization" not in given:
            pairs.append(("Authorization", self.url.authorization))
        if self.subprotocols:
            pairs.append(("Sec-WebSocket-Protocol", ", ".join(self.subprotocols)))
        pairs += [(name, value) for name, value in self.headers if name.lower() != "cookie"]
        all_cookies = [value for name, value in self.headers if name.lower() == "cookie"] + cookies
        if all_cookies:
            pairs.append(("Cookie", "; ".join(all_cookies)))
        return "".join(f"{name}: {value}\r\n" for name, value in pairs).encode("latin-1")
