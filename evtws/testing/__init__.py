"""A scriptable websocket server for tests and demonstrations."""
