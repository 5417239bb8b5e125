"""For tests and demonstrations: a scriptable websocket server, certificates for it, a proxy of faults, a clock."""

from .certificates import tls_contexts
from .client_connection import ClientConnection
from .direction import Direction
from .fault_proxy import FaultProxy
from .manual_clock import ManualClock
from .raw_server import RawConnection, RawServer
from .server import Reply, Server

__all__ = [
    "ClientConnection",
    "Direction",
    "FaultProxy",
    "ManualClock",
    "RawConnection",
    "RawServer",
    "Reply",
    "Server",
    "tls_contexts",
]
