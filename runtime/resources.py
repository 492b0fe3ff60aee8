"""What the agent contracts keep between runs, agents, skills, tasks, ...: one aggregate for all. Pure.

A resource is a JSON object with a history: who changed which field, when. What the fields mean is the
contracts' business; here stands only what holds for every kind: a deleted resource stays deleted, and its id
is never used again.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from runtime import events
from runtime.administration import Cause
from runtime.errors import AlreadyExists, Diverged, InvalidInput, InvariantViolated, NotFound
from runtime.events import Event, Json
from runtime.ids import Micros, TenantId, resource_stream

DOCUMENT_BYTES_MAX = 256 * 1024
"""Size of a document as JSON."""

ID_CHARS_MAX = 200

_in_order = msgspec.json.Encoder(order="sorted").encode
_KIND = re.compile(r"[a-z][a-z0-9_]{0,39}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class ResourceState(msgspec.Struct, frozen=True, kw_only=True):
    """``version`` counts events; ``document`` holds the fields as they are now (at the end, once deleted)."""

    originator_id: str
    version: int
    tenant: TenantId
    kind: str
    resource_id: str
    document: dict[str, Json]
    created_at: int
    created_by: str
    updated_at: int
    deleted_at: int | None = None


def evolve_resource(state: ResourceState | None, event: Event) -> ResourceState:
    """Raises: Diverged when the event can't follow this state."""
    version = 0 if state is None else state.version
    if event.originator_version != version + 1:
        raise Diverged(f"{event.originator_id}: version {event.originator_version} can't follow {version}")
    match event:
        case events.ResourceCreated() if state is None:
            return ResourceState(
                originator_id=event.originator_id,
                version=1,
                tenant=TenantId(event.tenant),
                kind=event.kind,
                resource_id=event.resource_id,
                document=event.document,
                created_at=event.at,
                created_by=event.by,
                updated_at=event.at,
            )
        case events.ResourceChanged() if state is not None and state.deleted_at is None:
            document = {**state.document, **event.changes}
            return replace(state, version=version + 1, document=document, updated_at=event.at)
        case events.ResourceDeleted() if state is not None and state.deleted_at is None:
            return replace(state, version=version + 1, updated_at=event.at, deleted_at=event.at)
        case _:
            raise Diverged(f"{event.originator_id}: {event.TOPIC} can't stand at version {version + 1}")


def fold_resource(history: Iterable[Event]) -> ResourceState | None:
    """None for an empty history."""
    state: ResourceState | None = None
    for event in history:
        state = evolve_resource(state, event)
    return state


def create(
    state: ResourceState | None,
    tenant: TenantId,
    kind: str,
    resource_id: str,
    document: Mapping[str, Json],
    cause: Cause,
) -> tuple[Event, ...]:
    """Raises: AlreadyExists, also for a deleted one; InvalidInput for a document past its bound."""
    if state is not None:
        raise AlreadyExists(f"{kind} {resource_id} exists")
    _check_name(tenant, kind, resource_id)
    return (
        events.ResourceCreated(
            originator_id=resource_stream(tenant, kind, resource_id),
            originator_version=1,
            at=cause.at,
            by=cause.by,
            cause=cause.cause,
            corr=cause.corr,
            tenant=tenant,
            kind=kind,
            resource_id=resource_id,
            document=_plain(document),
        ),
    )


def change(state: ResourceState | None, changes: Mapping[str, Json], cause: Cause) -> tuple[Event, ...]:
    """Give fields new values; those that have them already are left out, and nothing is recorded for nothing.

    Raises: NotFound; InvalidInput for a document past its bound.
    """
    if state is None or state.deleted_at is not None:
        raise NotFound("no such resource")
    known = state.document
    given = _plain(changes)
    news = {
        name: value for name, value in given.items() if name not in known or not _is_same(known[name], value)
    }
    if not news:
        return ()
    _plain({**known, **news})
    return (
        events.ResourceChanged(
            originator_id=state.originator_id,
            originator_version=state.version + 1,
            at=_not_before(state, cause),
            by=cause.by,
            cause=cause.cause,
            corr=cause.corr,
            changes=news,
        ),
    )


def delete(state: ResourceState | None, cause: Cause) -> tuple[Event, ...]:
    """For good; deleting it again records nothing. Raises: NotFound for one that never was."""
    if state is None:
        raise NotFound("no such resource")
    if state.deleted_at is not None:
        return ()
    return (
        events.ResourceDeleted(
            originator_id=state.originator_id,
            originator_version=state.version + 1,
            at=_not_before(state, cause),
            by=cause.by,
            cause=cause.cause,
            corr=cause.corr,
        ),
    )


def _not_before(state: ResourceState, cause: Cause) -> Micros:
    return Micros(max(cause.at, state.updated_at))  # another gateway's clock may be ahead of this one's


def _check_name(tenant: str, kind: str, resource_id: str) -> None:
    """What a stream's name is made of: parts that can't run into each other."""
    if not tenant or ":" in tenant or _KIND.fullmatch(kind) is None:
        raise InvariantViolated(f"{tenant!r} and {kind!r} can't name a resource")
    if not 1 <= len(resource_id) <= ID_CHARS_MAX or _CONTROL.search(resource_id):
        raise InvalidInput(
            (("id", f"must be 1 to {ID_CHARS_MAX} characters, none of them control characters"),)
        )


def _plain(document: Mapping[str, Json]) -> dict[str, Json]:
    """The document as a reader of the log will see it, so that the live state and a replay are the same."""
    try:
        encoded = msgspec.json.encode(dict(document))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput((("", f"can't be written as JSON: {error}"),)) from None
    if len(encoded) > DOCUMENT_BYTES_MAX:
        raise InvalidInput((("", f"must be at most {DOCUMENT_BYTES_MAX} bytes as JSON"),))
    return cast("dict[str, Any]", msgspec.json.decode(encoded))


def _is_same(one: Json, other: Json) -> bool:
    """Equal as JSON: ``1`` is neither ``true`` nor ``1.0``, as a reader of the document sees them."""
    return bool(one == other) and _in_order(one) == _in_order(other)
