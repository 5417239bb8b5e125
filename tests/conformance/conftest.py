"""One run of the Autobahn cases against each subject, for all tests."""

import pytest

from . import autobahn


@pytest.fixture(scope="session", params=autobahn.SUBJECTS)
def subject(request: pytest.FixtureRequest) -> str:
    """The name of what the cases are run against."""
    return str(request.param)


@pytest.fixture(scope="session")
def results(subject: str, tmp_path_factory: pytest.TempPathFactory) -> autobahn.Results:
    """What the TestSuite thought of it, case by case."""
    return autobahn.SUBJECTS[subject](tmp_path_factory.mktemp(subject))
