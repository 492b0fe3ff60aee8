"""The hosts one gateway knows: a link and a handle to each, made, found, dropped, and told to the client.

On a machine of our own these are all the hosts there are. On a joined cluster others make and end hosts too:
``look`` finds the new ones by name and forgets those that are gone.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from actors import cluster_nodes, host_actors, scaling
from actors.adoption import Sight
from actors.client import ExecutionClient
from actors.cluster_nodes import ClusterNode
from actors.dedicated import DedicatedPlace, DedicatedPlaces
from actors.host_actors import DEDICATED, is_dedicated
from actors.host_config import HostConfig
from actors.host_link import HostLink, Moved
from runtime.commands import StartExecution
from runtime.ids import HostName

log = structlog.get_logger(__name__)

LOOK_SECONDS_MAX = 2.0
"""How long an inspection waits for Ray's head: without it, lost hosts are adopted all the same."""

DEDICATED_MAX = 100
"""Hosts for single executions at once: each is a process of about 90 MB."""

PLACE_SECONDS_MAX = 15.0
"""How long a dedicated host with resources may take to get its place."""


class Roster:
    """Lives on the gateway's loop; everything of Ray that blocks happens on threads."""

    def __init__(
        self,
        host: HostConfig,
        client: ExecutionClient,
        gateway_id: str,
        places: DedicatedPlaces,
        *,
        is_joined: bool,
    ) -> None:
        """``host``: what each host is told, but for its name. ``is_joined``: others have hosts here too."""
        self._host = host
        self._client = client
        self._gateway_id = gateway_id
        self._is_joined = is_joined
        self._places = places
        self._placed: dict[HostName, DedicatedPlace] = {}
        self._opening = asyncio.Lock()
        self._looking: asyncio.Task[_Found] | None = None
        self._gone: frozenset[str] = frozenset()
        self.news = asyncio.Event()
        """Set when a host answers that did not before."""
        self.links: dict[HostName, HostLink] = {}
        self.handles: dict[HostName, Any] = {}
        self.nodes: dict[str, ClusterNode] = {}

    def pooled(self) -> list[HostLink]:
        return [link for link in self.links.values() if not is_dedicated(link.name)]

    def connect(self) -> None:
        """Tell the client which hosts there are."""
        self._client.connect(self.links, self.open_dedicated, are_all=not self._is_joined)

    async def open_dedicated(
        self, execution_id: str, command: StartExecution | None = None
    ) -> HostLink | None:
        """A host for this execution alone, which ends when the execution has ended.

        None: there is no room for it now, or there are ``DEDICATED_MAX`` (see ``dedicated``).
        """
        name = HostName(f"{DEDICATED}{execution_id}")
        async with self._opening:  # two requests for one execution must not make two links
            known = self.links.get(name)
            if known is not None:
                return known
            if sum(is_dedicated(other) for other in self.links) >= DEDICATED_MAX:
                return None
            place = await self._places.find(execution_id, command)
            if place is None:
                return None
            self._placed[name] = place
            link = await self._add_one(name)
            self.connect()
        if command is None or place.resources is None or await _answers(link):
            return link
        handle = self.handles[name]  # somebody else was faster and has the room now
        self.drop(name)
        await asyncio.to_thread(host_actors.end, handle)
        return None

    async def add(self, count: int) -> None:
        """New hosts, each on the node that has the fewest for its CPUs."""
        where = {link.name: link.status.node for link in self.pooled() if link.status is not None}
        cpus = {node.id: node.cpus for node in self.nodes.values() if node.is_alive}
        for name in scaling.new_names(self.links, count):
            nodes = scaling.nodes_for(cpus, where.values())
            where[name] = nodes[0] if nodes else ""
            await self._add_one(name, nodes)
        self.connect()

    async def renew(self, name: HostName) -> None:
        """Make a lost host anew, unless it is only silent: there is one actor of a name."""
        handle = await asyncio.to_thread(self._create, name)
        if handle != self.handles[name]:  # dropping our first handle to a living actor would end it
            self.handles[name] = handle
            self.links[name].reconnect(handle)

    def drop(self, name: HostName) -> None:
        """Forget a host that has ended, or that nobody will hear of again."""
        self.links.pop(name).close(Moved(f"host {name} has ended"))
        self.handles.pop(name)
        self._placed.pop(name, None)
        self.connect()

    async def look(self, seconds: float = LOOK_SECONDS_MAX) -> None:
        """The nodes, and the hosts that others made or ended; what was known stays while Ray's head is away.

        Raises: RayError, RuntimeError. Without an answer within ``seconds`` it is taken up by a later call.
        """
        if self._looking is None:
            self._looking = asyncio.create_task(asyncio.to_thread(_read_cluster, frozenset(self.links)))
        await asyncio.wait([self._looking], timeout=seconds)
        if not self._looking.done():
            log.warning("Ray's head gives no answer")
            return
        looked, self._looking = self._looking, None
        self.nodes, names, new = looked.result()
        for name, handle in new.items():
            if name not in self.links:
                self._link_to(name, handle)
                self.connect()
        for link in self.pooled():
            if link.name not in names and not link.is_reachable and link.has_answered:
                self.drop(link.name)

    async def _add_one(self, name: HostName, nodes: Sequence[str] = ()) -> HostLink:
        return self._link_to(name, await asyncio.to_thread(self._create, name, nodes))

    def _link_to(self, name: HostName, handle: Any) -> HostLink:
        link = HostLink(name, handle, self._gateway_id, self.news.set)
        link.open()
        self.handles[name] = handle
        self.links[name] = link
        return link

    def _create(self, name: HostName, nodes: Sequence[str] = ()) -> Any:
        place = self._placed.get(name)
        config = msgspec.structs.replace(
            self._host,
            name=name,
            dedicated=is_dedicated(name),
            log_file=self._log_file(name),
            pool=self._host.pool if place is None else place.pool(self._host.pool),
        )
        return host_actors.create(config, detached=self._is_joined, nodes=nodes, place=place)

    def _log_file(self, name: HostName) -> str:
        """In the folder the configuration names; dedicated hosts share one, for there may be thousands."""
        folder = self._host.log_file
        if folder in ("", "-"):
            return folder
        return os.path.join(folder, f"{'dedicated' if is_dedicated(name) else name}.log")

    # --- who answers ----------------------------------------------------------------------------------

    async def take_note(self) -> None:
        """Ask how those are that answer, and which of the others' nodes are gone."""
        for link in self.links.values():
            if link.is_reachable:
                link.ask_status()
        if self._is_joined:
            self._gone = await self._gone_nodes()

    async def _gone_nodes(self) -> frozenset[str]:
        statuses = [link.status for link in self.links.values() if not link.is_reachable]
        asked = sorted({status.node for status in statuses if status is not None and status.node})
        gone = await asyncio.gather(
            *(asyncio.to_thread(cluster_nodes.is_gone, self.nodes.get(node)) for node in asked)
        )
        return frozenset(node for node, is_gone in zip(asked, gone, strict=True) if is_gone)

    def unreachable_since(self) -> dict[HostName, float]:
        """Hosts that don't answer, and since when."""
        since = ((link.name, link.unreachable_since) for link in self.links.values())
        return {name: at for name, at in since if at is not None}

    def sight(self, name: HostName, now: float) -> Sight | None:
        """What is known of a host; None for one nobody here knows."""
        link = self.links.get(name)
        if link is None:
            return None
        since = link.unreachable_since
        if since is None:
            return Sight(is_dedicated=is_dedicated(name))
        return Sight(
            trouble=link.trouble or "silent",
            seconds=now - since,
            is_new=not link.has_answered,
            node_is_gone=link.status is not None and link.status.node in self._gone,
            is_dedicated=is_dedicated(name),
        )


async def _answers(link: HostLink) -> bool:
    """Whether a new host gets its place soon."""
    try:
        async with asyncio.timeout(PLACE_SECONDS_MAX):
            await link.wait_reachable()
    except TimeoutError:
        return False
    return True


_Found = tuple[dict[str, ClusterNode], set[HostName], dict[HostName, Any]]
"""The nodes, the names of all pooled hosts, and handles to those that were not known."""


def _read_cluster(known: frozenset[HostName]) -> _Found:
    nodes, names = cluster_nodes.read(), host_actors.names()
    return nodes, names, host_actors.handles(names - known)
