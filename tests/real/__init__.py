"""evtws against servers that others wrote; .ci/install-real installs them, `pytest tests/real` runs this."""
