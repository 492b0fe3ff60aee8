"""The read store and the inline read models, on every store."""

import threading
from collections.abc import Mapping

import pytest
from eventsourcing.persistence import IntegrityError

from projections import api_keys, callbacks, execution_summary, flows, inline, resources
from projections.execution_summary import Cursor
from projections.inline_rebuild import Difference, check, rebuild
from projections.store import ReadStore
from projections.stores import layout, postgres, sqlite
from runtime import administration as admin
from runtime import callbacks as deliveries
from runtime import events
from runtime import resources as aggregate
from runtime.administration import Cause
from runtime.errors import Diverged
from runtime.event_log import Append, Chain, EventLog
from runtime.events import StepError
from runtime.ids import ExecutionId, FlowId, KeyId, Micros, TenantId
from tests.conformance.conftest import OpenLog
from tests.conformance.histories import START, Story, execution_id

ACME = TenantId("acme")


@pytest.fixture
def store(log: EventLog) -> ReadStore:
    return ReadStore.over(log)


def publish(log: EventLog, flow_id: str, version: str, at: int = 10, name: str = "") -> None:
    history = log.read(f"flow:acme:{flow_id}")
    state = admin.fold_flow(one.event() for one in history)
    definition = {"name": name, "v": version}
    told = admin.publish(state, ACME, FlowId(flow_id), version, definition, Cause(at=Micros(at), by="key_1"))
    for event in told:
        state = admin.evolve_flow(state, event)
    chain = Chain(history[-1].hash() if history else "")
    [outcome] = log.append([Append(f"flow:acme:{flow_id}", told, state, chain)])
    assert isinstance(outcome, tuple)


def create_key(log: EventLog, key_id: str, tenant: str = "acme") -> admin.ApiKeyState:
    told = admin.create_key(
        None, KeyId(key_id), key_id * 8, TenantId(tenant), f"key {key_id}", ("run",), Cause(at=Micros(5))
    )
    state = admin.fold_key(told)
    assert state is not None
    log.append([Append(f"key:{key_id}", told, state, Chain())])
    return state


def schedule_callback(log: EventLog, number: int) -> tuple[deliveries.CallbackState, Chain]:
    chain = Chain()
    told = deliveries.schedule(
        None, ExecutionId(execution_id(number)), ACME, "https://example.org", "ability", at=Micros(START)
    )
    state = deliveries.fold_callback(told)
    assert state is not None
    log.append([Append(state.originator_id, told, state, chain)])
    return state, chain


def test_statements_of_a_transaction_commit_together_or_not_at_all(store: ReadStore) -> None:
    store.execute("CREATE TABLE notes (id TEXT NOT NULL PRIMARY KEY, n BIGINT)")
    with store.transaction() as transaction:
        transaction.executemany("INSERT INTO notes (id, n) VALUES (?, ?)", [("a", 1), ("100%", 2)])
        assert transaction.query("SELECT n FROM notes WHERE id = ?", ("100%",)) == [(2,)]

    def begin_and_fail() -> None:
        with store.transaction() as transaction:
            transaction.execute("DELETE FROM notes")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        begin_and_fail()
    with pytest.raises(IntegrityError):
        store.execute("INSERT INTO notes (id, n) VALUES (?, ?)", ("a", 3))

    assert store.query("SELECT id, n FROM notes WHERE id LIKE ? ORDER BY n", ("%",)) == [
        ("a", 1),
        ("100%", 2),
    ]


def test_a_tracking_position_commits_with_the_rows_and_only_moves_on(store: ReadStore) -> None:
    assert store.tracked("timeline") == 0
    with store.transaction() as transaction:
        transaction.track("timeline", 7)
    with pytest.raises(IntegrityError), store.transaction() as transaction:
        transaction.track("timeline", 7)

    def begin_and_fail() -> None:
        with store.transaction() as transaction:
            transaction.track("timeline", 9)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        begin_and_fail()
    assert store.tracked("timeline") == 7
    assert store.tracked("statistics") == 0


def test_a_store_of_its_own_connections_sees_the_log(env: dict[str, str], log: EventLog) -> None:
    log.append([Story(1).whole()])
    store = ReadStore.open(env)
    try:
        assert store.query("SELECT COUNT(*) FROM stored_events") == [(7,)]
    finally:
        store.close()


def test_rows_are_found_by_id_one_and_many(log: EventLog, store: ReadStore) -> None:
    stories = [Story(number) for number in range(1, 8)]
    log.append([story.whole() for story in stories])
    ids = [story.id for story in stories]

    found = execution_summary.get_many(store, [*ids[:5], execution_id(404)])

    assert sorted(found) == ids[:5]
    assert found[ids[0]] == execution_summary.get(store, ids[0])
    assert execution_summary.get(store, execution_id(404)) is None
    assert execution_summary.get_many(store, []) == {}


def test_more_ids_than_one_statement_takes(log: EventLog, store: ReadStore) -> None:
    stories = [Story(number) for number in range(1, 600)]
    log.append([story.begun() for story in stories])
    assert len(execution_summary.get_many(store, [story.id for story in stories])) == 599


def test_unfinished_executions_are_counted_by_tenant(log: EventLog, store: ReadStore) -> None:
    log.append([Story(1).whole(), Story(2).begun(), Story(3).begun(), Story(4, tenant="other").begun()])
    assert execution_summary.count_unfinished(store, "acme") == 2
    assert execution_summary.count_unfinished(store, "other") == 1
    assert execution_summary.count_unfinished(store, "nobody") == 0


def test_running_children_are_counted_by_parent(log: EventLog, store: ReadStore) -> None:
    parent, other = execution_id(900), execution_id(901)
    stories = [Story(number) for number in range(1, 5)]
    log.append([one.tell(one.queued(parent_id=parent)) for one in stories[:3]])
    log.append([stories[3].tell(stories[3].queued(parent_id=other))])
    log.append([one.tell(one.next(events.Started)) for one in stories[1:]])
    log.append([stories[2].tell(stories[2].next(events.Cancelled))])
    assert execution_summary.count_children(store, "acme", [parent]) == 1
    assert execution_summary.count_children(store, "acme", [parent, other]) == 2
    assert execution_summary.count_children(store, "other", [parent]) == 0


def tell_varied(log: EventLog) -> None:
    """Ten executions, a second apart; odd ones completed, one failed, one of another tenant."""
    for number in range(1, 11):
        story = Story(number, tenant="other" if number == 10 else "acme", nodes=1)
        at = START + number * 1_000_000
        appends = [story.tell(story.queued(at=at, input={"name": "50%_x" if number == 4 else f"N{number}"}))]
        begun = events.Started(originator_id=story.id, originator_version=2, at=at)
        appends.append(story.tell(begun))
        if number == 2:
            failed = events.Failed(
                originator_id=story.id, originator_version=3, at=at, error=StepError(type="E", message="Boom")
            )
            appends.append(story.tell(failed))
        log.append(appends)


def ids_of(store: ReadStore, filters: Mapping[str, object]) -> list[int]:
    rows, _ = execution_summary.search(store, filters, limit=100)
    return [int(row.execution_id[-12:]) for row in rows]


def test_a_search_is_newest_first_and_filtered(log: EventLog, store: ReadStore) -> None:
    tell_varied(log)

    assert ids_of(store, {}) == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    assert ids_of(store, {"tenant": "other"}) == [10]
    assert ids_of(store, {"status": "failed"}) == [2]
    assert ids_of(store, {"tenant": "acme", "status": ["failed", "queued"]}) == [2]
    assert ids_of(store, {"status": []}) == []
    assert ids_of(store, {"created_from": START + 8_000_000, "created_until": START + 10_000_000}) == [9, 8]
    assert ids_of(store, {"text": "boom"}) == [2]
    assert ids_of(store, {"text": "n7"}) == [7]
    assert ids_of(store, {"text": "50%_X"}) == [4], "the text is no pattern"
    assert ids_of(store, {"flow_id": "greeting", "source": "ability"}) == []
    with pytest.raises(KeyError):
        execution_summary.search(store, {"1=1; --": "x"})


def test_pages_of_a_search_meet_without_gap_or_repeat(log: EventLog, store: ReadStore) -> None:
    tell_varied(log)
    seen: list[str] = []
    cursor: Cursor | None = None
    for _ in range(10):
        rows, cursor = execution_summary.search(store, {"tenant": "acme"}, cursor, limit=4)
        seen += [row.execution_id for row in rows]
        if cursor is None:
            break
    assert seen == [execution_id(number) for number in range(9, 0, -1)]


def test_a_flow_and_all_its_versions_are_rows(log: EventLog, store: ReadStore) -> None:
    publish(log, "report", "aaaa", name="The report")
    publish(log, "report", "bbbb", at=20)
    publish(log, "report", "aaaa", at=30, name="The report")
    publish(log, "other", "cccc")

    row = flows.get(store, "acme", "report")

    assert row is not None
    assert (row.name, row.version, row.enabled, row.created_at, row.published_at) == (
        "The report",
        "aaaa",
        1,
        10,
        30,
    )
    assert [one.version for one in flows.versions(store, "acme", "report")] == ["bbbb", "aaaa"]
    version = flows.get_version(store, "acme", "report", "bbbb")
    assert version is not None
    assert version.definition == '{"name":"","v":"bbbb"}'
    assert [one.flow_id for one in flows.listing(store, "acme")] == ["other", "report"]
    assert [one.flow_id for one in flows.listing(store, "acme", after="other")] == ["report"]
    assert flows.get(store, "other", "report") is None
    assert list(check(store)) == []


def test_a_key_is_found_by_its_hash_and_its_revocation_shows(log: EventLog, store: ReadStore) -> None:
    state = create_key(log, "k1")
    create_key(log, "k2", tenant="other")
    assert api_keys.count(store) == 2
    found = api_keys.by_hash(store, "k1" * 8)
    assert found is not None
    assert (found.key_id, found.scopes, found.revoked_at) == ("k1", '["run"]', None)
    assert [row.key_id for row in api_keys.listing(store)] == ["k1", "k2"]
    assert [row.key_id for row in api_keys.listing(store, "other")] == ["k2"]

    told = admin.revoke_key(state, Cause(at=Micros(50)))
    history = log.read("key:k1")
    log.append([Append("key:k1", told, admin.evolve_key(state, told[0]), Chain(history[-1].hash()))])

    revoked = api_keys.get(store, "k1")
    assert revoked is not None
    assert revoked.revoked_at == 50
    assert api_keys.by_hash(store, "nothing") is None
    assert list(check(store)) == []


def test_due_callbacks_are_found_and_delivered_ones_leave(log: EventLog, store: ReadStore) -> None:
    state, chain = schedule_callback(log, 1)
    schedule_callback(log, 2)
    assert [row.execution_id for row in callbacks.due(store, Micros(START), 10)] == [
        execution_id(1),
        execution_id(2),
    ]
    assert callbacks.due(store, Micros(START - 1), 10) == []

    told = deliveries.deliver(state, 200, at=Micros(START + 5))
    log.append([Append(state.originator_id, told, deliveries.evolve_callback(state, told[0]), chain)])

    assert [row.execution_id for row in callbacks.due(store, Micros(START), 10)] == [execution_id(2)]
    assert callbacks.next_due(store) == START
    row = callbacks.get(store, execution_id(1))
    assert row is not None
    assert (row.status, row.attempts, row.due_at) == ("delivered", 1, None)


def keep_resource(
    log: EventLog, resource_id: str, document: dict[str, object], *, deleted: bool = False
) -> None:
    told = list(aggregate.create(None, ACME, "agent", resource_id, document, Cause(at=Micros(5), by="k")))
    if deleted:
        told += aggregate.delete(aggregate.fold_resource(told), Cause(at=Micros(6)))
    stream = f"resource:acme:agent:{resource_id}"
    [outcome] = log.append([Append(stream, told, aggregate.fold_resource(told), Chain())])
    assert isinstance(outcome, tuple)


def test_resources_are_rows_and_deleted_ones_stay_unlisted(log: EventLog, store: ReadStore) -> None:
    keep_resource(log, "a1", {"name": "Ada \x00", "tags": ["Web"], "parent": "p", "status": "public"})
    keep_resource(log, "a2", {"title": "Bo"}, deleted=True)
    keep_resource(log, "a3", {"latest_run": execution_id(1)})

    found, total = resources.listing(store, "acme", "agent")

    assert ([row.resource_id for row in found], total) == (["a1", "a3"], 2)
    assert (found[0].name, found[0].labels, found[0].parent, found[0].shared) == (
        "Ada \ufffd",
        '["web"]',
        "p",
        1,
    )
    gone = resources.get(store, "acme", "agent", "a2")
    assert gone is not None
    assert (gone.name, gone.deleted_at, gone.version) == ("Bo", 6, 2)
    assert resources.count(store, "acme", "agent") == 2
    assert list(check(store)) == []


def test_resources_are_found_by_the_status_of_their_latest_run(log: EventLog, store: ReadStore) -> None:
    log.append([Story(1).whole(), Story(2).begun()])
    for number, run in enumerate([execution_id(1), execution_id(2), "", execution_id(3)]):
        keep_resource(log, f"t{number}", {"latest_run": run})

    def ids(*statuses: str) -> list[str]:
        rows, total = resources.listing(store, "acme", "agent", run_statuses=statuses)
        assert total == len(rows)
        return [row.resource_id for row in rows]

    assert ids("completed") == ["t0"]
    assert ids("running", "completed") == ["t0", "t1"]
    # The run of t3 was asked for and never came.
    assert ids("", "running") == ["t1", "t2", "t3"]
    assert ids("failed") == []


def test_children_are_counted_by_parent_and_tenant(log: EventLog, store: ReadStore) -> None:
    for number, parent in enumerate(["p1", "p1", "p2", "", "p3"]):
        keep_resource(log, f"c{number}", {"parent": parent})
    assert resources.count_children(store, ["acme", "other"], "agent", ["p1", "p2", "p9", ""]) == {
        "p1": 2,
        "p2": 1,
    }
    assert resources.count_children(store, ["other"], "agent", ["p1"]) == {}
    assert resources.count_children(store, ["acme"], "task", ["p1"]) == {}
    assert resources.count_children(store, [], "agent", ["p1"]) == {}
    assert resources.count_children(store, ["acme"], "agent", []) == {}


def test_more_resources_than_one_statement_takes(log: EventLog, store: ReadStore) -> None:
    ids = [f"a{number:04}" for number in range(620)]
    for resource_id in ids:
        keep_resource(log, resource_id, {})
    found = resources.get_many(store, "acme", "agent", list(reversed(ids)))
    assert [row.resource_id for row in found] == list(reversed(ids))


def tell_everything(log: EventLog) -> None:
    log.append([Story(1).whole(), Story(2).begun()])
    publish(log, "report", "aaaa")
    publish(log, "report", "bbbb", at=20)
    create_key(log, "k1")
    schedule_callback(log, 1)
    keep_resource(log, "a1", {"name": "Ada"})
    keep_resource(log, "a2", {"name": "Bo"}, deleted=True)


def content(store: ReadStore) -> dict[str, list[object]]:
    return {
        model.table: sorted(store.query(f"SELECT * FROM {model.table}"), key=repr) for model in inline.MODELS
    }


def test_dropped_read_models_are_rebuilt_as_they_were(log: EventLog, store: ReadStore) -> None:
    tell_everything(log)
    before = content(store)
    assert all(before.values())
    for model in inline.MODELS:
        store.execute(f"DELETE FROM {model.table}")

    assert rebuild(store) == 7

    assert content(store) == before
    assert list(check(store)) == []


def test_a_check_names_what_differs(log: EventLog, store: ReadStore) -> None:
    tell_everything(log)
    store.execute("UPDATE executions SET status = 'completed' WHERE execution_id = ?", (execution_id(2),))
    store.execute("DELETE FROM api_keys")
    store.execute("UPDATE callbacks SET execution_id = 'nobody'")
    store.execute("UPDATE resources SET name = 'stale' WHERE resource_id = 'a1'")

    found = list(check(store))

    assert {(one.table, one.key) for one in found} == {
        ("executions", (execution_id(2),)),
        ("api_keys", ("k1",)),
        ("callbacks", (execution_id(1),)),
        ("callbacks", ("nobody",)),
        ("resources", ("acme", "agent", "a1")),
    }
    stranger = next(one for one in found if one.key == ("nobody",))
    assert isinstance(stranger, Difference)
    assert stranger.rebuilt is None
    rebuild(store)
    assert list(check(store)) == []


def test_a_rebuild_while_serving_loses_nothing(open_log: OpenLog) -> None:
    log, other = open_log(), open_log()
    store = ReadStore.over(other)
    log.append([Story(number).begun() for number in range(1, 301)])
    done = threading.Event()

    def go_on() -> None:
        for number in range(301, 341):
            log.append([Story(number).whole()])
        done.set()

    thread = threading.Thread(target=go_on)
    thread.start()
    rebuild(store)
    thread.join(timeout=60)

    assert done.is_set()
    assert list(check(store)) == []
    assert store.query("SELECT COUNT(*) FROM executions") == [(340,)]


def test_a_log_of_a_newer_format_is_refused_at_start_up(open_log: OpenLog) -> None:
    log = open_log()
    log.append([Story(1).whole()])
    ReadStore.over(log).execute("UPDATE heliograph_meta SET value = 99 WHERE name = 'log_format'")

    with pytest.raises(Diverged, match=r"format 99, written by a newer release; this one reads up to 2"):
        open_log()


def test_a_log_with_older_rows_has_them_rebuilt_at_start_up(open_log: OpenLog) -> None:
    log = open_log()
    tell_everything(log)
    store = ReadStore.over(log)
    before = content(store)
    store.execute("UPDATE heliograph_meta SET value = 0 WHERE name = 'inline_layout'")
    store.execute("DROP TABLE executions")
    store.execute("UPDATE api_keys SET name = 'stale'")

    again = ReadStore.over(open_log())

    assert content(again) == before
    assert again.query("SELECT value FROM heliograph_meta WHERE name = 'inline_layout'") == [(inline.LAYOUT,)]


def test_a_log_whose_tables_lack_todays_columns_gets_todays_tables(open_log: OpenLog) -> None:
    log = open_log()
    tell_everything(log)
    store = ReadStore.over(log)
    before = content(store)
    store.execute("UPDATE heliograph_meta SET value = 1 WHERE name = 'inline_layout'")
    store.execute("DROP TABLE resources")
    store.execute("DROP TABLE executions")
    store.execute("CREATE TABLE executions (execution_id TEXT NOT NULL PRIMARY KEY)")

    assert content(ReadStore.over(open_log())) == before


def test_a_log_of_an_older_format_is_migrated_in_place(
    open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log()
    story = Story(1)
    log.append([story.begun()])
    now = layout.LOG_FORMAT
    monkeypatch.setattr(layout, "LOG_FORMAT", now + 2)
    for steps in (sqlite.STEPS, postgres.STEPS):
        monkeypatch.setitem(steps, now, lambda t: t.execute("CREATE TABLE migrated (step BIGINT)"))
        monkeypatch.setitem(steps, now + 1, lambda t: t.execute("INSERT INTO migrated (step) VALUES (2)"))

    again = open_log()

    assert ReadStore.over(again).query("SELECT step FROM migrated") == [(2,)]
    assert [one.event() for one in again.read(story.id)] == story.told
    open_log()
    assert ReadStore.over(again).query("SELECT step FROM migrated") == [(2,)], "each step is taken once"


def test_a_gap_in_the_migrations_is_refused(open_log: OpenLog, monkeypatch: pytest.MonkeyPatch) -> None:
    open_log()
    now = layout.LOG_FORMAT
    monkeypatch.setattr(layout, "LOG_FORMAT", now + 1)
    with pytest.raises(Diverged, match=f"no step leads from log format {now} to {now + 1}"):
        open_log()


def test_events_of_somebody_else_are_left_alone(open_log: OpenLog) -> None:
    store = ReadStore.over(open_log())
    store.execute("DROP TABLE heliograph_meta")
    with pytest.raises(Diverged, match="did not make"):
        open_log()


def test_many_may_open_a_new_store_at_once(open_log: OpenLog) -> None:
    faults: list[BaseException] = []

    def open_it() -> None:
        try:
            open_log()
        except BaseException as error:
            faults.append(error)
            raise

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert faults == []
