"""Through a proxy: which one, and asking it for a tunnel (SOCKS by way of python-socks)."""

from __future__ import annotations

import base64
import socket
import urllib.request
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from .errors import DialAborted, DialError, DialTimeout, InvalidURL, ProxyError
from .resolve import host_port, resolve
from .wire import Wire

try:
    from python_socks import ProxyType
    from python_socks._connectors.factory_sync import create_connector
    from python_socks._protocols.errors import ReplyError
except ImportError:  # the extra is not installed
    create_connector = None  # type: ignore[assignment]

_PORTS = {"http": 80, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}

#: One URL; None for no proxy; True for what the environment says.
ProxySetting = str | Literal[True] | None


@dataclass(frozen=True)
class Proxy:
    """A proxy to dial through; `scheme` is http, socks4, socks4a, socks5 or socks5h."""

    scheme: str
    host: str
    port: int
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


def parse_proxy(url: str) -> Proxy:
    """The proxy that `url` (`scheme://user:password@host:port`) names; without a scheme it is http.

    Raises InvalidURL. A proxy that is itself spoken to over TLS (https) is not supported.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as exc:
        raise InvalidURL("the proxy's URL is malformed") from exc
    if parts.scheme not in _PORTS:
        raise InvalidURL(f"the proxy's URL begins with {parts.scheme}:, which is none of {', '.join(_PORTS)}")
    if not parts.hostname or port == 0:
        raise InvalidURL("the proxy's URL has no host, or the port 0")
    username, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    return Proxy(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], username, password)


def choose(setting: ProxySetting, host: str, port: int, *, secure: bool) -> Proxy | None:
    """The proxy to take to `host`; None for a direct connection.

    The environment is `https_proxy` for wss and `http_proxy` for ws, else `all_proxy`, but for what
    `no_proxy` lists, as the standard library reads them. Raises InvalidURL.
    """
    if setting is None:
        return None
    if isinstance(setting, str):
        return parse_proxy(setting)
    proxies = urllib.request.getproxies_environment()
    url = proxies.get("https" if secure else "http") or proxies.get("all")
    if not url or urllib.request.proxy_bypass(host_port(host, port)):
        return None
    return parse_proxy(url)


def open_tunnel(wire: Wire, proxy: Proxy, host: str, port: int) -> None:
    """Have `proxy`, at the other end of `wire`, connect to `host`; raises ProxyError or DialTimeout."""
    wire.doing = f"waiting for the proxy {host_port(proxy.host, proxy.port)}"
    try:
        if proxy.scheme == "http":
            _http_connect(wire, proxy, host_port(host, port))
        else:
            _socks_connect(wire, proxy, host, port)
    except (DialTimeout, DialAborted, ProxyError):
        raise
    except DialError as exc:
        raise ProxyError(f"the proxy failed: {exc}") from exc
    if wire.buffer:
        raise ProxyError("the proxy sent something before the connection was used")


def _http_connect(wire: Wire, proxy: Proxy, target: str) -> None:
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if proxy.username is not None:
        credentials = f"{proxy.username}:{proxy.password or ''}".encode()
        request += f"Proxy-Authorization: Basic {base64.b64encode(credentials).decode()}\r\n"
    wire.write(f"{request}\r\n".encode())
    head = wire.read_head()
    if not 200 <= head.status < 300:
        raise ProxyError(f"the proxy refused the connection: {head.status}", head.status)


def _socks_connect(wire: Wire, proxy: Proxy, host: str, port: int) -> None:
    if create_connector is None:
        raise ProxyError(f"a {proxy.scheme} proxy needs python-socks: pip install 'evtws[proxy]'")
    connector = create_connector(
        proxy_type=ProxyType.SOCKS4 if proxy.scheme.startswith("socks4") else ProxyType.SOCKS5,
        username=proxy.username or "",
        password=proxy.password or "",
        rdns=proxy.scheme in ("socks4a", "socks5h"),
        resolver=_Resolver(wire),  # type: ignore[arg-type]
    )
    try:
        connector.connect(_Stream(wire), host, port)  # type: ignore[arg-type]
    except ReplyError as exc:
        raise ProxyError(f"the proxy refused the connection: {exc}") from exc
    except ValueError as exc:  # its text may quote the credentials
        raise ProxyError("the host or the credentials do not fit into a SOCKS request") from exc


class _Stream:
    """What python-socks' connectors read and write; 2.x and 3.x call it by different names."""

    def __init__(self, wire: Wire) -> None:
        self.write = self.write_all = wire.write
        self.read_exactly = self.read_exact = wire.read_exactly


class _Resolver:
    """What python-socks' connectors ask where the proxy does not resolve names."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> tuple[int, Any]:
        for address in resolve(host, port, self._wire.attempt):
            if family in (socket.AF_UNSPEC, address.family):
                return address.family, address.sockaddr[0]
        raise ProxyError(f"{host} has no address that the proxy could be told")
