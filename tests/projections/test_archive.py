"""Archiving: what leaves the log is in the archive byte for byte, and everything else stays as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.archive import Archive, ArchivedPart, ArchiveRefused, read_archive
from gateway.parquet_export import ParquetExport, read_events
from gateway.parquet_parts import Folder
from projections import counters, execution_summary, node_timeline, retention
from projections.check import verify_read_models
from projections.rebuild import held as lives
from projections.rebuild import rebuild
from projections.runner import PROJECTIONS, Runner
from projections.store import ReadStore
from projections.stores import partitions
from projections.tracked import SHADOW, Moved, begin_anew
from runtime import callbacks, commands
from runtime.event_log import Append, Chain, EventLog, Recorded
from runtime.ids import SECOND, ExecutionId, Micros, TenantId
from runtime.verification import pages, verify
from tests.projections.writing import Writer, completed, execution_id, running, write_some
from tests.runtime.scenario import T0

CUTOFF = Micros(T0 + 3_600 * SECOND)
"""Everything that ``writing`` ends has ended by then."""

DAY = 86_400 * SECOND

Run = Callable[[], list[ArchivedPart]]


class Died(Exception):
    """The process ended here."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def archive(log: EventLog, store: ReadStore, folder: Path) -> Archive:
    return Archive(str(folder), log, store, PROJECTIONS, Runner(log, store).catch_up)


@pytest.fixture
def run(archive: Archive) -> Run:
    return lambda: [progress.part for progress in archive.run(CUTOFF, part_events=30)]


def archived(folder: Path) -> list[Recorded]:
    return sorted((one for part in read_archive(str(folder)) for one in part), key=lambda one: one.position)


def executions_in(log: EventLog) -> set[str]:
    return {one.originator_id for one in pages(log.feed) if ":" not in one.originator_id}


def held(log: EventLog) -> list[Recorded]:
    """The log without what it notes of archives."""
    return [one for one in pages(log.feed) if not one.originator_id.startswith("resource:")]


def test_ended_executions_leave_byte_for_byte_and_open_ones_stay(
    log: EventLog, store: ReadStore, folder: Path, run: Run
) -> None:
    write_some(log, 0, 12)
    before = list(pages(log.feed))
    parts = run()
    assert len(parts) > 1
    gone = archived(folder)
    assert sorted(gone + held(log), key=lambda one: one.position) == before
    open_ones = {execution_id(number) for number in (5, 11)}
    assert executions_in(log) == open_ones
    assert {row.execution_id for row in execution_summary.search(store, {})[0]} == open_ones
    assert node_timeline.attempts(store, execution_id(0)) == []
    assert sum(part.events for part in parts) == len(gone)
    assert sum(part.executions for part in parts) == 10


def test_read_models_of_an_archived_log_can_be_rebuilt_and_sums_stay(
    log: EventLog, store: ReadStore, run: Run
) -> None:
    write_some(log, 0, 12)
    Writer(log, 40).do(commands.Admit).start("a").ask("model-1", "m")
    Runner(log, store).catch_up()
    before = counters.counts(store)
    run()
    assert counters.counts(store) == before
    assert list(verify_read_models(log, store, PROJECTIONS)) == []
    for projection in PROJECTIONS:
        rebuild(log, store, projection)
    assert counters.counts(store) == before
    completed(log, 50)
    Runner(log, store).catch_up()
    assert list(verify_read_models(log, store, PROJECTIONS)) == []


def test_the_rest_of_a_log_keeps_its_promises_alone_and_with_its_archive(
    log: EventLog, folder: Path, run: Run
) -> None:
    write_some(log, 0, 12)
    whole = verify(pages(log.feed))
    run()
    assert verify(pages(log.feed)).is_clean
    together = verify(pages(log.feed), archived=read_archive(str(folder)))
    assert together.is_clean
    assert (together.executions, together.first_position) == (whole.executions, whole.first_position)


def test_a_second_run_archives_only_what_ended_since(log: EventLog, folder: Path, run: Run) -> None:
    going_on = running(log, 1)
    completed(log, 2)
    assert [part.executions for part in run()] == [1]
    assert run() == []
    going_on.do(commands.RecordCompleted, node_id="a", attempt=1).run("b").do(commands.Complete)
    assert [part.executions for part in run()] == [1]
    assert {one.originator_id for one in archived(folder)} == {execution_id(1), execution_id(2)}


def test_what_somebody_still_needs_stays(log: EventLog, store: ReadStore, run: Run) -> None:
    for number in range(1, 6):
        completed(log, number)
    running(log, 9)
    told = callbacks.schedule(
        None, ExecutionId(execution_id(2)), TenantId("acme"), "https://example.org", "ability", at=T0
    )
    state = callbacks.fold_callback(told)
    assert state is not None
    chain = Chain()
    log.append([Append(state.originator_id, told, state, chain)])
    # As the inline rows of a child, and of two runs of one conversation, would say.
    for number, column, value in (
        (1, "parent_id", execution_id(9)),
        (3, "subject", "task:t"),
        (9, "subject", "task:t"),
    ):
        store.execute(
            f"UPDATE executions SET {column} = ? WHERE execution_id = ?", (value, execution_id(number))
        )
    run()
    assert executions_in(log) == {execution_id(number) for number in (1, 2, 3, 9)}

    delivered = callbacks.deliver(state, 200, at=Micros(T0 + SECOND))
    log.append(
        [Append(state.originator_id, delivered, callbacks.evolve_callback(state, delivered[0]), chain)]
    )
    store.execute("UPDATE executions SET parent_id = '', subject = ''")
    run()
    assert executions_in(log) == {execution_id(9)}
    assert [one for one in held(log) if one.originator_id.startswith("callback:")] == []


@pytest.mark.parametrize(
    ("method", "calls"),
    [("_remember", 1), ("_put", 1), ("_put", 2), ("_drop_rows", 1), ("_drop_rows", 2), ("_mark_dropped", 1)],
)
def test_an_archive_that_died_is_repeated_and_nothing_is_there_twice(
    method: str, calls: int, log: EventLog, store: ReadStore, folder: Path, archive: Archive, run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write_some(log, 0, 12)
    before = list(pages(log.feed))
    Runner(log, store).catch_up()
    sums = counters.counts(store)
    left = calls
    real = getattr(archive, method)

    def die(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left <= 0:
            raise Died
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(archive, method, die)
        with pytest.raises(Died):
            run()
    monkeypatch.setattr(retention, "LEASE_SECONDS", 0)
    again = Archive(str(folder), log, store, PROJECTIONS, Runner(log, store).catch_up)
    # Other parts than before: what was left unfinished is finished as it is, or was never counted.
    list(again.run(CUTOFF, part_events=50))
    assert sorted(archived(folder) + held(log), key=lambda one: one.position) == before
    files = Folder(str(folder))
    assert {Path(path).stem for path in files.files("events")} == {
        Path(path).stem for path in files.files("parts")
    }
    Runner(log, store).catch_up()
    assert counters.counts(store) == sums
    assert list(verify_read_models(log, store, PROJECTIONS)) == []


def test_an_execution_leaves_all_tables_or_none(
    log: EventLog, store: ReadStore, archive: Archive, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    completed(log, 1)

    def die(*_: Any) -> None:
        raise Died

    monkeypatch.setattr(retention, "end_rebuilds", die)  # the last statement before the commit
    with pytest.raises(Died):
        run()
    assert executions_in(log) == {execution_id(1)}
    assert list(verify_read_models(log, store, PROJECTIONS)) == []


def test_files_that_changed_on_their_way_keep_the_log_whole(
    log: EventLog, archive: Archive, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_some(log, 0, 3)
    before = held(log)
    real = Folder.read_events

    def changed(self: Folder, files: Any) -> list[Recorded]:
        return real(self, files)[:-1]

    monkeypatch.setattr(Folder, "read_events", changed)
    with pytest.raises(ArchiveRefused, match="does not hold the events that were archived"):
        run()
    assert held(log) == before


def test_a_broken_chain_is_not_archived(log: EventLog, store: ReadStore, run: Run) -> None:
    completed(log, 1)
    store.execute("UPDATE stored_events SET topic = 'execution.resumed' WHERE originator_version = 3")
    with pytest.raises(ArchiveRefused, match=r"chain of .* is broken at version 4"):
        run()


def test_what_ended_just_now_stays(archive: Archive, log: EventLog) -> None:
    with pytest.raises(ArchiveRefused, match="3600 s stays"):
        next(archive.run(Micros(2 * T0)))


def test_one_archive_of_a_log_runs_at_a_time(log: EventLog, store: ReadStore, folder: Path, run: Run) -> None:
    completed(log, 1)
    assert retention.take_lease(store, "another", Micros(2**60))
    with pytest.raises(ArchiveRefused, match="another process"):
        run()
    retention.give_lease_back(store, "another")
    assert len(run()) == 1


def test_folders_of_something_else_are_refused(log: EventLog, folder: Path, run: Run) -> None:
    completed(log, 1)
    folder.mkdir()
    (folder / "mine.txt").write_text("precious")
    with pytest.raises(ArchiveRefused, match="not empty"):
        run()
    (folder / "mine.txt").unlink()
    (folder / "archive.json").write_text('{"log": "another"}')
    with pytest.raises(ArchiveRefused, match="another log"):
        run()
    assert executions_in(log) == {execution_id(1)}


def test_a_rebuild_that_began_before_an_archive_ends(log: EventLog, store: ReadStore, run: Run) -> None:
    completed(log, 1)
    Runner(log, store).catch_up()
    with store.transaction(exclusive=True) as transaction:
        begin_anew(transaction, counters.COUNTERS, counters.TABLE + SHADOW)
    run()
    with pytest.raises(Moved), lives(log, store, counters.COUNTERS):
        pass


def test_an_export_goes_on_after_the_first_event_left(
    log: EventLog, store: ReadStore, tmp_path: Path, run: Run
) -> None:
    completed(log, 1)
    export = ParquetExport(str(tmp_path / "export"), log, store, Runner(log, store).catch_up)
    list(export.run())
    before = held(log)
    run()
    completed(log, 2)
    list(export.run())
    exported = [one for one in read_events(str(tmp_path / "export")) if ":" not in one.originator_id]
    assert exported == before + held(log)


def test_the_log_remembers_where_its_old_part_went(log: EventLog, folder: Path, run: Run) -> None:
    completed(log, 1)
    run()
    [noted] = [one.event() for one in pages(log.feed) if one.originator_id.startswith("resource:")]
    assert noted.document == {"url": str(folder), "before": CUTOFF}  # type: ignore[attr-defined]


def test_a_partition_of_which_nothing_stays_is_dropped(
    log: EventLog, store: ReadStore, folder: Path, run: Run
) -> None:
    if store.dialect != "postgres":
        assert run() == []
        return
    write_some(log, 0, 5)
    first = partitions.moment_of(execution_id(0)[:13])
    with store.transaction() as transaction:
        partitions.make(transaction, first, Micros(first + DAY))
        partitions.make(transaction, Micros(first + DAY), Micros(first + 2 * DAY))
    before = held(log)
    [old, _, *ahead] = partitions.partitions(store)
    assert partitions.content_of(store, old).events == len(before)
    run()
    assert partitions.partitions(store) == ahead
    assert archived(folder) == before
    assert list(verify_read_models(log, store, PROJECTIONS)) == []
