"""Starts Ray and the hosts, and sees to it that every open execution has a host that lives.

    down --start--> up --(a host is unreachable for LOST_SECONDS)--> its executions are adopted
                     ^---------------------------------------------- it answers again

Ray restarts a host whose process died (its new incarnation recovers by itself). A host whose node is
gone, or that no longer exists in this set-up, never answers: another one adopts what it held. Adopting
is safe even when the lost host is merely slow, because the take-over event makes its writes conflict.
"""

import asyncio
import itertools
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import ray
import structlog
from ray.exceptions import RayError

from actors import messages, ray_cluster
from actors.client import ExecutionClient
from actors.host import ExecutionHost
from actors.host_config import HostConfig
from actors.host_link import HostLink
from actors.ray_cluster import NAMESPACE
from actors.ray_settings import RaySettings
from runtime.errors import DomainError, Overloaded, Unavailable
from runtime.event_log import EventLog
from runtime.ids import HostName

log = structlog.get_logger(__name__)

LOST_SECONDS = 10.0
"""A host silent for this long has its executions adopted by another."""

ADOPT_AGAIN_SECONDS = 30.0
"""Adoption works in the background; it is asked for again only after this long."""

DEDICATED = "execution-"
DEDICATED_MAX = 100
"""Hosts for single executions at once: each is a process of about 90 MB."""

START_SECONDS_MAX = 60.0
"""How long a dedicated host may take to start, or to come back, before it is given up."""

INSPECT_SECONDS = 2.0

CALLS_AT_ONCE_MAX = 1_000


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """``hosts``: name to reachable. ``problem`` says in one sentence why it is not ready."""

    ray: bool
    hosts: dict[str, bool]
    problem: str = ""

    @property
    def is_ready(self) -> bool:
        return self.ray and bool(self.hosts) and all(self.hosts.values())


class Supervisor:
    """Lives on the gateway's loop; everything of Ray that blocks happens on threads."""

    def __init__(
        self,
        settings: RaySettings,
        host: HostConfig,
        event_log: EventLog,
        client: ExecutionClient,
        on_lost: Callable[[str], None] | None = None,
    ) -> None:
        """``on_lost`` is told in a sentence that our own Ray has died; the process had better end."""
        self._settings = settings
        self._on_lost = on_lost
        self._host = host
        self._log = event_log
        self._client = client
        self._links: dict[HostName, HostLink] = {}
        self._handles: dict[HostName, Any] = {}
        self._silent_since: dict[HostName, float] = {}
        self._idle_since: dict[HostName, float] = {}
        self._renewed_at: dict[HostName, float] = {}
        self._opening = asyncio.Lock()
        self._adopted_at: dict[HostName, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_up = False
        self._problem = "Ray is starting"
        self._gateway_id = uuid.uuid4().hex

    def open(
        self, on_ready: Callable[[], None] | None = None, ray_start: Awaitable[None] | None = None
    ) -> None:
        """Begin starting, in the background; ``readiness`` tells how far it is.

        ``ray_start``: what ends when Ray is up, if its start was begun before.
        """
        self._task = asyncio.get_running_loop().create_task(self._run(on_ready, ray_start))

    def readiness(self) -> Readiness:
        links = self._links.values()
        hosts = {str(link.name): link.is_reachable for link in links if not is_dedicated(link.name)}
        return Readiness(ray=self._is_up, hosts=hosts, problem=self._problem)

    async def close(self) -> None:
        """Let hosts write what they hold, then end what is ours."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for link in self._links.values():
            link.close()
        if self._is_up and not self._settings.address:
            closings = [handle.close.remote() for handle in self._handles.values()]
            await asyncio.wait([asyncio.ensure_future(_ended(closing)) for closing in closings], timeout=10)
        if self._is_up:
            await asyncio.to_thread(_shutdown_ray)

    async def _run(self, on_ready: Callable[[], None] | None, ray_start: Awaitable[None] | None) -> None:
        try:
            await (ray_start or asyncio.to_thread(self._start_ray))
        except (RayError, OSError, RuntimeError, ConnectionError, ValueError, Unavailable) as error:
            self._problem = f"Ray did not start: {error}"
            log.error("ray did not start", error=str(error))
            return
        self._is_up = True
        self._problem = "hosts are starting"
        for number in range(self._host_count()):
            await self._add_host(HostName(f"host-{number}"))
        self._client.connect(self._links, self._open_dedicated)
        async with asyncio.TaskGroup() as group:
            # A host may fail to start (its store is away): it is made anew before anything was ready.
            group.create_task(self._announce(on_ready))
            group.create_task(self._inspect_for_ever())

    async def _announce(self, on_ready: Callable[[], None] | None) -> None:
        for link in tuple(self._links.values()):
            await link.wait_reachable()
        self._problem = ""
        if on_ready is not None:
            on_ready()
        if self._settings.agents_file and not self._settings.address:
            await self._end_remains(self._settings.agents_file)

    @staticmethod
    async def _end_remains(agents_file: str) -> None:
        try:
            remains = await asyncio.to_thread(ray_cluster.end_remains, agents_file)
        except OSError as error:
            log.warning("what a killed server left behind was not looked for", error=str(error))
            return
        if remains:
            log.info("ended what a killed server had left behind", processes=remains)

    async def _inspect_for_ever(self) -> None:
        while True:
            ended = ray_cluster.ended_server()
            if ended and self._on_lost is not None:
                self._on_lost(f"Ray's {ended} died")
                return
            try:
                await self._inspect()
            except (DomainError, RayError) as error:
                log.warning("inspection failed, trying again", error=str(error))
            except Exception as error:
                # A fault of ours: lost executions must find an heir all the same, at the next look.
                log.error("inspection failed by a fault of ours, trying again", exc_info=error)
            await asyncio.sleep(INSPECT_SECONDS)

    def _start_ray(self) -> None:
        ray_cluster.start(self._settings)

    def _host_count(self) -> int:
        if self._settings.hosts:
            return self._settings.hosts
        cpus = int(ray.cluster_resources().get("CPU", 1))
        return max(1, cpus // 2)

    async def _open_dedicated(self, execution_id: str) -> HostLink:
        """A host for this execution alone; it ends when the execution has ended."""
        name = HostName(f"{DEDICATED}{execution_id}")
        async with self._opening:  # two requests for one execution must not make two links
            link = self._links.get(name)
            if link is None:
                if sum(is_dedicated(known) for known in self._links) >= DEDICATED_MAX:
                    raise Overloaded(f"{DEDICATED_MAX} dedicated executions are running", 10)
                link = await self._add_host(name)
                self._client.connect(self._links, self._open_dedicated)
            return link

    def _log_file(self, name: HostName) -> str:
        """In the folder the configuration names; dedicated hosts share one, for there may be thousands."""
        folder = self._host.log_file
        if folder in ("", "-"):
            return folder
        return os.path.join(folder, f"{'dedicated' if is_dedicated(name) else name}.log")

    async def _add_host(self, name: HostName) -> HostLink:
        handle = await asyncio.to_thread(self._create, name)
        link = HostLink(name, handle, self._gateway_id)
        link.open()
        self._handles[name] = handle
        self._links[name] = link
        return link

    def _create(self, name: HostName) -> Any:
        config = msgspec.structs.replace(
            self._host, name=name, dedicated=is_dedicated(name), log_file=self._log_file(name)
        )
        return _create_host(config, detached=bool(self._settings.address))

    async def _inspect(self) -> None:
        """Find open executions whose host does not answer, and give them to one that does."""
        now = asyncio.get_running_loop().time()
        living = [link for link in self._links.values() if link.is_reachable]
        for name, link in self._links.items():
            if link.is_reachable:
                self._silent_since.pop(name, None)
            else:
                self._silent_since.setdefault(name, now)
        owners = await asyncio.to_thread(self._log.owners)
        await self._forget_ended(owners, now)
        await self._renew_lost(owners, now)
        pooled = [link for link in living if not is_dedicated(link.name)]
        if not pooled:
            return
        heirs = itertools.cycle(pooled)
        for owner in owners:
            silent_since = self._silent_since.get(owner)
            # A dedicated host has what its execution needs, and is rather waited for than replaced.
            patience = START_SECONDS_MAX if is_dedicated(owner) else LOST_SECONDS
            if owner in self._links and (silent_since is None or now - silent_since < patience):
                continue
            if self._adopted_at.get(owner, -ADOPT_AGAIN_SECONDS) > now - ADOPT_AGAIN_SECONDS:
                continue
            if is_dedicated(owner) and owner not in self._links:
                await self._open_dedicated(owner.removeprefix(DEDICATED))
            else:
                heir = next(heirs)
                log.warning("adopting the executions of a lost host", owner=owner, heir=heir.name)
                await heir.send(messages.Adopt(owner))
            self._adopted_at[owner] = now

    async def _renew_lost(self, owners: Mapping[HostName, int], now: float) -> None:
        """Make lost hosts anew. One that is only silent stays as it is: there is one actor of a name."""
        for name, since in tuple(self._silent_since.items()):
            last = max(since, self._renewed_at.get(name, 0.0))
            if now - last < LOST_SECONDS or (is_dedicated(name) and name not in owners):
                continue
            self._renewed_at[name] = now
            handle = await asyncio.to_thread(self._create, name)
            if handle != self._handles[name]:  # dropping our first handle to a living actor would end it
                self._handles[name] = handle
                self._links[name].reconnect(handle)

    async def _forget_ended(self, owners: Mapping[HostName, int], now: float) -> None:
        """Drop dedicated hosts that ended with their execution, and end those that outlived it."""
        for name, link in tuple(self._links.items()):
            if not is_dedicated(name) or name in owners:
                self._idle_since.pop(name, None)
                continue
            idle_since = self._idle_since.setdefault(name, now)
            has_ended = link.has_answered and not link.is_reachable
            if not has_ended and now - idle_since < START_SECONDS_MAX:
                continue  # its execution may still be on the way to it
            self._links.pop(name).close()
            handle = self._handles.pop(name)
            self._silent_since.pop(name, None)
            self._idle_since.pop(name, None)
            self._renewed_at.pop(name, None)
            self._client.connect(self._links, self._open_dedicated)
            if link.is_reachable:
                await asyncio.to_thread(_end_host, handle)


def is_dedicated(name: str) -> bool:
    """Whether the host of this name lives for one execution."""
    return name.startswith(DEDICATED)


def _create_host(config: HostConfig, *, detached: bool) -> Any:
    lifetime = {"lifetime": "detached"} if detached else {}
    return ExecutionHost.options(
        name=config.name,
        namespace=NAMESPACE,
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=0,
        max_concurrency=CALLS_AT_ONCE_MAX,
        enable_task_events=False,
        **lifetime,
    ).remote(msgspec.json.encode(config))


def _end_host(handle: Any) -> None:
    ray.kill(handle)


async def _ended(closing: Any) -> None:
    try:
        await closing
    except RayError as error:
        log.info("a host had ended before it was closed", error=str(error)[:200])


def _shutdown_ray() -> None:
    ray_cluster.shutdown()
