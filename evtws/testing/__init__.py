"""A scriptable websocket server for tests and demonstrations, and certificates for it."""

from .certificates import tls_contexts
from .client_connection import ClientConnection
from .server import Reply, Server

__all__ = ["ClientConnection", "Reply", "Server", "tls_contexts"]
