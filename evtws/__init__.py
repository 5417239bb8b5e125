"""Calls, streams and events over one websocket, from threads."""

__version__ = "0.1.0"
