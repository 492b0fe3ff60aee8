"""The generic resource: what is recorded of a change, what can't happen, and that a replay gives the same."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import codec, events, resources
from runtime.administration import Cause
from runtime.errors import AlreadyExists, Diverged, InvalidInput, InvariantViolated, NotFound
from runtime.events import Event
from runtime.ids import Micros, TenantId
from runtime.resources import DOCUMENT_BYTES_MAX, ResourceState, evolve_resource, fold_resource

ACME = TenantId("acme")


def cause(at: int = 10, by: str = "key-1") -> Cause:
    return Cause(at=Micros(at), by=by, cause="req-1", corr="story")


def created(document: dict[str, Any] | None = None) -> ResourceState:
    told = resources.create(None, ACME, "agent", "a1", document or {"name": "Ada", "tags": []}, cause())
    state = fold_resource(told)
    assert state is not None
    return state


def changed(state: ResourceState, **changes: Any) -> tuple[Event, ...]:
    return resources.change(state, changes, cause(20, "key-2"))


def test_a_created_resource_has_its_document_and_its_maker() -> None:
    [event] = resources.create(None, ACME, "agent", "a1", {"name": "Ada", "pair": (1, 2)}, cause())
    state = fold_resource([event])
    assert state is not None
    assert (event.TOPIC, event.originator_id) == ("resource.created", "resource:acme:agent:a1")
    assert (event.at, event.by, event.cause, event.corr) == (10, "key-1", "req-1", "story")
    assert state.document == {"name": "Ada", "pair": [1, 2]}
    assert (state.version, state.created_by, state.created_at, state.deleted_at) == (1, "key-1", 10, None)


def test_only_the_fields_that_differ_are_recorded() -> None:
    state = created()
    [event] = changed(state, name="Ada", tags=["x"], note=None)
    assert isinstance(event, events.ResourceChanged)
    assert event.changes == {"tags": ["x"], "note": None}
    after = evolve_resource(state, event)
    assert after.document == {"name": "Ada", "tags": ["x"], "note": None}
    assert (after.version, after.updated_at, after.created_at) == (2, 20, 10)


def test_a_change_without_news_records_nothing() -> None:
    state = created({"name": "Ada", "more": {"a": 1, "b": 2}})
    assert changed(state) == ()
    assert changed(state, name="Ada", more={"b": 2, "a": 1}) == ()


@pytest.mark.parametrize(("before", "after"), [(1, True), (0, False), (1, 1.0), ([1], [True])])
def test_values_that_only_look_equal_to_python_are_changes(before: Any, after: Any) -> None:
    assert len(changed(created({"n": before}), n=after)) == 1


def test_a_deleted_resource_neither_changes_nor_comes_back() -> None:
    state = created()
    [event] = resources.delete(state, cause(30))
    gone = evolve_resource(state, event)
    assert (gone.deleted_at, gone.updated_at, gone.document) == (30, 30, state.document)
    assert resources.delete(gone, cause(40)) == ()
    with pytest.raises(NotFound):
        changed(gone, name="Eve")
    with pytest.raises(AlreadyExists):
        resources.create(gone, ACME, "agent", "a1", {}, cause())


def test_what_never_was_is_not_found() -> None:
    with pytest.raises(NotFound):
        resources.change(None, {"a": 1}, cause())
    with pytest.raises(NotFound):
        resources.delete(None, cause())


def test_times_never_go_back() -> None:
    state = created()
    [event] = resources.change(state, {"a": 1}, cause(3))
    assert event.at == 10
    [event] = resources.delete(state, cause(3))
    assert event.at == 10


def test_a_document_past_its_bound_is_refused() -> None:
    half = "x" * (DOCUMENT_BYTES_MAX // 2)
    with pytest.raises(InvalidInput, match="at most 262144 bytes"):
        created({"a": half, "b": half})
    with pytest.raises(InvalidInput, match="at most 262144 bytes"):
        changed(created({"a": half}), b=half)


@pytest.mark.parametrize("value", [object(), {"a": {1j}}, "\ud800"])
def test_what_is_no_json_is_refused(value: Any) -> None:
    with pytest.raises(InvalidInput, match="can't be written as JSON"):
        changed(created(), value=value)


@pytest.mark.parametrize("resource_id", ["", "x" * 201, "a\x00b", "a\nb"])
def test_an_id_that_is_no_name_is_refused(resource_id: str) -> None:
    with pytest.raises(InvalidInput, match="id: must be"):
        resources.create(None, ACME, "agent", resource_id, {}, cause())


@pytest.mark.parametrize(("tenant", "kind"), [("a:b", "agent"), ("", "agent"), ("acme", "a:b"), ("acme", "")])
def test_a_stream_name_is_never_ambiguous(tenant: str, kind: str) -> None:
    with pytest.raises(InvariantViolated):
        resources.create(None, TenantId(tenant), kind, "x", {}, cause())


def test_a_history_that_can_not_be_is_refused() -> None:
    state = created()
    late = {"originator_id": state.originator_id, "at": 50}
    gone = evolve_resource(state, events.ResourceDeleted(originator_version=2, **late))  # type: ignore[arg-type] # mixed values
    for before, event in (
        (
            None,
            events.ResourceChanged(originator_id="resource:a:b:c", originator_version=1, at=1, changes={}),
        ),
        (state, events.ResourceDeleted(originator_version=3, **late)),  # type: ignore[arg-type] # mixed values
        (gone, events.ResourceChanged(originator_version=3, changes={}, **late)),  # type: ignore[arg-type] # mixed values
        (gone, events.ResourceDeleted(originator_version=3, **late)),  # type: ignore[arg-type] # mixed values
        (state, events.FlowDisabled(originator_version=2, **late)),  # type: ignore[arg-type] # mixed values
    ):
        with pytest.raises(Diverged):
            evolve_resource(before, event)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=5,
)
DOCUMENTS = st.dictionaries(st.sampled_from(["name", "title", "tags", "x"]), VALUES, max_size=4)
STEPS = st.lists(st.tuples(st.sampled_from(["create", "change", "change", "delete"]), DOCUMENTS), max_size=12)


@given(steps=STEPS)
def test_whatever_is_asked_a_replay_of_the_stored_bytes_is_the_live_state(
    steps: list[tuple[str, dict[str, Any]]],
) -> None:
    live: ResourceState | None = None
    expected: dict[str, Any] = {}
    stored: list[tuple[str, bytes]] = []
    for number, (verb, document) in enumerate(steps):
        try:
            match verb:
                case "create":
                    told = resources.create(live, ACME, "skill", "s1", document, cause(number))
                    expected = dict(document)
                case "change":
                    told = resources.change(live, document, cause(number))
                    expected |= document
                case _:
                    told = resources.delete(live, cause(number))
        except (AlreadyExists, NotFound):
            continue
        for event in told:
            live = evolve_resource(live, event)
            stored.append((event.TOPIC, codec.encode(event, "")))

    history = [codec.decode(topic, data) for topic, data in stored]

    assert fold_resource(history) == live
    assert [event.originator_version for event in history] == list(range(1, len(history) + 1))
    if live is not None:
        assert codec_value(live.document) == codec_value(expected)


def codec_value(document: dict[str, Any]) -> Any:
    """As JSON, where a float that is no number is null."""
    return msgspec.json.encode(msgspec.json.decode(msgspec.json.encode(document)), order="sorted")
