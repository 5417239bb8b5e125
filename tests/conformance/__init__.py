"""The Autobahn TestSuite; .ci/install-real installs it, `pytest tests/conformance` runs this."""
