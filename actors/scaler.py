"""Makes the hosts of a joined cluster follow the load (see ``scaling``), and ends those that are to leave.

    running --asked to drain--> draining --(holds nothing, owns nothing)--> ended

A draining host takes no new executions and gives up each one it has as soon as nothing of it runs there; here
these are handed to an heir, round by round, until the host owns none. Whoever drains may die at any time: the
host goes on draining, and every other gateway sees that it does, and goes on in the same way.
"""

import asyncio
from collections.abc import Iterable, Mapping

import structlog
from ray.exceptions import RayError

from actors import adoption, host_actors, messages, scaling
from actors.cluster_nodes import ClusterNode
from actors.host_link import HostLink
from actors.ray_settings import RaySettings
from actors.roster import Roster
from actors.scaling import Bounds, Trend
from runtime.errors import NotFound, Unavailable
from runtime.ids import HostName

log = structlog.get_logger(__name__)

LOST_SHARE_MAX = 2
"""Hosts, lost ones included, are never more than so many times ``hosts_max``."""

ENDED_SECONDS_MAX = 10.0
"""How long a host gets to write what it holds when it ends."""


class Scaler:
    """Lives on the gateway's loop."""

    def __init__(self, settings: RaySettings, roster: Roster) -> None:
        self._settings = settings
        self._roster = roster
        self._trend = Trend()
        self._to_drain: set[HostName] = set()

    def bounds(self) -> Bounds:
        """As set; else at least two (so that a lost one has an heir), at most one for every two CPUs."""
        return _bounds(self._settings, self._roster.nodes.values())

    def drain(self, name: str) -> None:
        """Begin to end a host. Raises: NotFound; Unavailable when nobody could take its work over."""
        link = self._roster.links.get(HostName(name))
        if link is None or host_actors.is_dedicated(name):
            raise NotFound(f"no host {name}")
        if not self._heirs(link):
            raise Unavailable(f"{name} is the last host that takes executions")
        self._to_drain.add(link.name)

    async def follow_load(self, now: float) -> None:
        """One host more or fewer, if the load says so."""
        pooled = self._roster.pooled()
        self._to_drain &= {link.name for link in pooled}
        loads = [load for link in pooled if (load := self._load(link, now)) is not None]
        bounds = self.bounds()
        decision = scaling.decide(loads, bounds, self._trend, now)
        self._trend = decision.trend
        about = {"have": len(loads), "least": bounds.least, "most": bounds.most}
        # Lost ones don't count as hosts, but may still be processes: there are bounds for those, too.
        add = min(decision.add, LOST_SHARE_MAX * bounds.most - len(pooled))
        if add > 0:
            log.info("more hosts", adding=add, **about)
            await self._roster.add(add)
        elif decision.add:
            log.warning("no more hosts: too many are lost already", lost=len(pooled) - len(loads), **about)
        if decision.drain is not None:
            log.info("fewer hosts", draining=decision.drain, **about)
            self._to_drain.add(decision.drain)

    def _load(self, link: HostLink, now: float) -> scaling.Load | None:
        """None for a host that does not count: it is leaving, or lost."""
        if self._is_leaving(link) or adoption.is_lost(self._roster.sight(link.name, now)):
            return None
        status = link.status
        if status is None:
            return scaling.Load(name=link.name)
        return scaling.Load(
            name=link.name,
            node=status.node,
            busy=status.busy,
            queued=status.queued,
            admitted=status.admitted,
            places=status.running_max,
        )

    def _is_leaving(self, link: HostLink) -> bool:
        return link.name in self._to_drain or (link.status is not None and link.status.state == "draining")

    def _heirs(self, leaving: HostLink) -> list[HostName]:
        others = (link for link in self._roster.pooled() if link is not leaving)
        return [link.name for link in others if link.accepts and link.name not in self._to_drain]

    async def drain_some(self, holders: Mapping[HostName, int]) -> None:
        """Bring those that are to leave further: what they no longer hold goes to others, then they end."""
        for link in self._roster.pooled():
            if not link.is_reachable or not self._is_leaving(link):
                continue
            heir = scaling.heir_of(link.name, self._heirs(link))
            if heir is None:
                log.warning("not drained further: nobody could take its work over", host=link.name)
                continue
            try:
                held = await link.drain(self._settings.drain_seconds)
            except (RayError, TimeoutError) as error:
                log.warning("draining goes on later", host=link.name, error=str(error)[:200])
                continue
            if link.name in holders:
                await self._roster.links[heir].send(messages.Adopt(link.name, held))
            elif not held and link.status is not None and link.status.state == "draining":
                await self._end(link.name)

    async def end_lost(self, holders: Mapping[HostName, int], now: float) -> None:
        """Lost hosts that hold nothing: what Ray can't place again, or what stays silent, is ended."""
        for link in self._roster.pooled():
            sight = self._roster.sight(link.name, now)
            if sight is None or not sight.trouble or link.name in holders:
                continue
            if adoption.is_lost(sight) and sight.seconds >= adoption.ENDED_SECONDS:
                log.warning("a lost host is ended for good", host=link.name, trouble=sight.trouble)
                await asyncio.to_thread(host_actors.end, self._roster.handles[link.name])
                self._roster.drop(link.name)

    async def _end(self, name: HostName) -> None:
        log.info("a drained host ends", host=name)
        handle = self._roster.handles[name]
        try:
            async with asyncio.timeout(ENDED_SECONDS_MAX):
                await host_actors.closed(handle)
        except TimeoutError:
            log.warning("a drained host did not close in time", host=name)
        await asyncio.to_thread(host_actors.end, handle)
        self._roster.drop(name)


def _bounds(settings: RaySettings, nodes: Iterable[ClusterNode]) -> Bounds:
    if settings.hosts:
        return Bounds(settings.hosts, settings.hosts)
    working = [node for node in nodes if node.is_alive and node.cpus > 0]
    least = settings.hosts_min or min(2, max(1, len(working)))
    most = settings.hosts_max or int(sum(node.cpus for node in working)) // 2
    return Bounds(least, max(least, most))
