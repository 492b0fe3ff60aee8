"""One suite for every store: SQLite file, PostgreSQL, memory. ``store`` runs a test on each of them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.event_log import EventLog, store_env

OpenLog = Callable[[], EventLog]

STORES = [
    "sqlite",
    pytest.param("postgres", marks=pytest.mark.postgres),
    "memory",
]


@pytest.fixture(params=STORES)
def env(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """The library's environment of a new, empty store."""
    match request.param:
        case "sqlite":
            return store_env(f"sqlite:///{tmp_path}/log.db")
        case "postgres":
            return store_env(request.getfixturevalue("postgres_url"))
        case _:
            return store_env("memory://")


@pytest.fixture
def open_log(env: dict[str, str]) -> Iterator[OpenLog]:
    """Opens the log once more, as another process would; all are closed after the test."""
    opened: list[EventLog] = []

    def open_another() -> EventLog:
        log = EventLog.open(env)
        opened.append(log)
        return log

    yield open_another
    for log in opened:
        log.close()


@pytest.fixture
def log(open_log: OpenLog) -> EventLog:
    return open_log()
