"""A log and a read store over it, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from projections.store import ReadStore
from runtime.event_log import EventLog, store_env


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def env(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    if request.param == "sqlite":
        return store_env(f"sqlite:///{tmp_path}/log.db")
    return store_env(request.getfixturevalue("postgres_url"))


@pytest.fixture
def log(env: dict[str, str]) -> Iterator[EventLog]:
    opened = EventLog.open(env)
    yield opened
    opened.close()


@pytest.fixture
def store(log: EventLog) -> ReadStore:
    return ReadStore.over(log)
