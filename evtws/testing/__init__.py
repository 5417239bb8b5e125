"""A scriptable websocket server for tests and demonstrations."""

from .client_connection import ClientConnection
from .server import Reply, Server

__all__ = ["ClientConnection", "Reply", "Server"]
