"""The Parquet export: whole, taken up again where it ended, and fit for the questions in docs/analysis.md."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from gateway.parquet_export import MANIFEST, ExportRefused, ParquetExport, read_events
from projections import execution_summary, node_timeline
from projections.runner import Runner
from projections.store import ReadStore
from runtime import commands
from runtime.event_log import EventLog
from runtime.ids import NodeId
from runtime.verification import pages, verify
from tests.projections import writing
from tests.projections.writing import Writer, write_some
from tests.sandbox import REPOSITORY

Rows = list[tuple[Any, ...]]


@pytest.fixture
def export(log: EventLog, store: ReadStore, tmp_path: Path) -> Callable[[int], int]:
    """Export what is new in parts of so many events; gives how many events those were."""

    def run(chunk_events: int) -> int:
        made = ParquetExport(str(tmp_path / "export"), log, store, Runner(log, store).catch_up)
        return sum(part.events for part in made.run(chunk_events))

    return run


def ask(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Rows]:
    """Questions to the export in ``folder``, through the views of the document."""
    monkeypatch.chdir(folder)
    database = duckdb.connect()
    for statement in statements()[0].split(";"):
        database.execute(statement)
    return lambda sql: database.execute(sql).fetchall()


def statements() -> list[str]:
    text = (REPOSITORY / "docs/analysis.md").read_text(encoding="utf-8")
    return re.findall(r"^```sql\n(.*?);\n```$", text, flags=re.DOTALL | re.MULTILINE)


def test_every_event_is_exported_byte_for_byte(
    log: EventLog, tmp_path: Path, export: Callable[[int], int]
) -> None:
    write_some(log, 0, 12)
    written = list(pages(log.feed))
    assert export(17) == len(written)
    exported = list(read_events(str(tmp_path / "export")))
    assert exported == written
    assert verify(exported).is_clean


def test_an_export_goes_on_where_the_last_one_ended(
    log: EventLog, store: ReadStore, tmp_path: Path, export: Callable[[int], int], monkeypatch: Any
) -> None:
    running = Writer(log, 1).do(commands.Admit).start("a")
    first = export(50)
    assert export(50) == 0
    running.do(commands.RecordCompleted, node_id=NodeId("a"), attempt=1).run("b").do(commands.Complete)
    assert export(50) == len(log.read(running.id)) - first
    asked = ask(tmp_path, monkeypatch)
    assert asked("SELECT status, completed_nodes FROM executions") == [("completed", 2)]
    assert asked("SELECT node_id, status FROM nodes ORDER BY node_id") == [
        ("a", "completed"),
        ("b", "completed"),
    ]
    assert asked("SELECT count(*) FROM events") == [(len(log.read(running.id)),)]


def test_what_an_interrupted_export_left_is_not_counted_twice(
    log: EventLog, tmp_path: Path, export: Callable[[int], int]
) -> None:
    write_some(log, 0, 6)
    export(1_000)
    manifest = tmp_path / "export" / MANIFEST
    before = manifest.read_bytes()
    write_some(log, 6, 6)
    export(1_000)
    manifest.write_bytes(before)  # as if it had died before the last step
    assert len(list(read_events(str(tmp_path / "export")))) == json.loads(before)["position"]
    write_some(log, 12, 6)
    export(7)
    assert list(read_events(str(tmp_path / "export"))) == list(pages(log.feed))


def test_the_rows_are_those_of_the_read_models(
    log: EventLog, store: ReadStore, tmp_path: Path, export: Callable[[int], int], monkeypatch: Any
) -> None:
    write_some(log, 0, 12)
    export(20)
    asked = ask(tmp_path, monkeypatch)
    names = [writing.execution_id(number) for number in range(12)]
    rows = execution_summary.get_many(store, names)
    found = asked(
        "SELECT execution_id, status, epoch_us(created_at), epoch_us(ended_at), position FROM executions"
    )
    assert set(found) == {
        (row.execution_id, row.status, row.created_at, row.ended_at, row.position) for row in rows.values()
    }
    attempts = [row for name in names for row in node_timeline.attempts(store, name)]
    assert asked("SELECT count(*) FROM nodes") == [(len(attempts),)]


def test_the_export_of_another_log_is_refused(
    log: EventLog, store: ReadStore, tmp_path: Path, export: Callable[[int], int]
) -> None:
    writing.completed(log, 1)
    export(50)
    manifest = tmp_path / "export" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "log": "another"}))
    with pytest.raises(ExportRefused, match="another log"):
        export(50)


def test_a_folder_that_holds_something_else_is_refused(
    log: EventLog, store: ReadStore, tmp_path: Path, export: Callable[[int], int]
) -> None:
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine.txt").write_text("precious")
    with pytest.raises(ExportRefused, match="not empty"):
        export(50)


def test_the_questions_of_the_document_are_answered(
    log: EventLog, tmp_path: Path, export: Callable[[int], int], monkeypatch: Any
) -> None:
    write_some(log, 0, 12)
    Writer(log, 99).do(commands.Admit).start("a").ask("model-1", "m").answer(
        "model-1", "assistant", usage=commands.Usage(model="m", input_tokens=3, output_tokens=5)
    )
    export(1_000)
    asked = ask(tmp_path, monkeypatch)
    whole, who, what, versions, ends, by_day, long, failing, hours, cost = map(asked, statements()[1:])
    assert (whole, ends) == ([], [])
    assert all(row[1] != "system" for row in who)
    assert [row[2] for row in what] == [
        "execution.queued",
        "execution.started",
        "execution.node_started",
        "execution.step_started",
        "execution.message_recorded",
        "execution.usage_recorded",
    ]
    assert versions[0][2] == 13
    assert sum(row[2] for row in by_day) == 13
    assert long[0][1] == 10
    assert failing[0][:2] == ("a", "ValueError")
    assert {row[0] for row in hours} == {"a", "b"}
    assert cost == [("m", 1, 3, 5, 0.0, 1)]
