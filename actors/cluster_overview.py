"""What a gateway knows of the cluster, for whoever runs it: nodes, hosts, and what they hold."""

from collections.abc import Mapping

import msgspec

from actors.cluster_nodes import ClusterNode
from actors.host_link import HostLink
from actors.roster import Roster
from actors.scaling import Bounds
from runtime.ids import HostName


class HostView(msgspec.Struct, frozen=True, kw_only=True):
    """One host as this gateway sees it. ``executions``: open ones, waiting ones included.

    ``state``: starting, recovering, running, draining; broken (its process is gone, or on its way back),
    silent (it gives no answer), unknown (it holds executions, and there is no such host any more). ``busy``:
    share of one CPU. ``unschedulable``: nodes of executions that no machine can hold.
    """

    name: str
    state: str
    node: str
    executions: int
    in_memory: int = 0
    admitted: int = 0
    queued: int = 0
    running_max: int = 0
    unschedulable: int = 0
    busy: float = 0.0


class ClusterOverview(msgspec.Struct, frozen=True, kw_only=True):
    """``hosts_min`` and ``hosts_max``: between these the hosts follow the load."""

    nodes: tuple[ClusterNode, ...]
    hosts: tuple[HostView, ...]
    hosts_min: int
    hosts_max: int


def overview(roster: Roster, bounds: Bounds, held: Mapping[HostName, int]) -> ClusterOverview:
    """``held``: how many open executions each host has, by the log."""
    names = sorted({*roster.links, *held})
    used = {link.status.node for link in roster.links.values() if link.status is not None}
    # Ray remembers every node that ever was.
    shown = [node for node in roster.nodes.values() if node.is_alive or node.id in used]
    return ClusterOverview(
        nodes=tuple(sorted(shown, key=lambda node: (not node.is_head, node.id))),
        hosts=tuple(_view(name, roster.links.get(name), held.get(name, 0)) for name in names),
        hosts_min=bounds.least,
        hosts_max=bounds.most,
    )


def glance(roster: Roster) -> tuple[HostView, ...]:
    """The hosts without what they hold by the log."""
    return tuple(_view(link.name, link, 0) for link in tuple(roster.links.values()))


def _view(name: HostName, link: HostLink | None, executions: int) -> HostView:
    status = None if link is None else link.status
    state = "unknown" if link is None else _state(link)
    if status is None:
        return HostView(name=name, state=state, node="", executions=executions)
    return HostView(
        name=name,
        state=state,
        node=status.node,
        executions=executions,
        in_memory=status.in_memory,
        admitted=status.admitted,
        queued=status.queued,
        running_max=status.running_max,
        unschedulable=status.unschedulable,
        busy=round(status.busy, 3),
    )


def _state(link: HostLink) -> str:
    if not link.is_reachable:
        return link.trouble or "starting"
    return "starting" if link.status is None else link.status.state
