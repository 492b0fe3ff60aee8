"""How many hosts there should be, and where, from what they say about themselves. Pure: no clock, no Ray.

    one more:   executions have been waiting for a place, or the hosts have been busy (``BUSY_MAX`` on
                average), for ``OUT_SECONDS`` without a break
    one fewer:  nothing has waited, and the rest would do all of the work with room to spare, for
                ``IN_SECONDS`` without a break
    always:     from ``least`` to ``most``; what is missing below ``least`` is added at once

Whenever the hosts change both times begin anew, so each change is judged by its effect before the next. The
two rules stand far apart (the rest must stay below half of what would call for one more), so a steady load
never makes the number swing. Several gateways decide by the same rules over the same hosts and choose the
same name, so they repeat each other's decision instead of adding to it.
"""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from runtime.ids import HostName

BUSY_MAX = 0.7
"""Share of one CPU; a host is one event loop, which can't use more than one."""

SPARE = 0.5
"""What one host fewer may be loaded to, as a share of what calls for one more."""

OUT_SECONDS = 5.0
IN_SECONDS = 60.0

PREFIX = "host-"


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One host that takes executions. ``places``: executions it admits at once; ``queued`` wait for one."""

    name: HostName
    node: str = ""
    busy: float = 0.0
    queued: int = 0
    admitted: int = 0
    places: int = 1


class Bounds(msgspec.Struct, frozen=True):
    least: int
    most: int


class Trend(msgspec.Struct, frozen=True):
    """Since when the load has called for more or fewer of these hosts; the caller's seconds."""

    hosts: frozenset[HostName] = frozenset()
    high_since: float | None = None
    low_since: float | None = None


class Decision(msgspec.Struct, frozen=True):
    """``add``: hosts to make now; ``drain``: one to end. Never both."""

    trend: Trend
    add: int = 0
    drain: HostName | None = None


def decide(loads: Sequence[Load], bounds: Bounds, trend: Trend, now: float) -> Decision:
    """What to change about the hosts that take executions."""
    hosts = frozenset(load.name for load in loads)
    if hosts != trend.hosts:
        trend = Trend(hosts)
    if len(loads) < bounds.least:
        return Decision(trend, add=bounds.least - len(loads))
    high = _since(trend.high_since, now, holds=is_high(loads))
    low = _since(trend.low_since, now, holds=is_low(loads))
    trend = Trend(hosts, high, low)
    if high is not None and now - high >= OUT_SECONDS and len(loads) < bounds.most:
        return Decision(trend, add=1)
    is_late = low is not None and now - low >= IN_SECONDS
    if len(loads) > bounds.most or (is_late and len(loads) > bounds.least):
        return Decision(trend, drain=_least_missed(loads))
    return Decision(trend)


def is_high(loads: Sequence[Load]) -> bool:
    """Whether the hosts have more to do than they should."""
    return any(load.queued for load in loads) or sum(load.busy for load in loads) > BUSY_MAX * len(loads)


def is_low(loads: Sequence[Load]) -> bool:
    """Whether one host fewer would do, with room to spare."""
    if any(load.queued for load in loads) or len(loads) < 2:
        return False
    left = len(loads) - 1
    places = sum(load.places for load in loads) * left / len(loads)
    busy, admitted = sum(load.busy for load in loads), sum(load.admitted for load in loads)
    return busy <= BUSY_MAX * SPARE * left and admitted <= SPARE * places


def _since(since: float | None, now: float, *, holds: bool) -> float | None:
    return None if not holds else now if since is None else since


def _least_missed(loads: Sequence[Load]) -> HostName:
    """From the fullest node, so that the others stay spread; the latest name there."""
    on_node = Counter(load.node for load in loads)
    return max(loads, key=lambda load: (on_node[load.node], _number(load.name), load.name)).name


def _number(name: str) -> int:
    number = name.removeprefix(PREFIX)
    return int(number) if number.isdigit() else -1


def new_names(taken: Iterable[str], count: int) -> list[HostName]:
    """The first names that nobody has."""
    known = set(taken)
    free = (name for number in range(len(known) + count) if (name := f"{PREFIX}{number}") not in known)
    return [HostName(name) for name, _ in zip(free, range(count), strict=False)]


def nodes_for(cpus: Mapping[str, float], hosts: Iterable[str]) -> list[str]:
    """The nodes that may have one more host; the first is the one with the fewest for its CPUs.

    ``cpus``: living nodes and what they have; one without CPUs is meant for no work, and gets a host only
    when all are like that. ``hosts``: the node of each host there is.
    """
    on_node = Counter(hosts)
    working = {node: amount for node, amount in cpus.items() if amount > 0} or dict.fromkeys(cpus, 1.0)
    return sorted(working, key=lambda node: ((on_node[node] + 1) / working[node], on_node[node], node))


def heir_of(owner: str, living: Iterable[HostName]) -> HostName | None:
    """The host that takes over what ``owner`` held; every gateway that knows the same hosts says the same.

    Different owners' executions go to different heirs, and most keep theirs when another host comes or goes.
    """
    return max(living, key=lambda name: (zlib.crc32(f"{owner}>{name}".encode()), name), default=None)
