"""Partitions made ahead, plans that stay fast over them, and connections that stay within a bound."""

import psycopg
import pytest

from projections.store import ReadStore
from projections.stores import partitions
from projections.stores.partitions import AHEAD, lowest_id, moment_of
from runtime import events
from runtime.errors import Conflict, Unavailable
from runtime.event_log import EventLog, store_env
from runtime.ids import SECOND, Micros
from tests.conformance.histories import Story, execution_id

pytestmark = pytest.mark.postgres

DAY = 86_400 * SECOND


@pytest.fixture
def env(postgres_url: str) -> dict[str, str]:
    return store_env(postgres_url, partition_days=1)


def now(store: ReadStore) -> Micros:
    return Micros(store.query("SELECT (extract(epoch FROM now()) * 1000000)::bigint")[0][0])


def id_at(at: Micros, number: int = 1) -> str:
    return f"{lowest_id(at)}-7ccc-8ddd-{number:012d}"


def told_at(at: Micros) -> Story:
    story = Story(1)
    story.id = id_at(at)
    return story


def test_a_range_of_ids_is_a_range_of_time() -> None:
    at = Micros(1_790_000_000_123_000)
    assert moment_of(lowest_id(at)) == at
    assert lowest_id(at) <= id_at(at) < lowest_id(Micros(at + 1_000))


def test_partitions_stand_ready_for_the_days_to_come(log: EventLog, env: dict[str, str]) -> None:
    store = ReadStore.over(log)
    made = partitions.partitions(store)
    assert moment_of(made[0].first) <= now(store)
    assert moment_of(made[-1].behind) > now(store) + AHEAD * DAY
    assert [one.first for one in made[1:]] == [one.behind for one in made[:-1]]
    log.upkeep()
    assert partitions.partitions(store) == made, "what is there is not made again"

    for one in made[1:]:
        store.execute(f"DROP TABLE {one.name}")
    log.upkeep()
    assert partitions.partitions(store) == made


def test_executions_stand_in_the_partition_of_their_time(log: EventLog) -> None:
    store = ReadStore.over(log)
    story = told_at(now(store))
    log.append([story.whole(), Story(9).begun()])
    found = store.query("SELECT DISTINCT originator_id, tableoid::regclass::text FROM stored_events")
    present = partitions.partitions(store)[0].name
    assert dict(found) == {story.id: present, execution_id(9): partitions.REST}


def test_what_came_while_nobody_made_partitions_moves_into_theirs(log: EventLog) -> None:
    store = ReadStore.over(log)
    first, *others = partitions.partitions(store)
    for one in others:
        store.execute(f"DROP TABLE {one.name}")
    late = told_at(Micros(moment_of(first.behind) + DAY // 2))
    log.append([late.whole()])
    assert store.query("SELECT DISTINCT tableoid::regclass::text FROM stored_events") == [(partitions.REST,)]
    before = [one.data for one in log.read(late.id)]
    log.upkeep()
    assert store.query("SELECT DISTINCT tableoid::regclass::text FROM stored_events") == [(others[0].name,)]
    assert [one.data for one in log.read(late.id)] == before


def test_the_fence_holds_within_a_partition(log: EventLog) -> None:
    story = told_at(now(ReadStore.over(log)))
    log.append([story.begun()])
    other = story.fork()
    log.append([story.tell(story.next(events.NodeStarted, node_id="n0", where="host-1"))])
    [refused] = log.append([other.tell(other.next(events.NodeStarted, node_id="n1", where="host-2"))])
    assert isinstance(refused, Conflict)
    assert [one.event() for one in log.read(story.id)] == story.told


def plan_of(store: ReadStore, sql: str) -> str:
    with store.transaction() as transaction:
        transaction.execute("SET LOCAL enable_seqscan = off")  # tables of a test are too small for an index
        return "\n".join(line for (line,) in transaction.query(f"EXPLAIN {sql}"))


def test_a_page_of_the_feed_merges_indexes_and_sorts_nothing(log: EventLog) -> None:
    store = ReadStore.over(log)
    log.append([Story(number).whole() for number in range(1, 20)])
    plan = plan_of(
        store, "SELECT * FROM stored_events WHERE notification_id > 30 ORDER BY notification_id LIMIT 10"
    )
    assert "Merge Append" in plan
    assert "Sort\n" not in plan
    assert plan.count("Index Scan") == len(partitions.partitions(store)) + 2


def test_a_stream_is_read_from_one_partition(log: EventLog) -> None:
    store = ReadStore.over(log)
    plan = plan_of(store, f"SELECT * FROM stored_events WHERE originator_id = '{id_at(now(store))}'")
    assert "Append" not in plan
    assert partitions.REST not in plan


def test_pools_beyond_the_bound_are_refused_when_they_are_opened(postgres_url: str) -> None:
    env = store_env(postgres_url, 4, connections_max=9)
    logs = [EventLog.open(env) for _ in range(2)]
    try:
        with pytest.raises(Unavailable, match=r"pools of 3 processes may hold 12 .*CONNECTIONS_MAX is 9"):
            EventLog.open(env)
        logs.pop().close()
        logs.append(EventLog.open(env))
    finally:
        for log in logs:
            log.close()


def test_pools_beyond_what_the_server_has_are_refused(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as session:
        found = session.execute("SHOW max_connections").fetchone()
    assert found is not None
    most = int(found[0])
    with pytest.raises(Unavailable, match=f"the server lets them have [0-9]+ .max_connections {most}"):
        EventLog.open(store_env(postgres_url, most))
