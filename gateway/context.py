"""What every request can reach: the parts, put together once in `app` and handed to each handler.

`Executions` says what the gateway needs of the hosts; the real one is `actors.client.ExecutionClient`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from uuid_utils import uuid7

from gateway.envelopes import Problem
from gateway.settings import Settings
from runtime.commands import Pause, RequestCancel, Resume, Signal, StartExecution
from runtime.event_log import EventLog, Recorded
from runtime.ids import Micros
from runtime.state import Status

if TYPE_CHECKING:
    from gateway.catalogue import Catalogue
    from gateway.idempotency import Idempotency
    from gateway.keys import Keys
    from gateway.limits import Limits
    from gateway.metrics import Metrics
    from gateway.reads import Reads
    from projections.store import ReadStore
    from runtime.blob_store import BlobStore


class Reply(Protocol):
    """A command was carried out; ``previous_status`` is the execution's status before it."""

    @property
    def previous_status(self) -> Status: ...
    @property
    def version(self) -> int: ...


class Delta(Protocol):
    """A piece of text a node is producing; only on the live feed, never in the log."""

    @property
    def execution_id(self) -> str: ...
    @property
    def node_id(self) -> str: ...
    @property
    def text(self) -> str: ...


class Readiness(Protocol):
    @property
    def ready(self) -> bool: ...
    @property
    def parts(self) -> dict[str, str]:
        """State of each part by name; ``ok``, or what it waits for."""
        ...


class Executions(Protocol):
    """The way to the hosts."""

    async def start(self, command: StartExecution) -> None: ...
    async def send(self, execution_id: str, command: RequestCancel | Signal | Pause | Resume) -> Reply: ...
    def follow(
        self, execution_id: str, after: int = 0, deltas: bool = False
    ) -> AsyncIterator[Recorded | Delta]:
        """What is recorded after the position ``after``, then what is being recorded, to the end."""
        ...

    def readiness(self) -> Readiness: ...
    async def close(self) -> None: ...


def now() -> Micros:
    return Micros(time.time_ns() // 1000)


def new_id() -> str:
    return str(uuid7())


@dataclass
class Gateway:
    """``client`` is None until Ray and the hosts are up; ``startup_fault`` says why they never will be."""

    settings: Settings
    log: EventLog
    store: ReadStore
    blobs: BlobStore
    catalogue: Catalogue
    keys: Keys
    limits: Limits
    idempotency: Idempotency
    reads: Reads
    metrics: Metrics
    client: Executions | None = None
    startup_fault: str = ""
    background: list[Any] = field(default_factory=list[Any])

    @property
    def executions(self) -> Executions:
        """The client. Raises: Problem unavailable while Ray and the hosts start."""
        if self.client is None:
            raise Problem("unavailable", retry_after=1)
        return self.client

    clock = staticmethod(now)
    new_id = staticmethod(new_id)
