"""/api/admin/batches: one flow over very many inputs, as one thing to watch, pause, cancel and repeat.

Whoever may start executions may start batches; a source on the server's side (a path, a URL) takes an admin
key, for it names what the server can read, not what the caller has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
from starlette.responses import Response, StreamingResponse

from actors.optional_libraries import NotInstalled
from gateway import batch_inputs
from gateway.batch_documents import BatchSource
from gateway.batch_inputs import Given
from gateway.batches import Batch
from gateway.call import Call
from gateway.catalogue import PublishedFlow
from gateway.dialects.admin.batch_docs import (
    DOCS,
    PREFIX,
    BatchList,
    BatchShown,
    CancelFields,
    FormFields,
    NewBatch,
    NoFields,
    RoundShown,
)
from gateway.dialects.admin.failed_items import after_of, page_of
from gateway.dialects.admin.flows import cause_of
from gateway.envelopes import Problem
from gateway.house_api import (
    answer,
    body_of,
    broken,
    is_admin,
    iso,
    iso_or_none,
    page_size,
    tenant_of,
    whole_number,
)
from gateway.idempotency import request_digest
from gateway.keys import READ, RUN
from gateway.outcome_files import MEDIA_TYPES, as_file
from gateway.routes import Handler, Operation, Resource
from gateway.settings import Settings
from gateway.sse import EventStream, frame, last_event_id
from gateway.uploads import MULTIPART, Form, FormFault, FormRules, read_form

OFFSET_MAX = 1_000_000
TEXT_BYTES_MAX = 4_096
"""Of each field of a form."""

FORM_OVERHEAD_BYTES = 256 * 1024

FORM_FIELDS = FormFields.__struct_fields__


# --- creating -------------------------------------------------------------------------------------------


async def create_batch(call: Call) -> Response:
    if call.media_type == MULTIPART:
        return await _from_form(call)
    call.body_max = min(call.body_max, call.gateway.settings.body_bytes_max)
    body = await call.body()
    fields = call.decoded(body, NewBatch)
    if fields is None:
        raise broken("body", "is required")
    tenant = tenant_of(call)

    async def serve(batch_id: str) -> Response:
        flow = await _flow(call, tenant, fields.flow)
        given = await _given(call, fields)
        beside = FormFields(
            flow=fields.flow, format=fields.format, concurrency=fields.concurrency, name=fields.name
        )
        return await _created(call, flow, beside, given, batch_id)

    return await call.gateway.idempotency.once(call, request_digest(tenant.encode(), body), serve)


async def _given(call: Call, fields: NewBatch) -> Given:
    if (fields.inputs is None) == (fields.source is None):
        raise broken("inputs", "a batch has either inputs or a source")
    if fields.inputs is not None:
        return await batch_inputs.inline(call.gateway.blobs, fields.inputs)
    if not is_admin(call):
        raise Problem("forbidden", "a source on the server's side takes an admin key; upload a file instead")
    return Given(BatchSource(uri=fields.source or "", format=fields.format), None)


async def _from_form(call: Call) -> Response:
    gateway, tenant = call.gateway, tenant_of(call)
    size = gateway.settings.batch_bytes_max
    rules = FormRules(
        texts=dict.fromkeys(FORM_FIELDS, TEXT_BYTES_MAX),
        files=frozenset({batch_inputs.FIELD}),
        files_max=1,
        file_bytes_max=size,
        files_bytes_max=size,
    )
    try:
        form = await read_form(call.header(b"content-type"), call.chunks(), rules, gateway.blobs.open_writer)
    except FormFault as fault:
        raise broken("body", str(fault)) from None
    try:
        fields = _fields(form)
        if not form.staged:
            raise broken(batch_inputs.FIELD, "a form needs a file of this name")
        [staged] = form.staged
        digest = request_digest(
            tenant.encode(), msgspec.json.encode(fields), staged.name.encode(), staged.writer.sha256.encode()
        )

        async def serve(batch_id: str) -> Response:
            flow = await _flow(call, tenant, fields.flow)
            [file] = await form.keep()
            schema = flow.definition.inputs
            given = await batch_inputs.uploaded(gateway.blobs, file, fields.format, schema)
            return await _created(call, flow, fields, given, batch_id)

        return await gateway.idempotency.once(call, digest, serve)
    finally:
        await asyncio.shield(form.discard())


def _fields(form: Form) -> FormFields:
    try:
        texts = {name: form.text(name) for name in FORM_FIELDS if form.text(name)}
        return msgspec.convert(texts, FormFields, strict=False)
    except FormFault as fault:
        raise broken("body", str(fault)) from None
    except msgspec.ValidationError as error:
        rule, _, where = str(error).partition(" - at `$.")
        raise broken(where.removesuffix("`") or "body", rule) from None


async def _flow(call: Call, tenant: str, flow_id: str) -> PublishedFlow:
    flow = await call.gateway.catalogue.published(tenant, flow_id)
    if flow is None:
        raise Problem("flow_not_found")
    return flow


async def _created(
    call: Call, flow: PublishedFlow, fields: FormFields, given: Given, batch_id: str
) -> Response:
    gateway = call.gateway
    await gateway.limits.count_start(call.caller)
    batch = await gateway.batches.create(
        flow.tenant,
        flow,
        given.source,
        cause_of(call),
        batch_id,
        name=fields.name,
        items=given.items,
        concurrency=fields.concurrency,
    )
    return answer(shown(batch), 201, {"location": f"{PREFIX}/{batch_id}"})


# --- seeing ---------------------------------------------------------------------------------------------


async def _found(call: Call) -> Batch:
    """The path's batch, if it is the caller's tenant's. Raises: Problem batch_not_found."""
    return await call.gateway.batches.find(tenant_of(call), call.path["batch"])


async def list_batches(call: Call) -> Response:
    limit, offset = page_size(call), whole_number(call, "offset", 0, 0, OFFSET_MAX)
    found, total = await call.gateway.batches.listing(tenant_of(call), limit, offset)
    return answer(BatchList([shown(one) for one in found], total))


async def show_batch(call: Call) -> Response:
    return answer(shown(await _found(call)))


async def batch_events(call: Call) -> Response:
    batch = await _found(call)
    return EventStream(call, _frames(call, batch, last_event_id(call)))


async def _frames(call: Call, batch: Batch, after: int) -> AsyncIterator[bytes]:
    async for news in call.gateway.batches.changes(batch, after):
        yield frame(news.progress.position, msgspec.json.encode(shown(news)))


def shown(batch: Batch) -> BatchShown:
    """A batch as every answer and event shows it."""
    document, progress, resource = batch.document, batch.progress, batch.resource
    first = document.rounds[0].source
    return BatchShown(
        batch_id=batch.batch_id,
        name=document.name,
        flow_id=document.flow_id,
        flow_version=document.flow_version,
        status=progress.status,
        counts=progress.counts,
        rate=None if progress.rate is None else round(progress.rate, 2),
        seconds_left=None if progress.seconds_left is None else round(progress.seconds_left, 1),
        concurrency=document.concurrency,
        source=first.uri or first.name,
        error=progress.error or None,
        created_at=iso(resource.created_at),
        created_by=resource.created_by,
        started_at=iso_or_none(progress.started_at),
        ended_at=iso_or_none(progress.ended_at),
        rounds=[RoundShown(each.executions, each.items) for each in document.rounds],
    )


# --- items and results ----------------------------------------------------------------------------------


async def batch_items(call: Call) -> Response:
    batch = await _found(call)
    if call.query("status") not in (None, "failed"):
        raise broken("status", "must be failed; what completed is among the results")
    after, limit = after_of(call), page_size(call)
    rounds = await call.gateway.batches.rounds(batch)
    outcomes = call.gateway.batches.outcomes
    return answer(await asyncio.to_thread(lambda: page_of(outcomes.failed(rounds, after), limit)))


async def batch_results(call: Call) -> Response:
    batch = await _found(call)
    wanted = call.query("format") or "jsonl"
    if wanted not in ("jsonl", "parquet"):
        raise broken("format", "must be jsonl or parquet")
    rounds = await call.gateway.batches.rounds(batch)
    try:
        pieces = await asyncio.to_thread(as_file, call.gateway.batches.outcomes.results(rounds), wanted)
    except NotInstalled as error:
        raise broken("format", str(error)) from None
    named = f'attachment; filename="batch-{batch.batch_id}.{wanted}"'
    headers = {"cache-control": "no-store", "content-disposition": named}
    return StreamingResponse(pieces, headers=headers, media_type=MEDIA_TYPES[wanted])


# --- messages -------------------------------------------------------------------------------------------


async def pause_batch(call: Call) -> Response:
    await body_of(call, NoFields)
    batch = await _found(call)
    return answer(shown(await call.gateway.batches.pause(batch, call.caller.key_id, call.correlation_id)))


async def resume_batch(call: Call) -> Response:
    await body_of(call, NoFields)
    batch = await _found(call)
    return answer(shown(await call.gateway.batches.resume(batch, call.caller.key_id, call.correlation_id)))


async def cancel_batch(call: Call) -> Response:
    fields = await body_of(call, CancelFields)
    batch = await _found(call)
    return answer(
        shown(
            await call.gateway.batches.cancel(batch, call.caller.key_id, call.correlation_id, fields.reason)
        )
    )


async def retry_batch(call: Call) -> Response:
    await body_of(call, NoFields)
    batch = await _found(call)

    async def serve(_request_id: str) -> Response:
        await call.gateway.limits.count_start(call.caller)
        return answer(shown(await call.gateway.batches.retry_failed(batch, cause_of(call))))

    return await call.gateway.idempotency.once(call, request_digest(batch.batch_id.encode()), serve)


# --- routes ---------------------------------------------------------------------------------------------

_HANDLERS: dict[tuple[str, str], tuple[Handler, str]] = {
    ("", "GET"): (list_batches, READ),
    ("", "POST"): (create_batch, RUN),
    ("/{batch}", "GET"): (show_batch, READ),
    ("/{batch}/events", "GET"): (batch_events, READ),
    ("/{batch}/items", "GET"): (batch_items, READ),
    ("/{batch}/results", "GET"): (batch_results, READ),
    ("/{batch}/pause", "POST"): (pause_batch, RUN),
    ("/{batch}/resume", "POST"): (resume_batch, RUN),
    ("/{batch}/cancel", "POST"): (cancel_batch, RUN),
    ("/{batch}/retry-failed", "POST"): (retry_batch, RUN),
}
_STREAMS = frozenset({"/{batch}/events", "/{batch}/results"})


def resources(settings: Settings) -> tuple[Resource, ...]:
    paths: dict[str, dict[str, Operation]] = {}
    for (path, method), (handler, scope) in _HANDLERS.items():
        body_max = settings.batch_bytes_max + FORM_OVERHEAD_BYTES if handler is create_batch else None
        paths.setdefault(path, {})[method] = Operation(
            handler=handler,
            scope=scope,
            doc=DOCS[path, method],
            body_max=body_max,
            streams=path in _STREAMS,
        )
    return tuple(Resource(f"{PREFIX}{path}", operations) for path, operations in paths.items())
