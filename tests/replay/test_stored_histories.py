"""Histories of released versions load to the states they had; newer ones are refused."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from projections import execution_summary, inline
from projections.inline_rebuild import check, rebuild
from projections.store import ReadStore
from runtime import codec, events
from runtime.errors import Diverged
from runtime.event_log import Append, Chain, EventLog, Recorded, store_env
from runtime.events import EVENT_TYPES, UPCASTS
from runtime.evolution import begin, evolve
from runtime.ids import Position
from runtime.state import ExecutionState
from tests.conformance.histories import execution_id
from tests.replay.histories import FOLDER, load, restore
from tests.replay.stories import states, tell_all

RELEASES = ["release_0_1"]


@pytest.mark.parametrize("release", RELEASES)
def test_a_released_history_loads_to_the_exact_states(release: str) -> None:
    expected: dict[str, dict[str, Any]] = json.loads((FOLDER / f"{release}.states.json").read_text("utf-8"))

    found = msgspec.json.decode(msgspec.json.encode(states(load(release))))

    assert found.keys() == expected.keys()
    for stream, fields in expected.items():
        # A field that came later isn't in the file; those that are must be what they were.
        assert {name: found[stream].get(name) for name in fields} == fields, stream


@pytest.mark.parametrize("release", RELEASES)
def test_a_released_history_is_an_unbroken_chain(release: str) -> None:
    heads: dict[str, str] = {}
    for one in load(release):
        assert codec.previous_hash(one.data) == heads.get(one.originator_id, "")
        heads[one.originator_id] = one.hash()


def test_the_newest_release_tells_every_event_there_is() -> None:
    """A new event needs a place in ``tests.replay.stories`` before it is released."""
    log = EventLog.open(store_env("memory://"))
    try:
        tell_all(log)
        told = {one.topic for one in log.feed(Position(0), 1_000)}
    finally:
        log.close()
    assert told == set(EVENT_TYPES)


@pytest.mark.parametrize("release", RELEASES)
def test_a_restored_log_goes_on_where_it_stopped(release: str, tmp_path: Path) -> None:
    history = load(release)
    log = EventLog.open(store_env(f"sqlite:///{tmp_path}/log.db"))
    store = ReadStore.over(log)
    try:
        restore(store, history)
        assert rebuild(store) == len(states(history))
        assert list(check(store)) == []
        assert all(store.query(f"SELECT COUNT(*) FROM {model.table}")[0][0] for model in inline.MODELS)

        stream = execution_id(5)
        stored = log.read(stream)
        state = states(stored)[stream]
        assert isinstance(state, ExecutionState)
        event = events.Recovered(
            originator_id=stream, originator_version=state.version + 1, at=state.updated_at, owner="host-9"
        )
        append = Append(stream, (event,), evolve(state, event), Chain(stored[-1].hash()))
        [outcome] = log.append([append])

        assert isinstance(outcome, tuple)
        assert outcome[0].position == history[-1].position + 1
        row = execution_summary.get(store, stream)
        assert row is not None
        assert (row.owner, row.version) == ("host-9", state.version + 1)
    finally:
        log.close()


class NodeLogged(events.NodeLogged, frozen=True, kw_only=True, omit_defaults=True):
    """As if a later release had renamed ``text`` of version 1 to ``detail``."""

    class_version = 2


def _rename_text(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "detail": fields.pop("text")}


def folded(history: list[Recorded]) -> ExecutionState:
    state = begin(history[0].event())
    for one in history[1:]:
        state = evolve(state, one.event())
    return state


def test_an_older_class_version_is_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVENT_TYPES, NodeLogged.TOPIC, NodeLogged)
    monkeypatch.setitem(UPCASTS, (NodeLogged.TOPIC, 1), _rename_text)
    history = load("older_class_version")

    logged = [event for one in history if isinstance(event := one.event(), NodeLogged)]

    assert [one.detail for one in logged] == ["told by version 1", "told by version 2"]
    assert folded(history).version == len(history)


def test_a_newer_class_version_is_refused() -> None:
    history = load("older_class_version")
    with pytest.raises(Diverged, match=r"execution\.node_logged of class version 2"):
        history[-1].event()


def test_an_event_of_a_newer_release_is_refused() -> None:
    history = load("newer_event")
    assert [one.event().TOPIC for one in history[:-1]] == ["execution.queued", "execution.started"]
    with pytest.raises(Diverged, match=r"'execution\.teleported', which this release doesn't know"):
        folded(history)


def test_a_restored_log_of_a_newer_release_is_refused_by_a_rebuild(tmp_path: Path) -> None:
    log = EventLog.open(store_env(f"sqlite:///{tmp_path}/log.db"))
    store = ReadStore.over(log)
    try:
        restore(store, load("newer_event"))
        with pytest.raises(Diverged, match=r"execution\.teleported"):
            rebuild(store)
    finally:
        log.close()
