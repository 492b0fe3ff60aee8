"""The small aggregates an auditor asks about: published flows and API keys. Pure.

Each is a frozen state, ``evolve_*`` (one event), ``fold_*`` (a history) and decisions that return the events
to append: none when there is nothing to record, so repeating a request is harmless.
"""

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from runtime import events
from runtime.errors import AlreadyExists, Diverged, NotFound
from runtime.events import Event, Json
from runtime.ids import FlowId, KeyId, Micros, TenantId, flow_stream, key_stream


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """When, by which key, and through which request something is asked for."""

    at: Micros
    by: str = "system"
    cause: str = ""
    corr: str = ""


class FlowState(msgspec.Struct, frozen=True, kw_only=True):
    """One published flow of a tenant. ``version`` counts events; ``latest`` is the flow version in force.

    ``definition`` is that of ``latest``; ``versions`` are all that were ever published, oldest first.
    """

    originator_id: str
    version: int
    tenant: TenantId
    flow_id: FlowId
    latest: str
    definition: Json
    versions: tuple[str, ...]
    enabled: bool
    created_at: int
    published_at: int
    published_by: str
    updated_at: int


def evolve_flow(state: FlowState | None, event: Event) -> FlowState:
    """Raises: Diverged when the event can't follow this state."""
    _follow("flow", 0 if state is None else state.version, event)
    match event:
        case events.FlowPublished():
            known = () if state is None else state.versions
            return FlowState(
                originator_id=event.originator_id,
                version=event.originator_version,
                tenant=TenantId(event.tenant),
                flow_id=FlowId(event.flow_id),
                latest=event.flow_version,
                definition=event.definition,
                versions=known if event.flow_version in known else (*known, event.flow_version),
                enabled=True if state is None else state.enabled,
                created_at=event.at if state is None else state.created_at,
                published_at=event.at,
                published_by=event.by,
                updated_at=event.at,
            )
        case events.FlowDisabled() | events.FlowEnabled() if state is not None:
            enabled = isinstance(event, events.FlowEnabled)
            return replace(state, version=event.originator_version, enabled=enabled, updated_at=event.at)
        case _:
            raise _stranger(event)


def fold_flow(history: Iterable[Event]) -> FlowState | None:
    """None for an empty history."""
    state: FlowState | None = None
    for event in history:
        state = evolve_flow(state, event)
    return state


def publish(
    state: FlowState | None,
    tenant: TenantId,
    flow_id: FlowId,
    flow_version: str,
    definition: Json,
    cause: Cause,
) -> tuple[Event, ...]:
    """Make ``flow_version`` the latest. Publishing the latest again records nothing.

    A disabled flow stays disabled: switching it on again is a decision of its own.
    """
    if state is not None and state.latest == flow_version:
        return ()
    return (
        events.FlowPublished(
            originator_id=flow_stream(tenant, flow_id),
            originator_version=1 if state is None else state.version + 1,
            at=cause.at if state is None else max(cause.at, state.updated_at),
            by=cause.by,
            cause=cause.cause,
            corr=cause.corr,
            tenant=tenant,
            flow_id=flow_id,
            flow_version=flow_version,
            definition=definition,
        ),
    )


def disable(state: FlowState | None, cause: Cause) -> tuple[Event, ...]:
    """No new execution starts; running ones go on. Raises: NotFound."""
    return _switch(state, False, cause)


def enable(state: FlowState | None, cause: Cause) -> tuple[Event, ...]:
    """Raises: NotFound."""
    return _switch(state, True, cause)


def _switch(state: FlowState | None, enabled: bool, cause: Cause) -> tuple[Event, ...]:
    if state is None:
        raise NotFound("no such flow")
    if state.enabled is enabled:
        return ()
    kind = events.FlowEnabled if enabled else events.FlowDisabled
    return (
        kind(
            originator_id=state.originator_id,
            originator_version=state.version + 1,
            at=max(cause.at, state.updated_at),
            by=cause.by,
            cause=cause.cause,
            corr=cause.corr,
        ),
    )


class ApiKeyState(msgspec.Struct, frozen=True, kw_only=True):
    """One API key. The secret is never known here, only its SHA-256 (``key_hash``, hex)."""

    originator_id: str
    version: int
    key_id: KeyId
    key_hash: str
    tenant: TenantId
    name: str
    scopes: tuple[str, ...]
    requests_per_minute: int | None
    open_streams_max: int | None
    unfinished_executions_max: int | None
    expires_at: int | None
    created_at: int
    created_by: str
    revoked_at: int | None = None
    revoked_by: str = ""

    def is_valid(self, now: Micros) -> bool:
        """Neither revoked nor expired at ``now``."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


def evolve_key(state: ApiKeyState | None, event: Event) -> ApiKeyState:
    """Raises: Diverged when the event can't follow this state."""
    _follow("key", 0 if state is None else state.version, event)
    match event:
        case events.ApiKeyCreated() if state is None:
            return ApiKeyState(
                originator_id=event.originator_id,
                version=event.originator_version,
                key_id=KeyId(event.key_id),
                key_hash=event.key_hash,
                tenant=TenantId(event.tenant),
                name=event.name,
                scopes=event.scopes,
                requests_per_minute=event.requests_per_minute,
                open_streams_max=event.open_streams_max,
                unfinished_executions_max=event.unfinished_executions_max,
                expires_at=event.expires_at,
                created_at=event.at,
                created_by=event.by,
            )
        case events.ApiKeyRevoked() if state is not None and state.revoked_at is None:
            return replace(state, version=event.originator_version, revoked_at=event.at, revoked_by=event.by)
        case _:
            raise _stranger(event)


def fold_key(history: Iterable[Event]) -> ApiKeyState | None:
    """None for an empty history."""
    state: ApiKeyState | None = None
    for event in history:
        state = evolve_key(state, event)
    return state


def create_key(
    state: ApiKeyState | None,
    key_id: KeyId,
    key_hash: str,
    tenant: TenantId,
    name: str,
    scopes: tuple[str, ...],
    cause: Cause,
    *,
    requests_per_minute: int | None = None,
    open_streams_max: int | None = None,
    unfinished_executions_max: int | None = None,
    expires_at: Micros | None = None,
) -> tuple[Event, ...]:
    """A limit of None is no limit. Raises: AlreadyExists."""
    if state is not None:
        raise AlreadyExists(f"API key {key_id} exists")
    return (
        events.ApiKeyCreated(
            originator_id=key_stream(key_id),
            originator_version=1,
            at=cause.at,
            by=cause.by,
            cause=cause.cause,
            corr=cause.corr,
            key_id=key_id,
            key_hash=key_hash,
            tenant=tenant,
            name=name,
            scopes=scopes,
            requests_per_minute=requests_per_minute,
            open_streams_max=open_streams_max,
            unfinished_executions_max=unfinished_executions_max,
            expires_at=expires_at,
        ),
    )


def revoke_key(state: ApiKeyState | None, cause: Cause) -> tuple[Event, ...]:
    """For good. Raises: NotFound."""
    if state is None:
        raise NotFound("no such API key")
    if state.revoked_at is not None:
        return ()
    return (
        events.ApiKeyRevoked(
            originator_id=state.originator_id,
            originator_version=state.version + 1,
            at=max(cause.at, state.created_at),
            by=cause.by,
            cause=cause.cause,
            corr=cause.corr,
        ),
    )


def _follow(what: str, version: int, event: Event) -> None:
    if event.originator_version != version + 1:
        raise Diverged(
            f"{event.originator_id}: version {event.originator_version} can't follow {version} of this {what}"
        )


def _stranger(event: Event) -> Diverged:
    return Diverged(f"{event.originator_id}: {event.TOPIC} can't stand at version {event.originator_version}")
