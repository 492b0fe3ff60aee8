"""Tracked read models on both stores: exactly once through crashes, races, poison and rebuilds."""

from collections.abc import Sequence
from threading import Event as Flag
from threading import Thread
from typing import Any

import pytest

from projections import counters, node_timeline, runner, tracked
from projections import rebuild as rebuilding
from projections.check import verify_read_models
from projections.counters import COUNTERS
from projections.node_timeline import NODE_TIMELINE
from projections.rebuild import rebuild
from projections.runner import PROJECTIONS, Runner
from projections.store import Reader, ReadStore, Transaction
from projections.tracked import (
    Moved,
    Projection,
    Read,
    Write,
    apply,
    parked,
    position_of,
    prepare,
    read_batch,
)
from runtime import commands, events
from runtime.event_log import EventLog
from runtime.ids import NodeId, Position
from tests.projections import writing
from tests.projections.writing import Writer, execution_id, write_some

WAIT_SECONDS = 60.0


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked, "BATCH_EVENTS_MAX", 7)


def differences(log: EventLog, store: ReadStore, models: Sequence[Projection] = PROJECTIONS) -> list[Any]:
    return list(verify_read_models(log, store, models))


def ends(store: ReadStore) -> dict[str, int]:
    return {
        count.labels["status"]: count.value
        for count in counters.counts(store)
        if count.name == "executions_total"
    }


def caught_up(log: EventLog, store: ReadStore) -> Runner:
    follower = Runner(log, store)
    follower.catch_up()
    return follower


# --- what the models hold -------------------------------------------------------------------------


def test_the_timeline_has_one_row_for_each_attempt(log: EventLog, store: ReadStore) -> None:
    writing.retried(log, 1)
    caught_up(log, store)
    first, second, b = node_timeline.attempts(store, execution_id(1))
    assert (first.node_id, first.attempt, first.status, first.ran_at) == ("a", 1, "failed", "worker-1")
    assert (first.error_type, first.error_message) == ("ValueError", "boom \ufffd text")
    assert first.retry_at == second.started_at
    assert (second.attempt, second.status, second.error_type) == (2, "completed", None)
    assert second.ended_at is not None
    assert (b.node_id, b.started_at) == ("b", second.ended_at)


def test_the_timeline_shows_skipped_waiting_and_given_up_nodes(log: EventLog, store: ReadStore) -> None:
    writing.skipped(log, 1)
    Writer(log, 2).do(commands.Admit).start("a").do(
        commands.RecordWaiting, node_id=NodeId("a"), attempt=1, signal="go"
    )
    writing.cancelled(log, 3)
    timed_out = Writer(log, 4).do(commands.Admit).start("a").after(9).do(commands.TimeOut)
    caught_up(log, store)

    def statuses(number: int) -> list[tuple[str, int, str | None]]:
        found = node_timeline.attempts(store, execution_id(number))
        return [(row.node_id, row.attempt, row.status) for row in found]

    assert statuses(1) == [("a", 1, "completed"), ("b", 0, "skipped")]
    assert statuses(2) == [("a", 1, "waiting")]
    assert statuses(3) == [("a", 1, "cancelled")]
    assert statuses(4) == [("a", 1, "abandoned")]
    assert node_timeline.attempts(store, timed_out.id)[0].ended_at == timed_out.now


def test_the_counters_count_starts_ends_nodes_durations_and_tokens(log: EventLog, store: ReadStore) -> None:
    write_some(log, 0, 12)
    Writer(log, 99).do(commands.Admit).start("a").ask("model-1", "m").answer(
        "model-1", "assistant", usage=commands.Usage(model="m", input_tokens=3, output_tokens=5)
    )
    caught_up(log, store)
    assert ends(store) == {"queued": 13, "completed": 6, "failed": 2, "cancelled": 2}
    found = {(count.name, *count.labels.values()): count.value for count in counters.counts(store)}
    assert found["nodes_total", "test-flow", "unknown", "retried"] == 4
    assert found["nodes_total", "test-flow", "unknown", "skipped"] == 2
    assert found["tokens_total", "input", "test-flow"] == 3
    histograms = {found.status: found for found in counters.durations(counters.counts(store))}
    assert histograms["cancelled"].sum_seconds == 2 * 3.0
    buckets = dict(histograms["completed"].buckets)
    assert [buckets[bound] for bound in ("0.1", "0.25", "0.5", "2.5", "+Inf")] == [0, 2, 4, 6, 6]


def test_the_counters_name_the_kind_of_a_published_flows_nodes(log: EventLog, store: ReadStore) -> None:
    definition = {"id": "test-flow", "nodes": [{"id": "a", "kind": "sleep"}, {"id": "b", "kind": "map"}]}
    store.execute(
        "INSERT INTO flow_versions (tenant, flow_id, version, definition, published_at, published_by)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        ("acme", "test-flow", writing.PLAN.flow_version, counters_json(definition), 1, "system"),
    )
    writing.completed(log, 1)
    caught_up(log, store)
    kinds = {count.labels["kind"] for count in counters.counts(store) if count.name == "nodes_total"}
    assert kinds == {"sleep", "map"}


def counters_json(value: object) -> str:
    import msgspec

    return msgspec.json.encode(value).decode()


@pytest.mark.usefixtures("small_batches")
def test_the_rows_do_not_depend_on_how_the_log_was_cut(
    log: EventLog, store: ReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_some(log, 0, 12)
    caught_up(log, store)
    monkeypatch.setattr(tracked, "BATCH_EVENTS_MAX", 1_000)
    assert differences(log, store) == []


# --- crashes and races ----------------------------------------------------------------------------


class Crash(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("point", ["before the rows", "before the commit"])
def test_a_crash_inside_a_batch_leaves_nothing_of_it(
    log: EventLog, store: ReadStore, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    write_some(log, 0, 6)
    prepare(store, PROJECTIONS)
    write = tracked._write  # pyright: ignore[reportPrivateUsage] - the crash point lies inside

    def dies(transaction: Transaction, *rest: Any) -> None:
        if point == "before the commit":
            write(transaction, *rest)
        raise Crash

    monkeypatch.setattr(tracked, "_write", dies)
    with pytest.raises(Crash):
        apply(store, PROJECTIONS, read_batch(log, Position(0)), Position(0))
    monkeypatch.undo()
    assert position_of(store, "counters") == 0
    assert counters.counts(store) == []
    assert caught_up(log, store).lag() == [
        runner.Lag(projection.name, log.max_position(), 0, 0) for projection in PROJECTIONS
    ]
    assert ends(store)["queued"] == 6
    assert differences(log, store) == []


def test_a_batch_that_another_reader_wrote_is_not_written_again(log: EventLog, store: ReadStore) -> None:
    write_some(log, 0, 6)
    prepare(store, PROJECTIONS)
    batch = read_batch(log, Position(0))
    apply(store, PROJECTIONS, batch, Position(0))
    with pytest.raises(Moved):
        apply(store, PROJECTIONS, batch, Position(0))
    write_some(log, 6, 6)
    longer = read_batch(log, Position(0))
    with pytest.raises(Moved):
        apply(store, PROJECTIONS, longer, Position(0))  # a rising position alone would let it through
    assert ends(store)["queued"] == 6


def test_a_batch_that_would_leave_events_out_is_not_written(log: EventLog, store: ReadStore) -> None:
    write_some(log, 0, 6)
    prepare(store, PROJECTIONS)
    with pytest.raises(Moved):
        apply(store, PROJECTIONS, read_batch(log, Position(5)), Position(5))
    assert position_of(store, "counters") == 0


@pytest.mark.usefixtures("small_batches")
def test_two_runners_at_once_bring_each_event_in_once(
    log: EventLog, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "STANDBY_SECONDS", 0.001)  # they meet as often as can be
    opened = [EventLog.open(env) for _ in range(2)]
    runners = [Runner(one, ReadStore.over(one)) for one in opened]
    for one in runners:
        one.start()
    try:
        write_some(log, 0, 30)
        for one in runners:
            assert one.wait(log.max_position(), WAIT_SECONDS)
    finally:
        for one in runners:
            one.stop()
        for one in opened:
            one.close()
    store = ReadStore.over(log)
    assert [one.restarts for one in runners] == [0, 0]
    assert ends(store)["queued"] == 30
    assert differences(log, store) == []


def test_a_stopped_runners_work_is_taken_up_by_the_next(log: EventLog, store: ReadStore) -> None:
    for first in (0, 6):
        follower = Runner(log, store)
        follower.start()
        write_some(log, first, 6)
        assert follower.wait(log.max_position(), WAIT_SECONDS)
        follower.stop()
    assert ends(store)["queued"] == 12


def test_waiting_for_a_position_the_log_does_not_have_gives_up(log: EventLog, store: ReadStore) -> None:
    follower = Runner(log, store)
    follower.start()
    try:
        assert not follower.wait(Position(10_000), 0.1)
    finally:
        follower.stop()


def test_an_appended_event_is_read_after_a_wake_up(log: EventLog, store: ReadStore) -> None:
    follower = caught_up(log, store)
    follower.start()
    try:
        for number in range(3):
            writing.completed(log, number)
            follower.wake()
            assert follower.wait(log.max_position(), WAIT_SECONDS)
            assert ends(store)["completed"] == number + 1
    finally:
        follower.stop()


# --- supervision ----------------------------------------------------------------------------------


def test_a_pass_that_fails_is_begun_again(
    log: EventLog, store: ReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "BACKOFF_SECONDS_MIN", 0.001)
    failures = iter([OSError("disk"), RuntimeError("bug")])

    def fails_twice(*args: Any, **kwargs: Any) -> None:
        for failure in failures:
            raise failure
        apply(*args, **kwargs)

    monkeypatch.setattr(runner, "apply", fails_twice)
    write_some(log, 0, 6)
    follower = Runner(log, store)
    follower.start()
    try:
        assert follower.wait(log.max_position(), WAIT_SECONDS)
    finally:
        follower.stop()
    assert (follower.restarts, follower.last_error) == (2, "RuntimeError: bug")
    assert differences(log, store) == []


# --- poison ---------------------------------------------------------------------------------------


def choking(on: str) -> Projection:
    """The counters, but unable to take a node of that name."""

    def fold(batch: Sequence[Read], reader: Reader) -> list[Write]:
        for _, event in batch:
            if isinstance(event, events.NodeSkipped) and event.node_id == on:
                raise KeyError(f"can't take {on}")
        return COUNTERS.fold(batch, reader)

    return COUNTERS._replace(fold=fold)


def test_a_poison_event_is_parked_and_the_rest_goes_on(log: EventLog, store: ReadStore) -> None:
    write_some(log, 0, 12)
    follower = Runner(log, store, (NODE_TIMELINE, choking("b")))
    follower.catch_up()
    stuck = parked(store)
    assert [(one.projection, one.topic) for one in stuck] == [("counters", "execution.node_skipped")] * 2
    assert "can't take b" in stuck[0].error
    assert {lag.projection: (lag.behind, lag.parked) for lag in follower.lag()} == {
        "node_timeline": (0, 0),
        "counters": (0, 2),
    }
    assert ends(store)["completed"] == 6, "its other events were taken"


def test_a_rebuild_tries_parked_events_again(log: EventLog, store: ReadStore) -> None:
    write_some(log, 0, 12)
    Runner(log, store, (choking("b"),)).catch_up()
    assert len(differences(log, store, (COUNTERS,))) == 1
    rebuild(log, store, COUNTERS)
    assert parked(store) == []
    assert differences(log, store, (COUNTERS,)) == []
    rebuild(log, store, choking("b"))
    assert len(parked(store)) == 2, "what fails again is parked again"


def test_a_row_the_store_refuses_is_parked(log: EventLog, store: ReadStore) -> None:
    def fold(batch: Sequence[Read], reader: Reader) -> list[Write]:
        rows = [
            (event.node_id, None if event.node_id == "b" else "x", 1)
            for _, event in batch
            if isinstance(event, events.NodeSkipped | events.NodeCompleted)
        ]
        return [("INSERT INTO {table} (name, labels, value) VALUES (?, ?, ?)", rows)]

    writing.skipped(log, 1)
    model = COUNTERS._replace(fold=fold)
    Runner(log, store, (model,)).catch_up()
    assert [one.topic for one in parked(store)] == ["execution.node_skipped"]
    assert store.query("SELECT name, labels FROM counters") == [("a", "x")]
    assert position_of(store, "counters") == log.max_position()


def test_an_event_this_release_can_not_read_is_parked(log: EventLog, store: ReadStore) -> None:
    write_some(log, 0, 3)
    store.execute("UPDATE stored_events SET topic = 'execution.imagined' WHERE topic = 'execution.started'")
    caught_up(log, store)
    assert len(parked(store)) == 3 * len(PROJECTIONS)


# --- rebuild and check ----------------------------------------------------------------------------


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("projection", PROJECTIONS, ids=lambda projection: projection.name)
def test_a_rebuild_while_events_are_appended_and_read(
    log: EventLog, store: ReadStore, env: dict[str, str], projection: Projection
) -> None:
    write_some(log, 0, 12)
    follower = caught_up(log, store)
    follower.start()
    rebuilt, written = Flag(), Flag()
    failures: list[BaseException] = []

    def write() -> None:
        other = EventLog.open(env)
        try:
            for number in range(12, 400):
                writing.KINDS[number % len(writing.KINDS)](other, number)
                follower.wake()
                written.set()
                if rebuilt.is_set():
                    break
        except BaseException as error:
            failures.append(error)
            raise
        finally:
            other.close()

    writer = Thread(target=write)
    writer.start()
    try:
        assert written.wait(WAIT_SECONDS)
        before = follower.rebuild(projection.name)
        rebuilt.set()
        writer.join(WAIT_SECONDS)
        assert failures == []
        assert follower.wait(log.max_position(), WAIT_SECONDS)
    finally:
        rebuilt.set()
        writer.join(WAIT_SECONDS)
        follower.stop()
    assert before > 0
    assert (follower.restarts, follower.last_error) == (0, "")
    assert differences(log, store) == []
    assert position_of(store, projection.name + tracked.SHADOW) == 0, "the shadow is gone"


def test_a_dropped_table_comes_back_by_a_rebuild(log: EventLog, store: ReadStore) -> None:
    write_some(log, 0, 6)
    caught_up(log, store)
    store.execute("DELETE FROM node_timeline")
    assert differences(log, store) != []
    rebuild(log, store, NODE_TIMELINE)
    assert differences(log, store) == []


def test_a_rebuild_never_takes_a_model_back(
    log: EventLog, store: ReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_some(log, 0, 6)
    caught_up(log, store)

    def is_outrun(log: EventLog, store: ReadStore, projection: Projection, until: Position) -> None:
        """The live reader goes on while the shadow does not."""

    monkeypatch.setattr(rebuilding, "catch_up", is_outrun)
    assert rebuild(log, store, COUNTERS) == log.max_position()
    monkeypatch.undo()
    assert differences(log, store) == []


def test_a_rebuild_that_died_half_way_is_begun_again(log: EventLog, store: ReadStore) -> None:
    write_some(log, 0, 6)
    caught_up(log, store)
    with store.transaction() as transaction:
        tracked.begin_anew(transaction, COUNTERS, COUNTERS.name + tracked.SHADOW)
    rebuild(log, store, COUNTERS)
    assert differences(log, store) == []


def test_the_check_names_the_row_that_differs(log: EventLog, store: ReadStore) -> None:
    writing.completed(log, 1)
    caught_up(log, store)
    store.execute("UPDATE node_timeline SET status = 'failed' WHERE node_id = 'b'")
    (difference,) = differences(log, store)
    assert (difference.table, difference.key) == ("node_timeline", (execution_id(1), "b", 1))
    assert difference.stored is not None
    assert difference.rebuilt is not None
    assert (difference.stored[3], difference.rebuilt[3]) == ("failed", "completed")


def test_a_changed_layout_builds_the_model_anew_at_start_up(log: EventLog, store: ReadStore) -> None:
    write_some(log, 0, 6)
    caught_up(log, store)
    newer = COUNTERS._replace(
        layout=COUNTERS.layout + 1, create=COUNTERS.create.replace("value BIGINT", "value NUMERIC")
    )
    prepare(store, (newer,))
    assert position_of(store, "counters") == 0
    Runner(log, store, (newer,)).catch_up()
    assert ends(store)["queued"] == 6
    prepare(store, PROJECTIONS)
    assert position_of(store, "counters") == log.max_position(), "an older release leaves it alone"
    write_some(log, 6, 1)
    with pytest.raises(Moved):
        apply(
            store,
            (COUNTERS,),
            read_batch(log, position_of(store, "counters")),
            position_of(store, "counters"),
        )
