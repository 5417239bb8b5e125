"""One run of the Autobahn cases for all tests."""

import pytest

from . import autobahn


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> autobahn.Results:
    """What the fuzzing server thought of evtws, case by case."""
    with autobahn.fuzzing_server(tmp_path_factory.mktemp("autobahn")) as server:
        assert server.case_count == autobahn.UNCOMPRESSED_COUNT
        return server.run_cases(autobahn.echo, "evtws")
