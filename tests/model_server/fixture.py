"""The model server as a pytest fixture. A folder's conftest takes it over by
``from tests.model_server.fixture import model_server, running_model_server``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.model_server.script import ECHO
from tests.model_server.server import ModelServer


@pytest.fixture(scope="session")
def running_model_server() -> Iterator[ModelServer]:
    """One for the whole run, for servers under test that outlive a test."""
    with ModelServer() as server:
        yield server


@pytest.fixture
def model_server(running_model_server: ModelServer) -> Iterator[ModelServer]:
    """The run's model server with an empty journal, echoing prompts until the test gives it a script."""
    running_model_server.reset()
    running_model_server.play(ECHO)
    yield running_model_server
    running_model_server.reset()
