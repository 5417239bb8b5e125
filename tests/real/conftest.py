"""One server of each kind for the whole run, which starts with the first test that asks for it; and DevTools."""

from collections.abc import Iterator

import pytest

from . import servers
from .devtools import DevTools


@pytest.fixture(scope="session")
def aria2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Aria2]:
    with servers.aria2(tmp_path_factory.mktemp("aria2")) as server:
        yield server


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Chromium]:
    with servers.chromium(tmp_path_factory.mktemp("chromium")) as server:
        yield server


@pytest.fixture
def devtools(chromium: servers.Chromium) -> Iterator[DevTools]:
    tools = DevTools(chromium)
    with tools.connection:
        yield tools


@pytest.fixture(scope="session")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.mosquitto(tmp_path_factory.mktemp("mosquitto")) as server:
        yield server


@pytest.fixture(scope="session")
def graphql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    with servers.graphql(tmp_path_factory.mktemp("graphql")) as server:
        yield server
