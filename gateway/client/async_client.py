"""The asynchronous client: what `client` has, awaited. Both carry out the same procedures."""

# ruff: noqa: A002 - input and format are the words of the API

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from gateway.client import batches, calls, procedures, publishing, values
from gateway.client.batches import Inputs, OnError
from gateway.client.calls import FlowSource, flow_id_of
from gateway.client.drivers import ANSWER_SECONDS, PATIENCE_SECONDS, AsyncDriver
from gateway.client.picture import Picture
from gateway.client.progress import batch_shown, shown
from gateway.client.publishing import Flow
from gateway.client.tables import Table, to_arrow, to_pandas
from gateway.client.views import (
    BatchSnapshot,
    EventRecord,
    FailedItem,
    ItemResult,
    PublishedFlow,
    Sent,
    Snapshot,
)
from gateway.target import find_target

if TYPE_CHECKING:
    import httpx
    import pandas


class AsyncClient:
    """A Heliograph server, from a coroutine. One event loop's; close it at the end. See `Client`."""

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_seconds: float = ANSWER_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        target = find_target(base_url, api_key, os.environ)
        self._driver = AsyncDriver(target, timeout_seconds, patience_seconds, transport)

    async def close(self) -> None:
        await self._driver.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self._driver.url!r})"

    # --- flows ------------------------------------------------------------------------------------------

    async def publish(
        self,
        flow: Flow,
        *,
        modules: Iterable[str] | None = None,
        requirements: Iterable[str] = (),
        tenant: str | None = None,
    ) -> PublishedFlow:
        """See `Client.publish`."""
        return await self._driver.perform(publishing.publish(flow, modules, requirements, tenant))

    # --- executions -------------------------------------------------------------------------------------

    async def start(
        self, flow: str | FlowSource, input: Mapping[str, Any] | None = None, *, key: str | None = None
    ) -> AsyncExecution:
        """See `Client.start`."""
        call = calls.start(flow_id_of(flow), input or {}, key or uuid4().hex)
        return AsyncExecution(self._driver, await self._driver.perform(procedures.ask(call)))

    async def run(
        self,
        flow: str | FlowSource,
        input: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        timeout_seconds: float | None = None,
        progress: bool | None = None,
    ) -> Any:
        """See `Client.run`. When it is cancelled, the execution goes on."""
        execution = await self.start(flow, input, key=key)
        return await execution.result(timeout_seconds, progress=progress)

    def execution(self, execution_id: str) -> AsyncExecution:
        """An execution by its id, whatever door it came in by. Asks nothing yet."""
        return AsyncExecution(self._driver, execution_id)

    def executions(
        self,
        *,
        flow: str | FlowSource | None = None,
        status: str | None = None,
        text: str | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[Snapshot]:
        """See `Client.executions`."""
        filters = {"flow": flow_id_of(flow) if flow is not None else None, "status": status, "text": text}
        return self._driver.iterate(procedures.list_executions(filters, limit))

    # --- many inputs ------------------------------------------------------------------------------------

    def map(
        self,
        flow: str | FlowSource,
        inputs: Inputs,
        *,
        concurrency: int | None = None,
        on_error: OnError = "raise",
        key: str | None = None,
        progress: bool | None = None,
    ) -> AsyncGenerator[Any]:
        """See `Client.map`."""
        plan = batches.Plan(flow_id_of(flow), concurrency=concurrency)
        return self._driver.iterate(
            batches.mapped(plan, inputs, key or uuid4().hex, on_error, progress, time.monotonic)
        )

    async def batch(
        self,
        flow: str | FlowSource,
        inputs: Inputs,
        *,
        concurrency: int | None = None,
        name: str = "",
        format: batches.Format = "",
        key: str | None = None,
    ) -> AsyncBatch:
        """See `Client.batch`."""
        plan = batches.Plan(flow_id_of(flow), name, concurrency, format)
        made = await self._driver.perform(batches.create(plan, inputs, key or uuid4().hex))
        return AsyncBatch(self._driver, made.batch_id)

    async def batch_from(
        self,
        flow: str | FlowSource,
        source: str,
        *,
        concurrency: int | None = None,
        name: str = "",
        format: batches.Format = "",
        key: str | None = None,
    ) -> AsyncBatch:
        """See `Client.batch_from`."""
        plan = batches.Plan(flow_id_of(flow), name, concurrency, format)
        call = calls.create_batch_from(source, plan.fields(), key or uuid4().hex)
        made = await self._driver.perform(procedures.ask(call))
        return AsyncBatch(self._driver, made.batch_id)

    def open_batch(self, batch_id: str) -> AsyncBatch:
        """See `Client.open_batch`."""
        return AsyncBatch(self._driver, batch_id)


class AsyncExecution:
    """One execution on the server. See `Execution`."""

    def __init__(self, driver: AsyncDriver, execution_id: str) -> None:
        self._driver = driver
        self.id = execution_id

    def __repr__(self) -> str:
        return f"AsyncExecution({self.id!r})"

    async def snapshot(self) -> Snapshot:
        """It as it stands now."""
        return await self._driver.perform(procedures.ask(calls.show(self.id)))

    async def picture(self) -> Picture:
        """Its graph with states and times, as it stands now; shows itself in a notebook."""
        return await self._driver.perform(procedures.picture(self.id))

    def events(self, after: int = 0) -> AsyncGenerator[EventRecord]:
        """See `Execution.events`. Who leaves it early closes it: ``async with aclosing(...)``."""
        return self._driver.iterate(procedures.follow_execution(self.id, after))

    async def wait(self, timeout_seconds: float | None = None, *, progress: bool | None = None) -> Snapshot:
        """See `Execution.wait`."""
        with shown(self.id, progress) as watch:
            waiting = procedures.wait_for_execution(self.id, timeout_seconds, time.monotonic, watch)
            return await self._driver.perform(waiting)

    async def result(self, timeout_seconds: float | None = None, *, progress: bool | None = None) -> Any:
        """See `Execution.result`. A data set comes as `AsyncDataset`."""
        found = procedures.completed(await self.wait(timeout_seconds, progress=progress))
        return await self._driver.perform(values.output_of(found, self._dataset))

    async def arrow(self, timeout_seconds: float | None = None, *, progress: bool | None = None) -> Table:
        """See `Execution.arrow`."""
        result = await self.result(timeout_seconds, progress=progress)
        return await result.arrow() if isinstance(result, AsyncDataset) else to_arrow(result)

    async def pandas(
        self, timeout_seconds: float | None = None, *, progress: bool | None = None
    ) -> pandas.DataFrame:
        """See `Execution.pandas`."""
        return to_pandas(await self.arrow(timeout_seconds, progress=progress))

    async def signal(self, name: str, payload: Any = None, *, signal_id: str | None = None) -> Sent:
        """See `Execution.signal`."""
        return await self._send(calls.signal(self.id, name, payload, signal_id or uuid4().hex))

    async def cancel(self, reason: str = "") -> Sent:
        """See `Execution.cancel`."""
        return await self._send(calls.cancel(self.id, reason, uuid4().hex))

    async def pause(self) -> Sent:
        """See `Execution.pause`."""
        return await self._send(calls.pause(self.id))

    async def resume(self) -> Sent:
        """See `Execution.resume`."""
        return await self._send(calls.resume(self.id))

    def failed_items(self, node: str = "") -> AsyncGenerator[FailedItem]:
        """See `Execution.failed_items`."""
        return self._driver.iterate(batches.failed(partial(calls.failed_map_items, self.id, node)))

    async def rerun_failed(self, node: str = "", *, key: str | None = None) -> AsyncExecution:
        """See `Execution.rerun_failed`."""
        call = calls.rerun_failed(self.id, node, key or uuid4().hex)
        return AsyncExecution(self._driver, await self._driver.perform(procedures.ask(call)))

    async def _send(self, call: calls.Call[Sent]) -> Sent:
        return await self._driver.perform(procedures.ask(call))

    def _dataset(self, info: values.DatasetInfo) -> AsyncDataset:
        return AsyncDataset(self._driver, info)


class AsyncDataset:
    """Very many results, read as a stream. See `Dataset`."""

    def __init__(self, driver: AsyncDriver, info: values.DatasetInfo) -> None:
        self._driver = driver
        self._info = info

    def __repr__(self) -> str:
        return f"AsyncDataset({self._info.items} items, {self._info.failed} failed)"

    def __len__(self) -> int:
        return self._info.items

    @property
    def failed(self) -> int:
        """How many have no result; they come as None."""
        return self._info.failed

    def __aiter__(self) -> AsyncGenerator[Any]:
        """The results in the order of the items. A broken download goes on where it broke."""
        return self._driver.iterate(values.python_rows(self._info.place))

    async def arrow(self) -> Table:
        """All of it as one table: a row an item, nulls for a failed one."""
        return await self._driver.perform(values.table_of(self._info.place))

    async def pandas(self) -> pandas.DataFrame:
        return to_pandas(await self.arrow())


class AsyncBatch:
    """One flow over many inputs, as one thing to watch, stop and repeat. See `Batch`."""

    def __init__(self, driver: AsyncDriver, batch_id: str) -> None:
        self._driver = driver
        self.id = batch_id

    def __repr__(self) -> str:
        return f"AsyncBatch({self.id!r})"

    async def snapshot(self) -> BatchSnapshot:
        """See `Batch.snapshot`."""
        return await self._driver.perform(procedures.ask(calls.show_batch(self.id)))

    def events(self) -> AsyncGenerator[BatchSnapshot]:
        """See `Batch.events`."""
        return self._driver.iterate(procedures.follow(calls.batch_events(self.id), 0, batches.has_ended))

    async def wait(
        self, timeout_seconds: float | None = None, *, progress: bool | None = None
    ) -> BatchSnapshot:
        """See `Batch.wait`."""
        with batch_shown(self.id, progress) as watch:
            waiting = batches.wait_for_batch(self.id, timeout_seconds, time.monotonic, watch)
            return await self._driver.perform(waiting)

    def results(self) -> AsyncGenerator[ItemResult]:
        """See `Batch.results`."""
        return self._driver.iterate(batches.results(self.id))

    def failed_items(self) -> AsyncGenerator[FailedItem]:
        """See `Batch.failed_items`."""
        return self._driver.iterate(batches.failed(partial(calls.failed_items, self.id)))

    async def arrow(self) -> Table:
        """See `Batch.arrow`."""
        return await self._driver.perform(batches.table(self.id))

    async def pandas(self) -> pandas.DataFrame:
        """See `Batch.pandas`."""
        return to_pandas(await self.arrow())

    async def download(self, path: Path | str) -> Path:
        """See `Batch.download`."""
        return await self._driver.perform(batches.download(self.id, Path(path)))

    async def pause(self) -> BatchSnapshot:
        """See `Batch.pause`."""
        return await self._send(calls.batch_message(self.id, "pause"))

    async def resume(self) -> BatchSnapshot:
        """See `Batch.resume`."""
        return await self._send(calls.batch_message(self.id, "resume"))

    async def cancel(self, reason: str = "") -> BatchSnapshot:
        """See `Batch.cancel`."""
        return await self._send(calls.batch_message(self.id, "cancel", reason))

    async def retry_failed(self) -> BatchSnapshot:
        """See `Batch.retry_failed`."""
        return await self._send(calls.batch_message(self.id, "retry-failed", key=uuid4().hex))

    async def _send(self, call: calls.Call[BatchSnapshot]) -> BatchSnapshot:
        return await self._driver.perform(procedures.ask(call))
