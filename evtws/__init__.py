"""Calls, streams and events over one websocket, from threads.

Every call ends exactly once, every wait is bounded, TLS is safe.
"""

from .connection import Connection, connect
from .correlation import in_order, json_params, keyed
from .errors import (
    CertificateError,
    ConnectionClosed,
    ConnectionLost,
    DialAborted,
    DialError,
    DialTimeout,
    EvtwsError,
    ForkedError,
    HandshakeError,
    IllegalTransition,
    InvalidURL,
    MessageTooBig,
    NotConnected,
    OutboxFull,
    PendingFull,
    PrepareError,
    ProtocolError,
    ProxyError,
    ReplyTimeout,
    RequestCancelled,
    ResolveError,
    SlowConsumer,
    SlowUserCode,
    StaleConnection,
    TLSError,
    UserCodeError,
    WouldDeadlock,
    WriteTimeout,
)
from .message import DEFAULT, Message
from .peer import WebSocketPeer, WriteMode
from .reconnect import ReconnectPolicy
from .state import State
from .stats import Stats
from .stream import ReplyStream

__version__ = "0.1.0"

__all__ = [
    "DEFAULT",
    "CertificateError",
    "Connection",
    "ConnectionClosed",
    "ConnectionLost",
    "DialAborted",
    "DialError",
    "DialTimeout",
    "EvtwsError",
    "ForkedError",
    "HandshakeError",
    "IllegalTransition",
    "InvalidURL",
    "Message",
    "MessageTooBig",
    "NotConnected",
    "OutboxFull",
    "PendingFull",
    "PrepareError",
    "ProtocolError",
    "ProxyError",
    "ReconnectPolicy",
    "ReplyStream",
    "ReplyTimeout",
    "RequestCancelled",
    "ResolveError",
    "SlowConsumer",
    "SlowUserCode",
    "StaleConnection",
    "State",
    "Stats",
    "TLSError",
    "UserCodeError",
    "WebSocketPeer",
    "WouldDeadlock",
    "WriteMode",
    "WriteTimeout",
    "__version__",
    "connect",
    "in_order",
    "json_params",
    "keyed",
]
