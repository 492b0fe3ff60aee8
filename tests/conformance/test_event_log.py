"""What every event log promises, on every store (executions contract 3 and DESIGN's promises 2 and 5)."""

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from eventsourcing.persistence import OperationalError

from projections import execution_summary
from projections.inline_rebuild import check
from projections.store import ReadStore
from runtime import codec, events
from runtime.errors import Conflict, Diverged, InvariantViolated, Unavailable
from runtime.event_log import Append, EventLog, Outcome, Recorded, store_env
from runtime.ids import HostName, Micros, Position
from tests.conformance.conftest import OpenLog
from tests.conformance.histories import START, Story, execution_id

HOST = HostName("host-1")


def recorded(outcome: Outcome) -> tuple[Recorded, ...]:
    assert isinstance(outcome, tuple), outcome
    return outcome


def append(log: EventLog, *appends: Append) -> list[Outcome]:
    return log.append(appends)


def test_what_was_appended_is_read_back_in_order(log: EventLog) -> None:
    story = Story(1)
    [outcome] = append(log, story.whole())

    found = log.read(story.id)

    assert [one.event() for one in found] == story.told
    assert tuple(found) == recorded(outcome)
    assert [one.originator_version for one in found] == list(range(1, len(story.told) + 1))


def test_reading_goes_on_behind_a_version_and_stops_at_a_limit(log: EventLog) -> None:
    story = Story(1)
    append(log, story.whole())

    assert [one.originator_version for one in log.read(story.id, after_version=3)] == [4, 5, 6, 7]
    assert [one.originator_version for one in log.read(story.id, after_version=3, limit=2)] == [4, 5]
    assert log.read(story.id, after_version=7) == []


def test_a_stream_that_does_not_exist_is_empty(log: EventLog) -> None:
    assert log.read(execution_id(404)) == []
    assert log.max_position() == 0
    assert log.feed(Position(0), 10) == []


def test_an_empty_append_records_nothing(log: EventLog) -> None:
    story = Story(1)
    append(log, story.begun())
    head = story.chain.head

    assert append(log, Append(story.id, (), story.state, story.chain)) == [()]
    assert log.append([]) == []
    assert log.max_position() == 2
    assert story.chain.head == head


def test_positions_rise_through_a_group_and_from_group_to_group(log: EventLog) -> None:
    first = append(log, Story(1).whole(), Story(2).whole())
    second = append(log, Story(3).begun())

    positions = [one.position for outcome in [*first, *second] for one in recorded(outcome)]

    assert positions == sorted(set(positions))
    assert log.max_position() == positions[-1]


def test_the_feed_shows_the_whole_log_in_order_of_position(log: EventLog) -> None:
    stories = [Story(number) for number in range(1, 6)]
    outcomes = append(log, *(story.whole() for story in stories))
    everything = [one for outcome in outcomes for one in recorded(outcome)]

    pages: list[Recorded] = []
    after = Position(0)
    while page := log.feed(after, 4):
        assert len(page) <= 4
        pages += page
        after = page[-1].position

    assert pages == everything


def test_the_feed_can_be_limited_to_topics(log: EventLog) -> None:
    append(log, Story(1).whole(), Story(2).whole())

    topics = [one.topic for one in log.feed(Position(0), 100, ("execution.queued", "execution.completed"))]

    assert topics == ["execution.queued", "execution.completed"] * 2


def test_each_event_carries_the_hash_of_the_one_before_it(log: EventLog) -> None:
    story = Story(1)
    append(log, story.begun())
    append(log, story.tell(story.next(events.NodeStarted, node_id="n0")))

    found = log.read(story.id)

    assert codec.previous_hash(found[0].data) == ""
    for before, after in itertools.pairwise(found):
        assert codec.previous_hash(after.data) == before.hash()
    assert story.chain.head == found[-1].hash()


def test_a_taken_version_is_a_conflict_and_leaves_the_chain(log: EventLog) -> None:
    story = Story(1)
    append(log, story.begun())
    other = story.fork()
    append(log, story.tell(story.next(events.Recovered, owner="host-2")))
    head = other.chain.head

    [outcome] = append(log, other.tell(other.next(events.NodeStarted, node_id="n0")))

    assert isinstance(outcome, Conflict)
    assert (outcome.originator_id, outcome.version) == (story.id, 3)
    assert other.chain.head == head
    assert [one.topic for one in log.read(story.id)][-1] == "execution.recovered"


def test_a_conflict_leaves_the_rest_of_its_group_alone(log: EventLog) -> None:
    contested = Story(1)
    append(log, contested.begun())
    loser = contested.fork()
    append(log, contested.tell(contested.next(events.Recovered, owner="host-2")))
    before, after = Story(2), Story(3)

    outcomes = append(
        log,
        before.whole(),
        loser.tell(loser.next(events.NodeStarted, node_id="n0")),
        after.whole(),
    )

    assert isinstance(outcomes[1], Conflict)
    assert log.read(before.id) == list(recorded(outcomes[0]))
    assert log.read(after.id) == list(recorded(outcomes[2]))
    assert len(log.read(contested.id)) == 3


def test_what_follows_a_conflict_in_the_same_stream_conflicts_too(log: EventLog) -> None:
    contested = Story(1)
    append(log, contested.begun())
    loser = contested.fork()
    append(log, contested.tell(contested.next(events.Recovered, owner="host-2")))
    first = loser.tell(loser.next(events.NodeStarted, node_id="n0"))
    second = loser.tell(loser.next(events.NodeCompleted, node_id="n0"))

    outcomes = append(log, first, second, Story(2).begun())

    assert [type(outcome) for outcome in outcomes] == [Conflict, Conflict, tuple]
    assert len(log.read(contested.id)) == 3


def test_one_stream_may_occur_twice_in_a_group(log: EventLog) -> None:
    story = Story(1)
    append(log, story.begun())
    first = story.tell(story.next(events.NodeStarted, node_id="n0"))
    second = story.tell(story.next(events.NodeCompleted, node_id="n0"))

    append(log, first, second)

    found = log.read(story.id)
    assert [one.event() for one in found] == story.told
    assert story.chain.head == found[-1].hash()
    assert codec.previous_hash(found[3].data) == found[2].hash()


def test_an_event_that_can_not_be_stored_harms_only_its_own_stream(log: EventLog) -> None:
    broken, whole = Story(1), Story(2)

    outcomes = append(log, broken.tell(broken.queued(input={"text": "\ud800"})), whole.whole())

    assert isinstance(outcomes[0], InvariantViolated)
    assert broken.id in str(outcomes[0])
    assert log.read(broken.id) == []
    assert log.read(whole.id) == list(recorded(outcomes[1]))
    assert broken.chain.head == ""


def test_a_row_that_can_not_be_stored_harms_only_its_own_stream(log: EventLog) -> None:
    broken, first, last = Story(1), Story(2), Story(3)
    queued = broken.tell(broken.queued(timeout_seconds=1e14))
    started = broken.tell(broken.next(events.Started))

    outcomes = append(log, first.begun(), queued, started, last.begun())

    assert [type(outcome) for outcome in outcomes] == [tuple, InvariantViolated, InvariantViolated, tuple]
    assert broken.id in str(outcomes[1])
    assert log.read(broken.id) == []
    assert broken.chain.head == ""
    assert [list(recorded(outcomes[0])), list(recorded(outcomes[3]))] == [
        log.read(first.id),
        log.read(last.id),
    ]


def test_a_lost_acknowledgement_is_no_conflict(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    story, other = Story(1), Story(2)
    real = log.recorder.insert_events
    calls = 0

    def commits_then_fails(*args: Any, **kwargs: Any) -> Sequence[int] | None:
        nonlocal calls
        calls += 1
        positions = real(*args, **kwargs)
        if calls == 1:
            raise OperationalError("the connection went away after the commit")
        return positions

    monkeypatch.setattr(log.recorder, "insert_events", commits_then_fails)

    outcomes = append(log, story.begun(), other.begun())

    assert calls == 2
    assert [list(recorded(outcome)) for outcome in outcomes] == [log.read(story.id), log.read(other.id)]
    assert story.chain.head == log.read(story.id)[-1].hash()
    assert log.max_position() == recorded(outcomes[1])[-1].position
    append(log, story.tell(story.next(events.NodeStarted, node_id="n0")))
    assert [one.event() for one in log.read(story.id)] == story.told


def test_a_lost_acknowledgement_reported_to_the_caller_can_be_repeated(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(1)
    begun = story.begun()
    real = log.recorder.insert_events

    def commits_then_fails(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(log.recorder, "insert_events", commits_then_fails)
        with pytest.raises(InterruptedError):
            append(log, begun)
    assert story.chain.head == ""

    [outcome] = append(log, begun)

    assert list(recorded(outcome)) == log.read(story.id)
    assert len(log.read(story.id)) == 2


def test_a_store_that_comes_back_is_waited_for(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(1)
    real = log.recorder.insert_events
    failures = iter([OperationalError("busy"), OperationalError("busy")])

    def fails_twice(*args: Any, **kwargs: Any) -> Sequence[int] | None:
        for failure in failures:
            raise failure
        return real(*args, **kwargs)

    monkeypatch.setattr(log.recorder, "insert_events", fails_twice)

    [outcome] = append(log, story.begun())

    assert list(recorded(outcome)) == log.read(story.id)


def test_a_store_that_stays_away_is_unavailable(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(1)

    def is_away(*_: Any, **__: Any) -> None:
        raise OperationalError("no answer")

    monkeypatch.setattr(log.recorder, "insert_events", is_away)

    with pytest.raises(Unavailable, match="no answer"):
        append(log, story.begun())
    assert story.chain.head == ""


def test_a_closed_log_is_unavailable(open_log: OpenLog) -> None:
    log = open_log()
    log.close()
    with pytest.raises(Unavailable):
        log.read(execution_id(1))


def test_every_opener_sees_what_one_of_them_wrote(open_log: OpenLog) -> None:
    story = Story(1)
    writer, reader = open_log(), open_log()
    append(writer, story.whole())

    assert [one.event() for one in reader.read(story.id)] == story.told
    assert reader.max_position() == writer.max_position()


def test_of_two_writers_of_one_version_exactly_one_wins(open_log: OpenLog) -> None:
    story = Story(1)
    logs = [open_log(), open_log()]
    append(logs[0], story.begun())
    barrier = threading.Barrier(2)
    outcomes: dict[int, Outcome] = {}

    def write(number: int) -> None:
        mine = story.fork()
        barrier.wait(timeout=30)
        [outcomes[number]] = append(
            logs[number], mine.tell(mine.next(events.Recovered, owner=f"host-{number}"))
        )

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)

    assert sorted(type(outcome).__name__ for outcome in outcomes.values()) == ["Conflict", "tuple"]
    [won] = [recorded(outcome) for outcome in outcomes.values() if isinstance(outcome, tuple)]
    assert log_of(logs[0], story.id)[-1] == won[-1]


def log_of(log: EventLog, stream: str) -> list[Recorded]:
    return log.read(stream)


def test_a_tailing_reader_never_skips_a_committed_event(open_log: OpenLog) -> None:
    writers, streams_each = 4, 25
    logs = [open_log() for _ in range(writers)]
    reader = open_log()
    faults: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for index in range(streams_each):
                append(logs[number], Story(1 + number * streams_each + index).whole())
        except BaseException as error:
            faults.append(error)
            raise

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    total = writers * streams_each * 7
    seen: list[Recorded] = []
    while len(seen) < total and not faults:
        is_over = not any(thread.is_alive() for thread in threads)
        page = reader.feed(seen[-1].position if seen else Position(0), 50)
        seen += page
        if is_over and not page:
            break
    for thread in threads:
        thread.join(timeout=60)

    assert faults == []
    assert seen == reader.feed(Position(0), total + 1)
    assert len(seen) == total


def test_a_large_group_is_one_commit(log: EventLog) -> None:
    stories = [Story(number) for number in range(1, 401)]

    outcomes = append(log, *(story.whole() for story in stories))

    assert log.max_position() == recorded(outcomes[-1])[-1].position
    assert len(log.feed(Position(0), 5_000)) == 400 * 7
    assert [one.event() for one in log.read(stories[200].id)] == stories[200].told


def test_a_long_history_is_read_whole(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.event_log.READ_MAX", 10)
    story = Story(1)
    append(log, story.begun())
    for _ in range(5):
        group = [story.tell(story.next(events.NodeLogged, node_id="n0", event="told", detail="x"))]
        group += [story.tell(story.next(events.NodeLogged, node_id="n0", event="told", detail="y"))]
        append(log, *group * 1)
    assert [one.event() for one in log.read(story.id)] == story.told
    assert len(log.read(story.id, limit=11)) == 11
    assert len(log.feed(Position(0), 1_000)) == 10


def test_the_summary_row_is_that_of_the_folded_log(log: EventLog) -> None:
    store = ReadStore.over(log)
    stories = [Story(1), Story(2), Story(3, nodes=3)]
    outcomes = append(log, stories[0].whole({"text": "é" * 100}), stories[1].begun(), stories[2].begun())
    append(log, stories[2].tell(stories[2].next(events.NodeStarted, node_id="n0")))
    failure = events.StepError(type="ValueError", message="broken\x00text", traceback="")
    append(log, stories[2].tell(stories[2].next(events.NodeFailed, node_id="n0", error=failure, attempt=1)))
    append(log, stories[2].tell(stories[2].next(events.Failed, error=failure, node_id="n0")))

    for story in stories:
        assert story.state is not None
        found = execution_summary.get(store, story.id)
        assert found is not None
        position = log.read(story.id)[-1].position
        assert found == execution_summary.ExecutionRow(*execution_summary.row(story.state, position))
    assert list(check(store)) == []
    assert recorded(outcomes[0])[-1].topic == "execution.completed"


def test_a_conflict_leaves_the_summary_row_alone(log: EventLog) -> None:
    store = ReadStore.over(log)
    story = Story(1)
    append(log, story.begun())
    loser = story.fork()
    append(log, story.tell(story.next(events.Recovered, owner="host-2")))

    append(log, loser.tell(loser.next(events.CancellationRequested, previous_status="running")))

    found = execution_summary.get(store, story.id)
    assert found is not None
    assert (found.status, found.owner, found.version) == ("running", "host-2", 3)


def test_open_executions_and_owners_follow_the_streams(log: EventLog) -> None:
    append(log, Story(1).whole(), Story(2).begun(), Story(3, owner="host-2").begun(), Story(4).begun())

    assert log.open_executions(HOST) == [execution_id(2), execution_id(4)]
    assert log.open_executions(HOST, after=execution_id(2)) == [execution_id(4)]
    assert log.open_executions(HOST, limit=1) == [execution_id(2)]
    assert log.open_executions(HostName("nobody")) == []
    assert log.owners() == {HOST: 2, HostName("host-2"): 1}
    assert log.is_open(execution_id(2))
    assert not log.is_open("nobody")


def test_owners_are_counted_up_to_a_bound(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    assert log.owners() == {}
    append(log, *(Story(number).begun() for number in range(1, 6)), Story(6, owner="host-2").begun())
    bounded = execution_summary.OWNERS.replace(str(execution_summary.OWNED_MAX), "3")
    monkeypatch.setattr(execution_summary, "OWNERS", bounded)
    assert log.owners() == {HOST: 3, HostName("host-2"): 1}


def test_due_executions_come_in_the_order_of_their_wake_up(log: EventLog) -> None:
    stories = [Story(number) for number in (1, 2, 3)]
    for story, timeout in zip(stories, (30.0, 10.0, None), strict=True):
        append(log, story.tell(story.queued(timeout_seconds=timeout)))
    ended = Story(4)
    append(log, ended.whole())
    wake = Micros(START + 1 + 10_000_000)

    assert log.next_wake(HOST) == wake
    assert log.due(HOST, Micros(wake - 1), 10) == []
    assert log.due(HOST, wake, 10) == [execution_id(2)]
    assert log.due(HOST, Micros(wake + 60_000_000), 10) == [execution_id(2), execution_id(1)]
    assert log.due(HOST, Micros(wake + 60_000_000), 1) == [execution_id(2)]
    assert log.next_wake(HostName("nobody")) is None


def test_an_unknown_event_is_refused_when_it_is_read(log: EventLog) -> None:
    story = Story(1)
    append(log, story.begun())
    with ReadStore.over(log).transaction() as transaction:
        transaction.execute(
            "UPDATE stored_events SET topic = 'execution.teleported' WHERE originator_version = 2"
        )

    with pytest.raises(Diverged, match=r"execution\.teleported"):
        log.read(story.id)[1].event()


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_what_was_committed_is_there_after_reopening(
    store: str, tmp_path: Any, request: pytest.FixtureRequest
) -> None:
    """Memory is left out by its nature: nothing of it outlives its last opener."""
    url = request.getfixturevalue("postgres_url") if store == "postgres" else f"sqlite:///{tmp_path}/again.db"
    story = Story(1)
    first = EventLog.open(store_env(url))
    append(first, story.begun())
    first.close()

    second = EventLog.open(store_env(url))
    try:
        append(second, story.tell(story.next(events.NodeStarted, node_id="n0")))
        assert [one.event() for one in second.read(story.id)] == story.told
        assert second.open_executions(HOST) == [story.id]
    finally:
        second.close()


def test_the_folder_of_a_new_file_is_made(tmp_path: Path) -> None:
    log = EventLog.open(store_env(f"sqlite:///{tmp_path}/data/of/mine/log.db"))
    try:
        assert log.max_position() == 0
    finally:
        log.close()
    assert (tmp_path / "data" / "of" / "mine" / "log.db").is_file()


def test_a_file_that_is_no_log_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"this is no database, " * 100)
    with pytest.raises(Unavailable, match=r"log\.db can't be opened: file is not a database"):
        EventLog.open(store_env(f"sqlite:///{tmp_path}/log.db"))


def test_the_file_is_written_with_full_durability(tmp_path: Path) -> None:
    store = ReadStore.open(store_env(f"sqlite:///{tmp_path}/log.db"))
    try:
        with store.transaction() as transaction:
            assert transaction.query("PRAGMA journal_mode") == [("wal",)]
            assert transaction.query("PRAGMA synchronous") == [(2,)]  # FULL
    finally:
        store.close()
