"""Flows and API keys: given events, when asked, then events."""

from collections.abc import Sequence

import pytest

from runtime import administration as admin
from runtime import events
from runtime.administration import Cause
from runtime.errors import AlreadyExists, Diverged, NotFound
from runtime.events import Event
from runtime.ids import FlowId, KeyId, Micros, TenantId

ACME = TenantId("acme")
REPORT = FlowId("report")


def cause(at: int = 10) -> Cause:
    return Cause(at=Micros(at), by="key_1", cause="req_1", corr="story")


def publish(history: Sequence[Event], version: str, at: int = 10) -> tuple[Event, ...]:
    state = admin.fold_flow(history)
    return admin.publish(state, ACME, REPORT, version, {"name": "Report", "v": version}, cause(at))


def test_the_first_publication_creates_an_enabled_flow() -> None:
    history = publish([], "aaaa")

    [event] = history
    assert isinstance(event, events.FlowPublished)
    assert (event.originator_id, event.originator_version) == ("flow:acme:report", 1)
    assert (event.by, event.cause, event.corr) == ("key_1", "req_1", "story")
    state = admin.fold_flow(history)
    assert state is not None
    assert (state.latest, state.versions, state.enabled) == ("aaaa", ("aaaa",), True)
    assert state.definition == {"name": "Report", "v": "aaaa"}


def test_publishing_the_latest_version_again_records_nothing() -> None:
    assert publish(publish([], "aaaa"), "aaaa") == ()


def test_an_older_version_can_become_the_latest_again() -> None:
    history = list(publish([], "aaaa"))
    history += publish(history, "bbbb", at=20)
    history += publish(history, "aaaa", at=30)

    state = admin.fold_flow(history)

    assert state is not None
    assert (state.latest, state.versions, state.version) == ("aaaa", ("aaaa", "bbbb"), 3)
    assert (state.created_at, state.published_at) == (10, 30)
    assert state.definition == {"name": "Report", "v": "aaaa"}


def test_a_flow_is_switched_off_and_on_once() -> None:
    history = list(publish([], "aaaa"))
    off = admin.disable(admin.fold_flow(history), cause(20))
    history += off
    assert [event.TOPIC for event in off] == ["flow.disabled"]
    assert admin.disable(admin.fold_flow(history), cause(21)) == ()

    on = admin.enable(admin.fold_flow(history), cause(30))
    history += on
    assert [event.TOPIC for event in on] == ["flow.enabled"]
    assert admin.enable(admin.fold_flow(history), cause(31)) == ()


def test_publishing_leaves_a_disabled_flow_disabled() -> None:
    history = list(publish([], "aaaa"))
    history += admin.disable(admin.fold_flow(history), cause())
    history += publish(history, "bbbb")

    state = admin.fold_flow(history)

    assert state is not None
    assert not state.enabled
    assert state.latest == "bbbb"


def test_times_of_a_flow_never_go_back() -> None:
    history = list(publish([], "aaaa", at=100))
    history += publish(history, "bbbb", at=50)
    assert [event.at for event in history] == [100, 100]


def test_what_does_not_exist_can_not_be_switched() -> None:
    for decide in (admin.disable, admin.enable):
        with pytest.raises(NotFound):
            decide(None, cause())


def test_a_history_of_a_flow_that_can_not_be_is_refused() -> None:
    [first] = publish([], "aaaa")
    with pytest.raises(Diverged, match="can't follow"):
        admin.fold_flow([first, first])
    disabled = events.FlowDisabled(originator_id="flow:acme:report", originator_version=1, at=1)
    with pytest.raises(Diverged, match=r"flow\.disabled"):
        admin.fold_flow([disabled])


def create(state: admin.ApiKeyState | None = None) -> tuple[Event, ...]:
    return admin.create_key(
        state,
        KeyId("k1"),
        "ab" * 32,
        ACME,
        "ci",
        ("run", "read"),
        cause(),
        requests_per_minute=60,
        expires_at=Micros(1_000),
    )


def test_a_key_holds_what_it_was_created_with() -> None:
    state = admin.fold_key(create())

    assert state is not None
    assert (state.originator_id, state.key_hash, state.tenant) == ("key:k1", "ab" * 32, "acme")
    assert (state.scopes, state.requests_per_minute, state.open_streams_max) == (("run", "read"), 60, None)


def test_a_key_is_created_once() -> None:
    with pytest.raises(AlreadyExists):
        create(admin.fold_key(create()))


def test_a_key_ends_when_it_expires_or_is_revoked() -> None:
    history = list(create())
    state = admin.fold_key(history)
    assert state is not None
    assert state.is_valid(Micros(999))
    assert not state.is_valid(Micros(1_000))

    history += admin.revoke_key(state, cause(20))
    revoked = admin.fold_key(history)

    assert revoked is not None
    assert (revoked.revoked_at, revoked.revoked_by) == (20, "key_1")
    assert not revoked.is_valid(Micros(30))
    assert admin.revoke_key(revoked, cause(40)) == ()


def test_a_key_that_does_not_exist_can_not_be_revoked() -> None:
    with pytest.raises(NotFound):
        admin.revoke_key(None, cause())


def test_a_history_of_a_key_that_can_not_be_is_refused() -> None:
    revoked = events.ApiKeyRevoked(originator_id="key:k1", originator_version=1, at=1)
    with pytest.raises(Diverged, match=r"api_key\.revoked"):
        admin.fold_key([revoked])
    assert admin.fold_key([]) is None
    assert admin.fold_flow([]) is None
