"""Batches: one flow over very many inputs, as a resource and executions of the built-in flow `batch-run`.

    POST --resource.created (ids drawn)--> executions started --> ... --> ended --retry--> another round

The ids of a round's executions are recorded with the batch before any of them is started, and starting an id
that exists is harmless. So when a gateway dies in between, any gateway that follows the log starts them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec
import structlog

from gateway.batch_documents import (
    KIND,
    ROUNDS_MAX,
    SOURCE,
    BatchDocument,
    BatchSource,
    RoundDocument,
    as_json,
    files_of,
    input_of,
    read_document,
    shards_of,
    subject_of,
)
from gateway.batch_progress import ARCHIVED, BatchProgress, Progress
from gateway.builtin_flows import BATCH, ensure
from gateway.envelopes import Problem
from gateway.following import Following, supervise
from gateway.map_outcomes import MapOutcomes, Round
from projections import execution_summary
from runtime import events
from runtime.administration import Cause
from runtime.commands import Pause, RequestCancel, Resume, StartExecution
from runtime.datasets import write_lines
from runtime.errors import AlreadyExists, InvalidTransition, NotFound, Refused, Unavailable
from runtime.events import BlobRef
from runtime.ids import Micros

if TYPE_CHECKING:
    from gateway.catalogue import PublishedFlow
    from gateway.context import Gateway
    from gateway.registry import Resource
    from runtime.events import Json

log = structlog.get_logger("gateway.batches")

READER = "batches"
"""Name of the tracking position."""

POLL_SECONDS_MIN, POLL_SECONDS_MAX = 0.2, 1.0
"""How often a stream looks for news: soon after there were some, more seldom while there are none."""

Command = Pause | Resume | RequestCancel


class Batch(msgspec.Struct, frozen=True):
    """One batch as it is now."""

    resource: Resource
    document: BatchDocument
    progress: BatchProgress

    @property
    def batch_id(self) -> str:
        return self.resource.resource_id


class Batches:
    """Lives on the event loop, one for a gateway; ``run`` follows the log until cancelled."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._progress = Progress(gateway.log, gateway.store)
        self.outcomes = MapOutcomes(gateway.log, gateway.blobs)
        topics = (events.ResourceCreated.TOPIC, events.ResourceChanged.TOPIC)
        self._following = Following(gateway.log, gateway.store, READER, topics)

    # --- reading ----------------------------------------------------------------------------------------

    async def find(self, tenant: str, batch_id: str) -> Batch:
        """Raises: Problem batch_not_found, also for another tenant's."""
        resource = await self._gateway.registry.get(tenant, KIND, batch_id)
        if resource is None:
            raise Problem("batch_not_found")
        return await self._seen(resource)

    async def listing(self, tenant: str, limit: int, offset: int) -> tuple[list[Batch], int]:
        """Newest first, and how many there are in all."""
        found, total = await self._gateway.registry.listing(
            tenant, KIND, limit=limit, offset=offset, newest_first=True
        )
        return [await self._seen(one) for one in found], total

    async def _seen(self, resource: Resource) -> Batch:
        document = read_document(resource.document)
        progress = await self._progress.of(resource, document, self._gateway.clock())
        return Batch(resource, document, progress)

    async def rounds(self, batch: Batch) -> list[Round]:
        """For `outcomes`."""
        return await self._progress.rounds(batch.document)

    async def changes(self, batch: Batch, after: int) -> AsyncIterator[Batch]:
        """The batch whenever it got further than the position ``after``, to its end."""
        pause = POLL_SECONDS_MIN
        while True:
            if batch.progress.position > after:
                after = batch.progress.position
                pause = POLL_SECONDS_MIN
                yield batch
            if batch.progress.is_closed:
                return
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, POLL_SECONDS_MAX)
            batch = await self.find(batch.resource.tenant, batch.batch_id)

    # --- creating ---------------------------------------------------------------------------------------

    async def create(
        self,
        tenant: str,
        flow: PublishedFlow,
        source: BatchSource,
        cause: Cause,
        batch_id: str,
        *,
        name: str,
        items: int | None,
        concurrency: int,
    ) -> Batch:
        """Record the batch, then start it; the same id again gives the one there is.

        Raises: Refused when the tenant's administrator disabled the built-in flow.
        """
        try:
            await ensure(self._gateway, tenant, BATCH)
        except NotFound as error:
            raise Refused(str(error)) from None
        document = BatchDocument(
            name=name,
            flow_id=flow.definition.id,
            flow_version=flow.version,
            concurrency=concurrency,
            rounds=(self._round(source, items, concurrency, cause.by),),
        )
        try:
            resource = await self._gateway.registry.create(tenant, KIND, as_json(document), cause, batch_id)
        except AlreadyExists:
            resource = await self._gateway.registry.get(tenant, KIND, batch_id)
            if resource is None:
                raise
        await self._begin_soon(resource)
        return await self._seen(resource)

    def _round(
        self,
        source: BatchSource,
        items: int | None,
        concurrency: int,
        by: str,
        indexes: BlobRef | None = None,
    ) -> RoundDocument:
        runtime = self._gateway.runtime
        hosts = sum(runtime.readiness().hosts.values()) if runtime is not None else 1
        count = shards_of(hosts, items, concurrency)
        ids = tuple(self._gateway.new_id() for _ in range(count))
        return RoundDocument(executions=ids, source=source, items=items, indexes=indexes, by=by)

    # --- messages ---------------------------------------------------------------------------------------

    async def pause(self, batch: Batch, by: str, cause: str) -> Batch:
        """No further item begins until `resume`. Raises: InvalidTransition once it has ended."""
        return await self._send(batch, lambda at: Pause(at=at, by=by, cause=cause))

    async def resume(self, batch: Batch, by: str, cause: str) -> Batch:
        """Raises: InvalidTransition once it has ended."""
        return await self._send(batch, lambda at: Resume(at=at, by=by, cause=cause))

    async def cancel(self, batch: Batch, by: str, cause: str, reason: str) -> Batch:
        """No further item begins, those that run are cancelled. Raises: InvalidTransition after the end."""
        return await self._send(batch, lambda at: RequestCancel(at=at, by=by, cause=cause, reason=reason))

    async def _send(self, batch: Batch, command: Callable[[Micros], Command]) -> Batch:
        if batch.progress.is_closed:
            raise InvalidTransition(f"the batch is already {batch.progress.status}")
        # Whatever a crash left unstarted must not begin behind a cancellation's back.
        await self._begin(batch.resource)
        last = batch.document.rounds[-1]
        for execution_id in last.executions:
            try:
                await self._gateway.executions.send(execution_id, command(self._gateway.clock()))
            except InvalidTransition:
                continue  # it is so already, or has ended
        return await self.find(batch.resource.tenant, batch.batch_id)

    # --- another round ----------------------------------------------------------------------------------

    async def retry_failed(self, batch: Batch, cause: Cause) -> Batch:
        """A round over the failed items. Raises: Refused while the batch runs, or when nothing has failed."""
        if not batch.progress.is_closed or batch.progress.status == ARCHIVED:
            raise Refused(f"the batch is {batch.progress.status}; failed items are retried once it has ended")
        if len(batch.document.rounds) >= ROUNDS_MAX:
            raise Refused(f"a batch has at most {ROUNDS_MAX} rounds")
        rounds = await self.rounds(batch)
        items, indexes, count = await asyncio.to_thread(self._failed_files, rounds)
        if not count:
            raise Refused("no item has failed")
        source = BatchSource(blob=items, name="failed.jsonl", format="jsonl")
        following = self._round(source, count, batch.document.concurrency, cause.by, indexes)

        def decide(now: Resource) -> Mapping[str, Json]:
            known = read_document(now.document).rounds
            if len(known) != len(rounds):
                raise Refused("failed items are being retried already")
            return {"rounds": [as_json(one) for one in (*known, following)]}

        resource = await self._gateway.registry.change(
            batch.resource.tenant, KIND, batch.batch_id, decide, cause
        )
        await self._begin_soon(resource)
        return await self._seen(resource)

    def _failed_files(self, rounds: list[Round]) -> tuple[BlobRef, BlobRef, int]:
        """The failed items and their places, as two files, and their number. Blocking."""
        count = 0

        def places() -> Iterator[bytes]:
            nonlocal count
            for failure in self.outcomes.failed(rounds):
                count += 1
                yield b"%d" % failure.index

        blobs = self._gateway.blobs
        indexes = write_lines(blobs, places())
        items = write_lines(blobs, (bytes(failure.item) for failure in self.outcomes.failed(rounds)))
        return items, indexes, count

    # --- starting ---------------------------------------------------------------------------------------

    async def _begin_soon(self, resource: Resource) -> None:
        """Start what isn't; when no host takes it now, whoever follows the log does it later."""
        try:
            await self._begin(resource)
        except (Unavailable, Problem) as error:
            log.info("batch_waits_for_hosts", batch=resource.resource_id, reason=str(error))

    async def _begin(self, resource: Resource) -> None:
        """Start the executions of the last round that aren't; harmless when they are."""
        gateway, document = self._gateway, read_document(resource.document)
        last = document.rounds[-1]
        ids = list(last.executions)
        known = await asyncio.to_thread(execution_summary.get_many, gateway.store, ids)
        missing = [shard for shard, each in enumerate(ids) if each not in known]
        if not missing:
            return
        flow = await ensure(gateway, resource.tenant, BATCH)
        for shard in missing:
            command = StartExecution(
                at=gateway.clock(),
                by=last.by,
                cause=resource.resource_id,
                execution_id=ids[shard],
                tenant=resource.tenant,
                flow_id=BATCH,
                flow_version=flow.version,
                source=SOURCE,
                input=input_of(document, last, shard),
                correlation_id=resource.resource_id,
                files=files_of(ids[shard], last.source),
                subject=subject_of(resource.resource_id),
            )
            await gateway.executions.start(command)

    async def run(self) -> None:
        """Start what was recorded and not started, in this gateway or in one that died."""
        await supervise(READER, self.follow_once)

    async def follow_once(self) -> bool:
        """Start the batches of the next page of the log; True when there may be more."""
        if self._gateway.client is None:
            return False
        page = await asyncio.to_thread(self._following.page)
        if page is None:
            return False
        streams = dict.fromkeys(each.originator_id for each in page.events)
        found = 0
        for stream in streams:
            # resource:<tenant>:<kind>:<id>, none of the first three with a colon inside
            _, tenant, kind, identity = stream.split(":", 3)
            if kind != KIND:
                continue
            resource = await self._gateway.registry.get(tenant, KIND, identity)
            if resource is not None and not (await self._seen(resource)).progress.is_closed:
                found += 1
                await self._begin_known(resource)
        await asyncio.to_thread(self._following.followed, page, track=found > 0)
        return page.more

    async def _begin_known(self, resource: Resource) -> None:
        try:
            await self._begin(resource)
        except NotFound as error:
            # The tenant's administrator disabled the built-in flow: no later try is any better.
            log.warning("batch_not_started", batch=resource.resource_id, reason=str(error))
