"""A store that is closed while a thread still reads it: the thread gets its rows, and nobody crashes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from projections.store import ReadStore
from projections.stores.sqlite import Connection
from runtime.errors import Unavailable
from runtime.event_log import EventLog, store_env

COUNTED = 2_000_000
SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT count(*) FROM n"


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_statement_that_runs_at_the_close_ends_first(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = Event()
    query = Connection.query

    def tell_and_query(self: Connection, sql: str, params: tuple[object, ...]) -> list[tuple[object, ...]]:
        if sql == SLOW:
            begun.set()
        return query(self, sql, params)

    log = EventLog.open(store_env(f"sqlite:///{tmp_path}/log.db" if kind == "file" else "memory://"))
    store = ReadStore.over(log)
    monkeypatch.setattr(Connection, "query", tell_and_query)
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(store.query, SLOW, (COUNTED,))
        assert begun.wait(30)
        log.close()
        assert reading.result(30) == [(COUNTED,)]
    with pytest.raises(Unavailable):
        store.query(SLOW, (1,))
