"""A real host without Ray: the gateway's client talks to it as to Ray's handle, in the same process.

Python functions run in threads instead of workers. Everything else is what runs in production: mailbox,
group commit, recovery, timers, feed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, cast

import msgspec

from actors import step_call, step_context
from actors.agent_nodes import AgentNodes
from actors.agents.home import AgentSettings
from actors.chunk_run import run_chunk
from actors.client import ExecutionClient
from actors.egress_transport import VettedClientFactory
from actors.environment_pools import EnvironmentPools
from actors.host import Host
from actors.host_config import HostConfig
from actors.host_link import HostLink
from actors.maps import Maps
from actors.performer import Performer
from actors.source_files import SourceAccess
from actors.step_call import ChunkCall, StepCall, StepOutcome
from actors.step_context import StepContext
from actors.step_execution import AsyncSteps
from actors.supervision import Readiness
from gateway.context import Gateway
from runtime.blob_store import BlobStore
from runtime.commands import StartExecution
from runtime.errors import Unavailable
from runtime.ids import HostName


class ThreadPool:
    """Runs each function in a thread of this process. The step's context is right for one at a time."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    @property
    def workers_max(self) -> int:
        return 2

    async def run(self, call: StepCall, tell: object = None) -> StepOutcome:
        del tell  # nothing here can lack a place
        if call.chunk is not None:
            return await asyncio.to_thread(self._run_chunk, call, call.chunk)
        return StepOutcome(output=await asyncio.to_thread(self._run, call), started=True)

    def _run_chunk(self, call: StepCall, chunk: ChunkCall) -> StepOutcome:
        context = StepContext(call, lambda: self._blobs)
        outcome = run_chunk(call, chunk, context, AsyncSteps(), lambda: self._blobs)
        return step_call.decode_outcome(step_call.encode(outcome))  # as it comes from another process

    def _run(self, call: StepCall) -> Any:
        module, _, name = call.function.partition(":")
        function = getattr(import_module(module), name)
        step_context.enter(StepContext(call, lambda: self._blobs))
        try:
            return function(**call.arguments)
        finally:
            step_context.enter(None)

    async def close(self) -> None:
        """Threads end with their functions."""


class LocalHost(Host):
    async def _start(self) -> None:
        if not self._is_started:
            await super()._start()
            blobs = BlobStore(self.config.blob_url)
            pool = cast(EnvironmentPools, ThreadPool(blobs))
            self._performer = Performer(
                pool,
                blobs,
                VettedClientFactory("127.0.0.1"),
                SourceAccess(blobs=blobs, files_root=self._files_root, egress_allow="127.0.0.1"),
                self.owner,
            )
            self._maps = Maps(self.config, self, self._performer, pool, blobs, self._reports)
            self._agents = AgentNodes(self._performer, self._children, blobs, self.config.agents, self.owner)


class Method:
    """What Ray makes of an actor's method."""

    def __init__(self, method: Callable[..., Awaitable[Any]]) -> None:
        self._method = method

    def remote(self, *args: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._method(*args))


class Handle:
    def __init__(self, host: Host) -> None:
        self.deliver = Method(host.deliver)
        self.feed = Method(host.feed)
        self.status = Method(host.status)


class LocalRuntime:
    def __init__(self, host: Host, link: HostLink) -> None:
        self._host = host
        self._link = link

    def readiness(self) -> Readiness:
        return Readiness(ray=True, hosts={str(self._link.name): self._link.is_reachable})

    async def close(self) -> None:
        self._link.close()
        await self._host.close()


async def connect_local(gateway: Gateway, on_ready: Callable[[], None]) -> None:
    name = HostName("host-0")
    config = HostConfig(
        name=name,
        store=gateway.store_env,
        blob_url=gateway.settings.blobs_url,
        running_max=gateway.settings.running_max,
        queued_max=gateway.settings.queued_max,
        agents=AgentSettings(
            model=gateway.settings.model,
            model_url=gateway.settings.model_url,
            models_file=gateway.settings.models_path,
            secret_key_file=gateway.settings.secret_key_file,
            checkouts=gateway.settings.checkouts,
            tool_allow=",".join(gateway.settings.tool_allow),
        ),
    )
    host = LocalHost(msgspec.json.encode(config))
    link = HostLink(name, Handle(host), "gateway")
    link.open()
    await link.wait_reachable()
    client = ExecutionClient(gateway.log, gateway.blobs)
    client.connect({name: link}, _no_dedicated)
    gateway.client = client
    gateway.runtime = LocalRuntime(host, link)
    on_ready()


async def _no_dedicated(execution_id: str, _: StartExecution | None) -> HostLink:
    raise Unavailable(f"no place of its own for {execution_id} without Ray")
