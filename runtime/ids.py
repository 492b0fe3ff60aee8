"""The vocabulary of identities and units. A bare ``str`` or ``int`` identity is a smell."""

from typing import NewType

ExecutionId = NewType("ExecutionId", str)
"""UUIDv7 text, lower case; also the originator id of the execution's stream."""

FlowId = NewType("FlowId", str)
"""The slug under which a tenant publishes a flow, e.g. ``stdlib-report``."""

FlowVersion = NewType("FlowVersion", str)
"""Content hash of a definition: the first 16 hex digits of its SHA-256."""

NodeId = NewType("NodeId", str)
TenantId = NewType("TenantId", str)
KeyId = NewType("KeyId", str)
HostName = NewType("HostName", str)

OriginatorId = NewType("OriginatorId", str)
"""Name of one event stream: an ``ExecutionId``, or a prefixed id (see the functions below)."""

Position = NewType("Position", int)
"""Place in the whole log (the library's notification id). Rising, with gaps."""

Micros = NewType("Micros", int)
"""Microseconds since 1970-01-01T00:00:00Z."""

SECOND = 1_000_000
"""One second in ``Micros``."""


def flow_stream(tenant: TenantId, flow_id: FlowId) -> OriginatorId:
    return OriginatorId(f"flow:{tenant}:{flow_id}")


def resource_stream(tenant: TenantId, kind: str, resource_id: str) -> OriginatorId:
    """``kind`` and ``tenant`` hold no colon; the id stands last, so it may."""
    return OriginatorId(f"resource:{tenant}:{kind}:{resource_id}")


def key_stream(key_id: KeyId) -> OriginatorId:
    return OriginatorId(f"key:{key_id}")


def callback_stream(execution_id: ExecutionId) -> OriginatorId:
    return OriginatorId(f"callback:{execution_id}")
