"""The blocking client. What it does is written in `procedures`; here each is given its name and its types."""

# ruff: noqa: A002 - input and format are the words of the API

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from html import escape
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from gateway.client import batches, calls, procedures, publishing, values
from gateway.client.batches import Inputs, OnError
from gateway.client.calls import FlowSource, flow_id_of
from gateway.client.drivers import ANSWER_SECONDS, PATIENCE_SECONDS, Driver
from gateway.client.errors import ClientError
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


class Client:
    """A Heliograph server, from a program or a notebook. May be shared by threads; close it at the end.

    The address comes from ``base_url``, else HELIOGRAPH_URL, else the server that last started over this data
    directory; the key likewise, by HELIOGRAPH_API_KEY. ``patience_seconds``: how long a request is repeated
    while the server is away or busy.

    Every method raises ClientError (`errors`).
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_seconds: float = ANSWER_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        target = find_target(base_url, api_key, os.environ)
        self._driver = Driver(target, timeout_seconds, patience_seconds, transport)

    def close(self) -> None:
        self._driver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._driver.url!r})"

    # --- flows ------------------------------------------------------------------------------------------

    def publish(
        self,
        flow: Flow,
        *,
        modules: Iterable[str] | None = None,
        requirements: Iterable[str] = (),
        tenant: str | None = None,
    ) -> PublishedFlow:
        """Publish a decorated flow, a definition, or a YAML or JSON file; the same again changes nothing.

        ``modules``: top-level modules whose code travels with the flow. None: of a decorated flow those of
        its functions, and what they import, unless it is installed; else none. ``requirements``:
        distributions (``name==version``) that its functions need. Neither is seen by other flows.
        """
        return self._driver.perform(publishing.publish(flow, modules, requirements, tenant))

    # --- executions -------------------------------------------------------------------------------------

    def start(
        self, flow: str | FlowSource, input: Mapping[str, Any] | None = None, *, key: str | None = None
    ) -> Execution:
        """Start a published flow; returns once that is durable.

        ``key``: the same key and input again give the same execution. Without one each call starts another,
        yet only one, however often its request must be sent.
        """
        call = calls.start(flow_id_of(flow), input or {}, key or uuid4().hex)
        return Execution(self._driver, self._driver.perform(procedures.ask(call)))

    def run(
        self,
        flow: str | FlowSource,
        input: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        timeout_seconds: float | None = None,
        progress: bool | None = None,
    ) -> Any:
        """Start a flow and wait for its result.

        Raises: NotCompleted; StillRunning after ``timeout_seconds``, when the execution goes on.
        """
        return self.start(flow, input, key=key).result(timeout_seconds, progress=progress)

    def execution(self, execution_id: str) -> Execution:
        """An execution by its id, whatever door it came in by. Asks nothing yet."""
        return Execution(self._driver, execution_id)

    def executions(
        self,
        *,
        flow: str | FlowSource | None = None,
        status: str | None = None,
        text: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Snapshot]:
        """Executions, newest first. ``status``: one or several, with commas between them."""
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
    ) -> Iterator[Any]:
        """The outputs of a flow over many inputs, in their order: a batch that is waited for.

        It begins when the first output is asked for. ``on_error`` ``raise``: ItemFailed where an input
        failed; ``keep``: the ItemFailed stands in the output's place. Raises: BatchNotCompleted.
        """
        plan = batches.Plan(flow_id_of(flow), concurrency=concurrency)
        return self._driver.iterate(
            batches.mapped(plan, inputs, key or uuid4().hex, on_error, progress, time.monotonic)
        )

    def batch(
        self,
        flow: str | FlowSource,
        inputs: Inputs,
        *,
        concurrency: int | None = None,
        name: str = "",
        format: batches.Format = "",
        key: str | None = None,
    ) -> Batch:
        """Run a flow over many inputs; returns once the batch is durable.

        ``inputs``: objects, a file (JSON Lines, CSV, Parquet), a data frame or an Arrow table; each row is
        the input of one execution, and ``concurrency`` of them are in flight. ``key``: as in `start`.
        """
        plan = batches.Plan(flow_id_of(flow), name, concurrency, format)
        made = self._driver.perform(batches.create(plan, inputs, key or uuid4().hex))
        return Batch(self._driver, made.batch_id)

    def batch_from(
        self,
        flow: str | FlowSource,
        source: str,
        *,
        concurrency: int | None = None,
        name: str = "",
        format: batches.Format = "",
        key: str | None = None,
    ) -> Batch:
        """As `batch`, over what the server reads itself: a path, a pattern or a URL. Takes an admin key."""
        plan = batches.Plan(flow_id_of(flow), name, concurrency, format)
        call = calls.create_batch_from(source, plan.fields(), key or uuid4().hex)
        return Batch(self._driver, self._driver.perform(procedures.ask(call)).batch_id)

    def open_batch(self, batch_id: str) -> Batch:
        """A batch by its id. Asks nothing yet."""
        return Batch(self._driver, batch_id)


class Execution:
    """One execution on the server. Shows as its graph in a notebook."""

    def __init__(self, driver: Driver, execution_id: str) -> None:
        self._driver = driver
        self.id = execution_id

    def __repr__(self) -> str:
        return f"Execution({self.id!r})"

    def _repr_html_(self) -> str:
        try:
            return self.picture().html()
        except ClientError as error:
            return f"<p><code>{escape(self.id)}</code>: {escape(str(error))}</p>"

    def snapshot(self) -> Snapshot:
        """It as it stands now."""
        return self._driver.perform(procedures.ask(calls.show(self.id)))

    def picture(self) -> Picture:
        """Its graph with states and times, as it stands now."""
        return self._driver.perform(procedures.picture(self.id))

    def events(self, after: int = 0) -> Iterator[EventRecord]:
        """Its events behind the position ``after``, those to come included, until it ends.

        A broken connection is taken up where it broke: no event is missed, and none comes twice.
        """
        return self._driver.iterate(procedures.follow_execution(self.id, after))

    def wait(self, timeout_seconds: float | None = None, *, progress: bool | None = None) -> Snapshot:
        """It once it has ended, however that was.

        ``progress`` draws bars; None: where somebody watches. Raises: StillRunning.
        """
        with shown(self.id, progress) as watch:
            return self._driver.perform(
                procedures.wait_for_execution(self.id, timeout_seconds, time.monotonic, watch)
            )

    def result(self, timeout_seconds: float | None = None, *, progress: bool | None = None) -> Any:
        """Its output once it completed; Arrow tables, arrays and bytes come as the flow gave them.

        A data set comes as `Dataset`. Raises: NotCompleted when it ended otherwise; StillRunning.
        """
        found = procedures.completed(self.wait(timeout_seconds, progress=progress))
        return self._driver.perform(values.output_of(found, self._dataset))

    def arrow(self, timeout_seconds: float | None = None, *, progress: bool | None = None) -> Table:
        """Its output as an Arrow table: a table, an array, rows, columns, or a data set.

        Raises: as `result`; TypeError for an output that is no table.
        """
        result = self.result(timeout_seconds, progress=progress)
        return result.arrow() if isinstance(result, Dataset) else to_arrow(result)

    def pandas(
        self, timeout_seconds: float | None = None, *, progress: bool | None = None
    ) -> pandas.DataFrame:
        """Its output as a data frame. Raises: as `arrow`."""
        return to_pandas(self.arrow(timeout_seconds, progress=progress))

    def signal(self, name: str, payload: Any = None, *, signal_id: str | None = None) -> Sent:
        """Send a signal, kept until a node waits for it; the same ``signal_id`` again does nothing."""
        return self._send(calls.signal(self.id, name, payload, signal_id or uuid4().hex))

    def cancel(self, reason: str = "") -> Sent:
        """Running nodes get 10 seconds. Raises: Conflict once it has ended."""
        return self._send(calls.cancel(self.id, reason, uuid4().hex))

    def pause(self) -> Sent:
        """Running nodes end; no further one starts. Raises: Conflict once it has ended."""
        return self._send(calls.pause(self.id))

    def resume(self) -> Sent:
        """Raises: Conflict when it isn't paused."""
        return self._send(calls.resume(self.id))

    def failed_items(self, node: str = "") -> Iterator[FailedItem]:
        """What failed in a wide map of it, and why. ``node`` empty: the only map with failed items."""
        return self._driver.iterate(batches.failed(partial(calls.failed_map_items, self.id, node)))

    def rerun_failed(self, node: str = "", *, key: str | None = None) -> Execution:
        """Start the flow over only the failed items of a wide map. Raises: Conflict when none failed."""
        call = calls.rerun_failed(self.id, node, key or uuid4().hex)
        return Execution(self._driver, self._driver.perform(procedures.ask(call)))

    def _send(self, call: calls.Call[Sent]) -> Sent:
        return self._driver.perform(procedures.ask(call))

    def _dataset(self, info: values.DatasetInfo) -> Dataset:
        return Dataset(self._driver, info)


class Dataset:
    """Very many results, read as a stream: iterating holds one block in memory, whatever their number."""

    def __init__(self, driver: Driver, info: values.DatasetInfo) -> None:
        self._driver = driver
        self._info = info

    def __repr__(self) -> str:
        return f"Dataset({self._info.items} items, {self._info.failed} failed)"

    def __len__(self) -> int:
        return self._info.items

    @property
    def failed(self) -> int:
        """How many have no result; they come as None."""
        return self._info.failed

    def __iter__(self) -> Iterator[Any]:
        """The results in the order of the items. A broken download goes on where it broke."""
        return self._driver.iterate(values.python_rows(self._info.place))

    def arrow(self) -> Table:
        """All of it as one table: a row an item, nulls for a failed one."""
        return self._driver.perform(values.table_of(self._info.place))

    def pandas(self) -> pandas.DataFrame:
        return to_pandas(self.arrow())


class Batch:
    """One flow over many inputs, as one thing to watch, stop and repeat."""

    def __init__(self, driver: Driver, batch_id: str) -> None:
        self._driver = driver
        self.id = batch_id

    def __repr__(self) -> str:
        return f"Batch({self.id!r})"

    def snapshot(self) -> BatchSnapshot:
        """It as it stands now, with its counts, rate and time left."""
        return self._driver.perform(procedures.ask(calls.show_batch(self.id)))

    def events(self) -> Iterator[BatchSnapshot]:
        """It whenever it got further, until it ends. A broken connection is taken up again."""
        return self._driver.iterate(procedures.follow(calls.batch_events(self.id), 0, batches.has_ended))

    def wait(self, timeout_seconds: float | None = None, *, progress: bool | None = None) -> BatchSnapshot:
        """It once it has ended, however that was. Raises: StillRunning."""
        with batch_shown(self.id, progress) as watch:
            waiting = batches.wait_for_batch(self.id, timeout_seconds, time.monotonic, watch)
            return self._driver.perform(waiting)

    def results(self) -> Iterator[ItemResult]:
        """What became of each input, in their order; while it runs, what there is so far."""
        return self._driver.iterate(batches.results(self.id))

    def failed_items(self) -> Iterator[FailedItem]:
        """The inputs that failed, and why."""
        return self._driver.iterate(batches.failed(partial(calls.failed_items, self.id)))

    def arrow(self) -> Table:
        """The outputs as an Arrow table: a row an input, nulls for a failed one."""
        return self._driver.perform(batches.table(self.id))

    def pandas(self) -> pandas.DataFrame:
        """The outputs as a data frame."""
        return to_pandas(self.arrow())

    def download(self, path: Path | str) -> Path:
        """Write all results into one file: Parquet when its name ends with .parquet, else JSON Lines."""
        return self._driver.perform(batches.download(self.id, Path(path)))

    def pause(self) -> BatchSnapshot:
        """Items that run end; no further one begins. Raises: Conflict once it has ended."""
        return self._send(calls.batch_message(self.id, "pause"))

    def resume(self) -> BatchSnapshot:
        """Raises: Conflict once it has ended."""
        return self._send(calls.batch_message(self.id, "resume"))

    def cancel(self, reason: str = "") -> BatchSnapshot:
        """Items that run are cancelled; what has ended keeps its outcome. Raises: Conflict after the end."""
        return self._send(calls.batch_message(self.id, "cancel", reason))

    def retry_failed(self) -> BatchSnapshot:
        """Run the failed inputs again, once it has ended. Raises: Conflict before, or when none failed."""
        return self._send(calls.batch_message(self.id, "retry-failed", key=uuid4().hex))

    def _send(self, call: calls.Call[BatchSnapshot]) -> BatchSnapshot:
        return self._driver.perform(procedures.ask(call))
