"""Every request the client makes, as data: what is sent, and how its answer reads. Pure.

`drivers` send them, `procedures` put them in order; nothing here knows which of the two drivers it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from gateway.client.errors import ClientError
from gateway.client.views import (
    BatchSnapshot,
    EventRecord,
    FailedItem,
    Graph,
    PublishedFlow,
    Sent,
    Snapshot,
)
from runtime.packages import MEDIA_TYPE as PACKAGE_TYPE

T = TypeVar("T")

JSON = "application/json"
YAML = "application/yaml"
AUDIT = "/api/audit/executions"
ADMIN = "/api/admin"
BATCHES = f"{ADMIN}/batches"


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T]):
    """One request. ``repeatable``: sending it twice does no more than once.

    ``not_found``: what a 404 means, where that is clearer than the server's words.
    """

    method: str
    path: str
    read: Callable[[bytes], T]
    query: Mapping[str, Any] = field(default_factory=dict[str, Any])
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    repeatable: bool = True
    not_found: str = ""
    upload: Upload | None = None


class Upload(NamedTuple):
    """A form with one file, read anew from its beginning by each try."""

    fields: Mapping[str, str]
    name: str
    media_type: str
    file: BinaryIO


class FlowSource(Protocol):
    """A flow written with the decorators of `runtime.authoring`."""

    @property
    def id(self) -> str: ...

    def definition(self) -> Any: ...


def flow_id_of(flow: str | FlowSource) -> str:
    return flow if isinstance(flow, str) else flow.id


# --- flows ----------------------------------------------------------------------------------------------


def publish(document: bytes, media_type: str, tenant: str | None, key: str) -> Call[PublishedFlow]:
    return Call(
        method="POST",
        path=f"{ADMIN}/flows",
        read=reader(PublishedFlow),
        query=given(tenant=tenant),
        content=document,
        headers={"content-type": media_type, "idempotency-key": key},
    )


class _Package(msgspec.Struct, frozen=True):
    package: str


def upload_package(content: bytes, tenant: str | None) -> Call[str]:
    """The name of the package: the same bytes again are the same package."""
    read = reader(_Package)
    return Call(
        method="POST",
        path=f"{ADMIN}/packages",
        read=lambda body: read(body).package,
        query=given(tenant=tenant),
        content=content,
        headers={"content-type": PACKAGE_TYPE},
    )


# --- executions -----------------------------------------------------------------------------------------


class _Started(msgspec.Struct, frozen=True):
    execution_id: str


def start(flow_id: str, input_data: Mapping[str, Any], key: str) -> Call[str]:
    """The execution's id, once it is durable."""
    read = reader(_Started)
    return Call(
        method="POST",
        path=f"/v1/executions/{segment(flow_id)}/async",
        read=lambda body: read(body).execution_id,
        content=json_bytes({"input_data": input_data}),
        headers={"content-type": JSON, "idempotency-key": key},
        not_found=f"no published flow is called {flow_id!r}",
    )


def show(execution_id: str) -> Call[Snapshot]:
    return Call(method="GET", path=f"{AUDIT}/{segment(execution_id)}", read=reader(Snapshot))


class ExecutionPage(msgspec.Struct, frozen=True):
    executions: tuple[Snapshot, ...]
    next_cursor: str | None = None


def list_executions(filters: Mapping[str, Any], cursor: str | None, limit: int) -> Call[ExecutionPage]:
    query = given(**filters, cursor=cursor, limit=limit)
    return Call(method="GET", path=AUDIT, read=reader(ExecutionPage), query=query)


def graph(execution_id: str) -> Call[Graph]:
    return Call(method="GET", path=f"{AUDIT}/{segment(execution_id)}/graph", read=reader(Graph))


def events(execution_id: str) -> Call[EventRecord]:
    """A stream; `read` reads the data of one of its frames."""
    return Call(
        method="GET",
        path=f"{AUDIT}/{segment(execution_id)}/events/stream",
        read=reader(EventRecord),
    )


def output(execution_id: str, place: str, node: str | None, after: int = 0) -> Call[bytes]:
    """What stands at a JSON Pointer in an output, as bytes of its own media type."""
    return Call(
        method="GET",
        path=f"{AUDIT}/{segment(execution_id)}/output",
        read=bytes,
        query=given(at=place or None, node=node, after=after or None),
    )


def cancel(execution_id: str, reason: str, correlation_id: str) -> Call[Sent]:
    """A repeat under the same correlation id is known as the request that was accepted before."""
    headers = {"x-correlation-id": correlation_id}
    return _message(execution_id, "cancel", {"reason": reason}, headers=headers)


def pause(execution_id: str) -> Call[Sent]:
    return _message(execution_id, "pause", {})


def resume(execution_id: str) -> Call[Sent]:
    # Whoever resumes what was resumed already is told so, which would hide that it worked.
    return _message(execution_id, "resume", {}, repeatable=False)


def signal(execution_id: str, name: str, payload: Any, signal_id: str) -> Call[Sent]:
    return _message(execution_id, "signal", {"name": name, "payload": payload, "signal_id": signal_id})


class FailedPage(msgspec.Struct, frozen=True):
    items: tuple[FailedItem, ...]
    next_after: int | None = None


def failed_map_items(execution_id: str, node: str, after: int | None, limit: int) -> Call[FailedPage]:
    """``node`` empty: the only wide map that has some."""
    path = f"{ADMIN}/executions/{segment(execution_id)}/failed-items"
    query = given(node=node or None, after=after, limit=limit)
    return Call(method="GET", path=path, read=reader(FailedPage), query=query)


def rerun_failed(execution_id: str, node: str, key: str) -> Call[str]:
    """The id of the new execution."""
    read = reader(_Started)
    return Call(
        method="POST",
        path=f"{ADMIN}/executions/{segment(execution_id)}/rerun-failed",
        read=lambda body: read(body).execution_id,
        content=json_bytes({"node": node}),
        headers={"content-type": JSON, "idempotency-key": key},
    )


def _message(
    execution_id: str,
    verb: str,
    body: Mapping[str, Any],
    *,
    headers: Mapping[str, str] | None = None,
    repeatable: bool = True,
) -> Call[Sent]:
    return Call(
        method="POST",
        path=f"{ADMIN}/executions/{segment(execution_id)}/{verb}",
        read=reader(Sent),
        content=json_bytes(body),
        headers={"content-type": JSON, **(headers or {})},
        repeatable=repeatable,
    )


# --- batches --------------------------------------------------------------------------------------------


def create_batch(upload: Upload, key: str) -> Call[BatchSnapshot]:
    return Call(
        method="POST",
        path=BATCHES,
        read=reader(BatchSnapshot),
        headers={"idempotency-key": key},
        upload=upload,
        not_found=f"no published flow is called {upload.fields['flow']!r}",
    )


def create_batch_from(source: str, fields: Mapping[str, Any], key: str) -> Call[BatchSnapshot]:
    """Over what the server itself can read."""
    return Call(
        method="POST",
        path=BATCHES,
        read=reader(BatchSnapshot),
        content=json_bytes({**fields, "source": source}),
        headers={"content-type": JSON, "idempotency-key": key},
        not_found=f"no published flow is called {fields['flow']!r}",
    )


def show_batch(batch_id: str) -> Call[BatchSnapshot]:
    return Call(method="GET", path=f"{BATCHES}/{segment(batch_id)}", read=reader(BatchSnapshot))


def batch_events(batch_id: str) -> Call[BatchSnapshot]:
    """A stream; `read` reads the data of one of its frames."""
    return Call(method="GET", path=f"{BATCHES}/{segment(batch_id)}/events", read=reader(BatchSnapshot))


def failed_items(batch_id: str, after: int | None, limit: int) -> Call[FailedPage]:
    path = f"{BATCHES}/{segment(batch_id)}/items"
    query = given(status="failed", after=after, limit=limit)
    return Call(method="GET", path=path, read=reader(FailedPage), query=query)


def batch_results(batch_id: str, form: str) -> Call[bytes]:
    """A file of any size: ``jsonl`` or ``parquet``."""
    path = f"{BATCHES}/{segment(batch_id)}/results"
    return Call(method="GET", path=path, read=bytes, query={"format": form})


def batch_message(batch_id: str, verb: str, reason: str | None = None, key: str = "") -> Call[BatchSnapshot]:
    """pause, resume, cancel or retry-failed; ``key`` makes a repeat of the last harmless."""
    return Call(
        method="POST",
        path=f"{BATCHES}/{segment(batch_id)}/{verb}",
        read=reader(BatchSnapshot),
        content=json_bytes(given(reason=reason)),
        headers={"content-type": JSON, **({"idempotency-key": key} if key else {})},
    )


# --- parts ----------------------------------------------------------------------------------------------


def reader(kind: type[T]) -> Callable[[bytes], T]:
    """Read a JSON body. Raises: ClientError when it isn't what the server of this version sends."""

    def read(body: bytes) -> T:
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ClientError(f"the answer is not that of a Heliograph server: {error}") from None

    return read


def json_bytes(value: Any) -> bytes:
    """Raises: TypeError for what JSON can't hold."""
    return msgspec.json.encode(value)


def segment(text: str) -> str:
    """``text`` as one segment of a path."""
    return quote(text, safe="")


def given(**query: Any) -> dict[str, Any]:
    return {name: value for name, value in query.items() if value is not None}
