"""What every request can reach: the parts, put together once in `app` and handed to each handler.

`Executions` says what the gateway needs of the hosts; the real one is `actors.client.ExecutionClient`.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import msgspec
from uuid_utils import uuid7

from gateway.envelopes import Problem
from gateway.settings import Settings
from runtime.commands import Pause, RequestCancel, Resume, Signal, StartExecution
from runtime.event_log import EventLog, Recorded
from runtime.ids import Micros, Position

if TYPE_CHECKING:
    from actors.egress import EgressGuard
    from gateway.agent_runs import AgentRuns
    from gateway.batches import Batches
    from gateway.catalogue import Catalogue
    from gateway.hops import Hops
    from gateway.idempotency import Idempotency
    from gateway.keys import Keys
    from gateway.limits import Limits
    from gateway.mcp_servers import McpServers
    from gateway.metrics import Metrics
    from gateway.reads import Reads
    from gateway.registry import Registry
    from gateway.reruns import Reruns
    from gateway.secrets import Secrets
    from gateway.store_pulse import StorePulse
    from projections.store import ReadStore
    from runtime.blob_store import BlobStore


class Reply(Protocol):
    """A command was carried out; ``previous_status`` is the execution's status before it."""

    @property
    def previous_status(self) -> str: ...
    @property
    def version(self) -> int: ...


class Delta(Protocol):
    """A piece of text a step is producing; only on the live feed, never in the log.

    ``offset``: characters of the step's answer before it.
    """

    @property
    def execution_id(self) -> str: ...
    @property
    def node_id(self) -> str: ...
    @property
    def step(self) -> str: ...
    @property
    def offset(self) -> int: ...
    @property
    def text(self) -> str: ...


class Executions(Protocol):
    """The way to the hosts."""

    async def start(self, command: StartExecution) -> None: ...
    async def send(self, execution_id: str, command: RequestCancel | Signal | Pause | Resume) -> Reply: ...
    def follow(
        self, execution_id: str, after: Position = ..., *, deltas: bool = False
    ) -> AsyncIterator[Recorded | Delta]:
        """What is recorded after the position ``after``, then what is being recorded, to the end."""
        ...


class Readiness(Protocol):
    """``hosts``: name to reachable. ``problem`` says in one sentence why it is not ready."""

    @property
    def ray(self) -> bool: ...
    @property
    def hosts(self) -> dict[str, bool]: ...
    @property
    def problem(self) -> str: ...
    @property
    def is_ready(self) -> bool: ...


class Runtime(Protocol):
    """What starts and watches Ray and the hosts; the real one is `actors.supervision.Supervisor`."""

    def readiness(self) -> Readiness: ...
    async def close(self) -> None: ...


class HostGlance(Protocol):
    """One execution host as this gateway sees it; ``busy``: share of one CPU."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def in_memory(self) -> int: ...
    @property
    def admitted(self) -> int: ...
    @property
    def queued(self) -> int: ...
    @property
    def unschedulable(self) -> int: ...
    @property
    def busy(self) -> float: ...


class Cluster(Protocol):
    """The machines and the hosts on them; the real one is `actors.supervision.Supervisor`."""

    async def overview(self) -> msgspec.Struct:
        """Nodes, hosts and what they hold, in the fields the admin API shows. Raises: Unavailable."""
        ...

    def glance(self) -> Sequence[HostGlance]:
        """The hosts, from any thread; asks nobody."""
        ...

    def drain(self, name: str) -> None:
        """Begin to end a host. Raises: NotFound, InvalidTransition, Unavailable for the last one."""
        ...


def now() -> Micros:
    return Micros(time.time_ns() // 1000)


def new_id() -> str:
    return str(uuid7())


@dataclass
class Gateway:
    """``client``, ``runtime`` and ``cluster`` are None for a moment after start.

    ``startup_fault``: they stay None.
    """

    settings: Settings
    store_env: dict[str, str]
    log: EventLog
    store: ReadStore
    blobs: BlobStore
    catalogue: Catalogue
    registry: Registry
    secrets: Secrets
    mcp_servers: McpServers
    keys: Keys
    limits: Limits
    idempotency: Idempotency
    reads: Reads
    hops: Hops
    log_hops: Hops
    metrics: Metrics
    egress: EgressGuard
    client: Executions | None = None
    runtime: Runtime | None = None
    cluster: Cluster | None = None
    pulse: StorePulse | None = None
    startup_fault: str = ""
    agent_runs: AgentRuns = field(init=False)
    batches: Batches = field(init=False)
    reruns: Reruns = field(init=False)

    @property
    def executions(self) -> Executions:
        """The client. Raises: Problem unavailable while Ray and the hosts start."""
        if self.client is None:
            raise Problem("unavailable", retry_after=1)
        return self.client

    clock = staticmethod(now)
    new_id = staticmethod(new_id)
