"""Starts Ray and the hosts, and sees to it that every open execution has a host that lives.

    down --start--> up --(a host is lost, see adoption)--> its executions are adopted by another
                    ^--------------------------------------- it answers again, or is made anew

Ray restarts a host whose process died (its new incarnation recovers by itself). A host that is lost never
answers, or not soon: another one adopts what it held. Adopting is safe even when the lost host is merely
slow, because the take-over event makes its writes conflict.

On a joined cluster every gateway does all of this over the same hosts, which belong to none of them. There is
no leader to lose: the decisions are functions of what all gateways see, and repeating one changes nothing.
"""

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping

import msgspec
import ray
import structlog
from ray.exceptions import RayError

from actors import adoption, cluster_nodes, cluster_overview, host_actors, messages, ray_cluster, scaling
from actors.client import ExecutionClient
from actors.cluster_overview import ClusterOverview, HostView
from actors.dedicated import DedicatedPlaces
from actors.host_actors import DEDICATED, is_dedicated
from actors.host_config import HostConfig
from actors.host_link import Moved
from actors.ray_settings import RaySettings
from actors.roster import Roster
from actors.scaler import ENDED_SECONDS_MAX, Scaler
from actors.scaling import Bounds
from runtime.errors import DomainError, InvalidTransition, Unavailable
from runtime.event_log import EventLog
from runtime.ids import HostName

log = structlog.get_logger(__name__)

ADOPT_AGAIN_SECONDS = 30.0
"""Adoption works in the background; it is asked for again only after this long."""

RENEW_SECONDS = 10.0
"""A host of our own Ray that has not answered for this long is made anew, and again after as long."""

START_SECONDS_MAX = 60.0
"""How long a dedicated host may stay without its execution before it is ended."""

INSPECT_SECONDS = 1.0


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
        self._is_joined = bool(settings.address)
        self._on_lost = on_lost
        self._log = event_log
        places = DedicatedPlaces(event_log)
        self._roster = Roster(host, client, uuid.uuid4().hex, places, is_joined=self._is_joined)
        self._scaler = Scaler(settings, self._roster)
        self._idle_since: dict[HostName, float] = {}
        self._renewed_at: dict[HostName, float] = {}
        self._adopted_at: dict[HostName, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_up = False
        self._problem = "Ray is starting"

    def open(
        self, on_ready: Callable[[], None] | None = None, ray_start: Awaitable[None] | None = None
    ) -> None:
        """Begin starting, in the background; ``readiness`` tells how far it is.

        ``ray_start``: what ends when Ray is up, if its start was begun before.
        """
        self._task = asyncio.get_running_loop().create_task(self._run(on_ready, ray_start))

    def readiness(self) -> Readiness:
        hosts = {str(link.name): link.is_reachable for link in self._roster.pooled()}
        if self._is_joined and any(hosts.values()):
            # Hosts come and go here, and what one leaves another takes up: one that answers will do.
            hosts = {name: is_reachable for name, is_reachable in hosts.items() if is_reachable}
        return Readiness(ray=self._is_up, hosts=hosts, problem=self._problem)

    async def overview(self) -> ClusterOverview:
        """The nodes and hosts as this gateway sees them. Raises: Unavailable while the store is away."""
        held = await asyncio.to_thread(self._log.owners)
        if not self._is_joined and self._is_up:
            self._roster.nodes = await asyncio.to_thread(cluster_nodes.read)
        count = len(self._roster.pooled())
        bounds = self._scaler.bounds() if self._is_joined else Bounds(count, count)
        return cluster_overview.overview(self._roster, bounds, held)

    def glance(self) -> tuple[HostView, ...]:
        """The hosts, without what the log knows of them; from any thread."""
        return cluster_overview.glance(self._roster)

    def drain(self, name: str) -> None:
        """Begin to end a host: it takes nothing new, gives what waits to others, and ends when all is done.

        Raises: NotFound; InvalidTransition on a Ray of our own; Unavailable for the last host.
        """
        if not self._is_joined:
            raise InvalidTransition("hosts of a Ray started by the server stay as many as they are")
        self._scaler.drain(name)

    async def close(self) -> None:
        """Let hosts write what they hold, then end what is ours."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for link in self._roster.links.values():
            link.close()
        if self._is_up and not self._is_joined:
            handles = self._roster.handles.values()
            closings = [asyncio.ensure_future(host_actors.closed(handle)) for handle in handles]
            if closings:
                await asyncio.wait(closings, timeout=ENDED_SECONDS_MAX)
        if self._is_up:
            await asyncio.to_thread(_shutdown_ray)

    # --- start ----------------------------------------------------------------------------------------

    async def _run(self, on_ready: Callable[[], None] | None, ray_start: Awaitable[None] | None) -> None:
        try:
            await (ray_start or asyncio.to_thread(self._start_ray))
        except (RayError, OSError, RuntimeError, ConnectionError, ValueError, Unavailable) as error:
            self._problem = f"Ray did not start: {error}"
            log.error("ray did not start", error=str(error))
            return
        self._is_up = True
        self._problem = "hosts are starting"
        if self._is_joined:
            await self._roster.look(START_SECONDS_MAX)
            count = self._scaler.bounds().least - len(self._roster.pooled())
        else:
            count = self._settings.hosts or max(1, int(ray.cluster_resources().get("CPU", 1)) // 2)
        await self._roster.add(max(0, count))
        async with asyncio.TaskGroup() as group:
            # A host may fail to start (its store is away): it is made anew before anything was ready.
            group.create_task(self._announce(on_ready))
            group.create_task(self._inspect_for_ever())

    async def _announce(self, on_ready: Callable[[], None] | None) -> None:
        enough = any if self._is_joined else all  # there, one may be on a node that is just being lost
        while not enough(link.is_reachable for link in self._roster.pooled()):
            self._roster.news.clear()
            await self._roster.news.wait()
        self._problem = ""
        if on_ready is not None:
            on_ready()
        if self._settings.agents_file and not self._is_joined:
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

    def _start_ray(self) -> None:
        ray_cluster.start(self._settings)

    # --- inspection -----------------------------------------------------------------------------------

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

    async def _inspect(self) -> None:
        """See who lives; give what the others held to those; then see whether there are enough."""
        # The holders first: whoever holds something was made before, so it is found afterwards.
        holders = await asyncio.to_thread(self._log.owners)
        if self._is_joined:
            await self._look()
        await self._roster.take_note()
        now = asyncio.get_running_loop().time()
        await self._forget_ended(holders, now)
        await self._adopt_lost(holders, now)
        if self._is_joined:
            await self._scaler.drain_some(holders)
            await self._scaler.end_lost(holders, now)
            await self._scaler.follow_load(now)
        else:
            await self._renew_lost(holders, now)

    async def _look(self) -> None:
        try:
            await self._roster.look()
        except (RayError, RuntimeError, OSError) as error:
            log.warning("the cluster can't be looked at", error=str(error)[:200])

    async def _adopt_lost(self, holders: Mapping[HostName, int], now: float) -> None:
        """Give the executions of hosts that are lost to one that takes executions."""
        living = [link.name for link in self._roster.pooled() if link.accepts]
        for owner in holders:
            if not adoption.is_lost(self._roster.sight(owner, now)):
                self._adopted_at.pop(owner, None)
                continue
            if self._adopted_at.get(owner, -ADOPT_AGAIN_SECONDS) > now - ADOPT_AGAIN_SECONDS:
                continue
            if is_dedicated(owner) and owner not in self._roster.links:
                link = await self._roster.open_dedicated(owner.removeprefix(DEDICATED))
            else:
                link = None
            if link is None:
                heir = scaling.heir_of(owner, living)
                if heir is None:
                    return  # until one is made, or answers again
                log.warning("adopting the executions of a lost host", owner=owner, heir=heir)
                await self._roster.links[heir].send(messages.Adopt(owner))
                if owner in self._roster.links:
                    self._roster.links[owner].release(Moved(f"host {owner} is lost"))
            self._adopted_at[owner] = now
        for owner in self._adopted_at.keys() - holders.keys():
            del self._adopted_at[owner]

    async def _renew_lost(self, holders: Mapping[HostName, int], now: float) -> None:
        """Make hosts of our own Ray anew that have been away for long."""
        away = self._roster.unreachable_since()
        for name, since in away.items():
            last = max(since, self._renewed_at.get(name, 0.0))
            if now - last >= RENEW_SECONDS and (name in holders or not is_dedicated(name)):
                self._renewed_at[name] = now
                await self._roster.renew(name)
        self._renewed_at = {name: at for name, at in self._renewed_at.items() if name in away}

    async def _forget_ended(self, holders: Mapping[HostName, int], now: float) -> None:
        """Drop dedicated hosts that ended with their execution, and end those that outlived it."""
        for name, link in tuple(self._roster.links.items()):
            if not is_dedicated(name) or name in holders:
                self._idle_since.pop(name, None)
                continue
            idle_since = self._idle_since.setdefault(name, now)
            has_ended = link.has_answered and not link.is_reachable
            if not has_ended and now - idle_since < START_SECONDS_MAX:
                continue  # its execution may still be on the way to it
            handle, is_reachable = self._roster.handles[name], link.is_reachable
            self._roster.drop(name)
            self._idle_since.pop(name, None)
            if is_reachable:
                await asyncio.to_thread(host_actors.end, handle)


def _shutdown_ray() -> None:
    ray_cluster.shutdown()
