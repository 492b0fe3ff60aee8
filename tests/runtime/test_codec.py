"""The stored form of events: readable, chained, versioned."""

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgspec
import pytest

from runtime import codec, events
from runtime.errors import Diverged
from runtime.events import EVENT_TYPES, UPCASTS, Event

STREAM = "0190aaaa-bbbb-7ccc-8ddd-000000000001"


def started(version: int = 2) -> events.Started:
    return events.Started(originator_id=STREAM, originator_version=version, at=1_700_000_000_000_000)


def example(kind: type[Event]) -> Event:
    """An event of this kind with every required field filled."""
    fillers: dict[Any, Any] = {
        str: "text",
        int: 7,
        float: 2.5,
        bool: True,
        events.StepError: events.StepError(type="ValueError", message="no"),
        tuple[str, ...]: ("a", "b"),
        dict[str, events.Json]: {"a": [1, None]},
    }
    fields: dict[str, Any] = {"originator_id": STREAM, "originator_version": 3, "at": 1}
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in fields:
            literal: tuple[Any, ...] = getattr(field.type, "__args__", ())
            known = fillers.get(field.type)
            fields[field.name] = known if known is not None else (literal[0] if literal else {"k": [1, None]})
    return kind(**fields)


def test_the_stored_form_is_one_json_object_that_begins_with_prev() -> None:
    data = codec.encode(started(), "ab" * 32)

    assert data.startswith(b'{"prev":"' + b"ab" * 32 + b'","id":')
    assert json.loads(data) == {"prev": "ab" * 32, "id": STREAM, "v": 2, "at": 1_700_000_000_000_000}


@pytest.mark.parametrize("topic", sorted(EVENT_TYPES))
def test_every_event_comes_back_as_it_was(topic: str) -> None:
    event = example(EVENT_TYPES[topic])
    for prev in ("", "0f" * 32):
        assert codec.decode(topic, codec.encode(event, prev)) == event


def test_every_event_declares_a_stored_name_of_its_own() -> None:
    assert all(topic and topic == cls.TOPIC for topic, cls in EVENT_TYPES.items())
    assert all("{" not in topic for topic in EVENT_TYPES), "a brace would let name and body run together"


def test_the_hash_covers_the_name_and_the_bytes() -> None:
    data = codec.encode(started(), "")

    assert codec.stored_hash("execution.started", data) == sha256(b"execution.started" + data).hexdigest()
    assert len({codec.stored_hash(topic, data) for topic in ("execution.paused", "execution.started")}) == 2
    assert codec.previous_hash(codec.encode(started(), "cd" * 32)) == "cd" * 32


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(Diverged, match=r"'execution\.teleported'"):
        codec.decode("execution.teleported", b'{"prev":"","id":"x","v":1,"at":1}')


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"prev":"","id":"x","v":1}', b'{"prev":"","id":7,"v":1,"at":1}']
)
def test_a_body_that_does_not_fit_is_refused(data: bytes) -> None:
    with pytest.raises(Diverged, match=r"execution\.started"):
        codec.decode("execution.started", data)


def test_a_newer_class_version_is_refused() -> None:
    data = b'{"prev":"","class_version":2,"id":"x","v":1,"at":1}'
    with pytest.raises(Diverged, match=r"class version 2; this release reads up to 1"):
        codec.decode("execution.started", data)


def test_a_value_that_speaks_of_class_version_is_not_taken_for_one() -> None:
    event = events.SignalReceived(
        originator_id=STREAM,
        originator_version=2,
        at=1,
        signal_id="s",
        name='"class_version":9',
        payload={"class_version": 9},
    )
    short = events.SignalReceived(
        originator_id='"class_version":9', originator_version=2, at=1, signal_id="s", name="n"
    )
    for one in (event, short):
        assert codec.decode(one.TOPIC, codec.encode(one, "")) == one


Upcast = Callable[[dict[str, Any]], dict[str, Any]]


class Measured(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Only for tests: version 1 had ``seconds``, version 2 ``millis``, version 3 adds ``unit``."""

    TOPIC = "test.measured"
    class_version = 3
    millis: int
    unit: str


def _to_2(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "millis": fields.pop("seconds") * 1000}


def _to_3(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "unit": "ms"}


def test_old_versions_are_lifted_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVENT_TYPES, Measured.TOPIC, Measured)
    monkeypatch.setitem(UPCASTS, (Measured.TOPIC, 1), _to_2)
    monkeypatch.setitem(UPCASTS, (Measured.TOPIC, 2), _to_3)
    now = Measured(originator_id="x", originator_version=1, at=1, millis=2_000, unit="ms")

    assert codec.decode(Measured.TOPIC, b'{"prev":"","id":"x","v":1,"at":1,"seconds":2}') == now
    second = b'{"prev":"","class_version":2,"id":"x","v":1,"at":1,"millis":2000}'
    assert codec.decode(Measured.TOPIC, second) == now
    stored = codec.encode(now, "")
    assert stored.startswith(b'{"prev":"","class_version":3,')
    assert codec.decode(Measured.TOPIC, stored) == now


def test_a_missing_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVENT_TYPES, Measured.TOPIC, Measured)
    with pytest.raises(Diverged, match="from class version 1 to 2"):
        codec.decode(Measured.TOPIC, b'{"prev":"","id":"x","v":1,"at":1,"seconds":2}')
