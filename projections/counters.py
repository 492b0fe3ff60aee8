"""Tracked read model: counts for metrics, kept exactly once whatever crashes.

executions_total         tenant, flow, source, status   ``queued`` counts starts, the rest ends
execution_seconds        flow, status, le               durations from acceptance to the end, as a
                                                        cumulative histogram; ``le`` as in Prometheus
execution_micros_sum     flow, status                   their sum, in microseconds
nodes_total              flow, kind, outcome            attempts that completed, failed or will be
                                                        retried; skipped nodes
tokens_total             flow, direction                ``input`` and ``output`` tokens of models
model_*, tool_*          model or tool                  calls of agents: ``projections.call_counts``

Flows that are made for one resource (``task-<uuid>``, ``agent-<uuid>``) count as one flow each kind.
"""

import re
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from threading import Lock
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import msgspec

from projections import call_counts
from projections.store import Reader
from projections.tracked import Projection, Read, Write
from runtime import codec, events
from runtime.events import Event
from runtime.ids import SECOND

TABLE = "counters"

BUCKETS_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0)

_BOUNDS = (*map(str, BUCKETS_SECONDS), "+Inf")

ORIGINS_MAX = 20_000
"""Executions whose origin is remembered; others are looked up in the log again."""

PLANS_MAX = 1_000
"""Flow versions whose nodes are remembered."""

LOOKUP_MAX = 250
"""Streams of one look-up."""

_CREATE = """
    CREATE TABLE IF NOT EXISTS {table} (
        name TEXT NOT NULL,
        labels TEXT NOT NULL,
        value BIGINT NOT NULL,
        PRIMARY KEY (name, labels)
    )
"""
_ADD = (
    "INSERT INTO {table} AS t (name, labels, value) VALUES (?, ?, ?)"
    " ON CONFLICT (name, labels) DO UPDATE SET value = t.value + excluded.value"
)
_KEEP = (
    # The least whatever the order: archived executions are folded apart from the others.
    "INSERT INTO {table} AS t (name, labels, value) VALUES (?, ?, ?) ON CONFLICT (name, labels)"
    " DO UPDATE SET value = excluded.value WHERE excluded.value < t.value"
)

_OF_ONE_RESOURCE = re.compile(r"(task|agent)-[0-9a-f]{8}-?[0-9a-f-]{24,27}")


class Origin(NamedTuple):
    """What the first event of an execution says about it."""

    tenant: str
    flow_id: str
    flow_version: str
    source: str
    created_at: int

    @property
    def flow(self) -> str:
        """The flow as a label, of which there may only be so many."""
        found = _OF_ONE_RESOURCE.fullmatch(self.flow_id)
        return self.flow_id if found is None else f"{found[1]}-*"


_Tally = Counter[tuple[str, str]]
"""Counts by name and label text."""

_EXECUTIONS = ("flow", "source", "status", "tenant")
_SECONDS = ("flow", "le", "status")
_SUM = ("flow", "status")
_NODES = ("flow", "kind", "outcome")
_TOKENS = ("direction", "flow")

_COUNTED = frozenset[type[Event]](
    (
        events.Queued,
        *events.TERMINAL_EVENTS,
        events.NodeCompleted,
        events.NodeFailed,
        events.NodeSkipped,
        events.UsageRecorded,
    )
)


class _Origins:
    """What never changes about executions and flow versions, as far as it is remembered."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._origins: OrderedDict[str, Origin] = OrderedDict()
        self._kinds: OrderedDict[tuple[str, str, str], Mapping[str, str]] = OrderedDict()

    def of(self, counted: Iterable[Event], reader: Reader) -> dict[str, Origin]:
        """The origins of the executions that these events belong to."""
        found: dict[str, Origin] = {}
        wanted: dict[str, None] = {}
        with self._lock:
            for event in counted:
                if isinstance(event, events.Queued):
                    found[event.originator_id] = self._remember(event)
                elif event.originator_id not in found:
                    known = self._origins.get(event.originator_id)
                    if known is None:
                        wanted[event.originator_id] = None
                    else:
                        found[event.originator_id] = known
            ids = list(wanted)
            for start in range(0, len(ids), LOOKUP_MAX):
                for event in _first_events(reader, ids[start : start + LOOKUP_MAX]):
                    if isinstance(event, events.Queued):
                        found[event.originator_id] = self._remember(event)
        return found

    def _remember(self, event: events.Queued) -> Origin:
        origin = Origin(event.tenant, event.flow_id, event.flow_version, event.source, event.at)
        self._origins[event.originator_id] = origin
        if len(self._origins) > ORIGINS_MAX:
            self._origins.popitem(last=False)
        return origin

    def kinds(self, origin: Origin, reader: Reader) -> Mapping[str, str]:
        """Node id to kind; empty when the version was never published (it can't be, later)."""
        key = (origin.tenant, origin.flow_id, origin.flow_version)
        with self._lock:
            known = self._kinds.get(key)
            if known is None:
                known = _node_kinds(reader, *key)
                self._kinds[key] = known
                if len(self._kinds) > PLANS_MAX:
                    self._kinds.popitem(last=False)
        return known


# Belongs to a store (or to one transaction), not to a model: two stores must not share it.
_REMEMBERED: WeakKeyDictionary[Reader, _Origins] = WeakKeyDictionary()


def _first_events(reader: Reader, ids: Sequence[str]) -> Iterable[Event]:
    marks = ", ".join("?" * len(ids))
    found = reader.query(
        f"SELECT topic, state FROM stored_events WHERE originator_version = 1 AND originator_id IN ({marks})",
        ids,
    )
    return [codec.decode(topic, bytes(data)) for topic, data in found]


def _node_kinds(reader: Reader, tenant: str, flow_id: str, version: str) -> Mapping[str, str]:
    found = reader.query(
        "SELECT definition FROM flow_versions WHERE tenant = ? AND flow_id = ? AND version = ?",
        (tenant, flow_id, version),
    )
    if not found:
        return {}
    definition = cast("dict[str, Any]", msgspec.json.decode(found[0][0]))
    return {str(node["id"]): str(node["kind"]) for node in definition.get("nodes", ())}


def fold(batch: Sequence[Read], reader: Reader) -> list[Write]:
    remembered = _REMEMBERED.setdefault(reader, _Origins())
    counted = [event for _, event in batch if type(event) in _COUNTED]
    origins = remembered.of(counted, reader)
    tally: _Tally = Counter()
    for event in counted:
        origin = origins.get(event.originator_id)
        if origin is None:
            continue
        match event:
            case events.NodeCompleted():
                _count_node(tally, origin, remembered.kinds(origin, reader), event.node_id, "completed")
            case events.Queued():
                _count_status(tally, origin, "queued")
            case events.Completed():
                _count_end(tally, origin, "completed", event.at)
            case events.Failed():
                _count_end(tally, origin, "failed", event.at)
            case events.TimedOut():
                _count_end(tally, origin, "timed_out", event.at)
            case events.Cancelled():
                _count_end(tally, origin, "cancelled", event.at)
            case events.NodeSkipped():
                _count_node(tally, origin, remembered.kinds(origin, reader), event.node_id, "skipped")
            case events.NodeFailed():
                outcome = "failed" if event.retry_at is None else "retried"
                _count_node(tally, origin, remembered.kinds(origin, reader), event.node_id, outcome)
            case events.UsageRecorded():
                flow = origin.flow
                tally["tokens_total", _labels(_TOKENS, "input", flow)] += event.input_tokens
                tally["tokens_total", _labels(_TOKENS, "output", flow)] += event.output_tokens
            case _:
                continue
    calls = call_counts.tally(batch, reader)
    for (name, labels), value in calls.sums.items():
        tally[name, _pairs(labels)] += value
    kept = sorted((name, _pairs(labels), at) for (name, labels), at in calls.first_seen.items())
    # In one order, so that two transactions never wait for each other's rows.
    return [(_ADD, [(*key, value) for key, value in sorted(tally.items())]), (_KEEP, kept)]


def _count_status(tally: _Tally, origin: Origin, status: str) -> None:
    labels = _labels(_EXECUTIONS, origin.flow, origin.source, status, origin.tenant)
    tally["executions_total", labels] += 1


def _count_end(tally: _Tally, origin: Origin, status: str, at: int) -> None:
    _count_status(tally, origin, status)
    micros = max(0, at - origin.created_at)
    tally["execution_micros_sum", _labels(_SUM, origin.flow, status)] += micros
    bucket = _BOUNDS[bisect_left(BUCKETS_SECONDS, micros / SECOND)]
    tally["execution_seconds", _labels(_SECONDS, origin.flow, bucket, status)] += 1


def _count_node(tally: _Tally, origin: Origin, kinds: Mapping[str, str], node_id: str, outcome: str) -> None:
    labels = _labels(_NODES, origin.flow, kinds.get(node_id, "unknown"), outcome)
    tally["nodes_total", labels] += 1


@lru_cache(maxsize=4_096)
def _labels(names: tuple[str, ...], *values: str) -> str:
    """JSON with sorted names: one text for each set of labels. Kept, since events share few sets."""
    return _pairs(tuple(zip(names, values, strict=True)))


def _pairs(labels: call_counts.Labels) -> str:
    return msgspec.json.encode(dict(labels)).decode()


COUNTERS = Projection(TABLE, 2, _CREATE, ("name", "labels"), fold, archived="summed")


class Count(NamedTuple):
    name: str
    labels: dict[str, str]
    value: int


def counts(store: Reader) -> list[Count]:
    """All counters, by name and labels. One row for each flow, source, status, kind and bucket in use."""
    found = store.query(f"SELECT name, labels, value FROM {TABLE} ORDER BY name, labels")
    return [
        Count(name, msgspec.json.decode(labels, type=dict[str, str]), int(value))
        for name, labels, value in found
    ]


class Histogram(NamedTuple):
    """``buckets``: pairs of an upper bound and the count of durations up to it, as Prometheus wants them."""

    flow: str
    status: str
    buckets: tuple[tuple[str, int], ...]
    sum_seconds: float


def durations(found: Iterable[Count]) -> list[Histogram]:
    """The histograms of executions' durations among ``counts``, by flow and status."""
    singles: dict[tuple[str, str], dict[str, int]] = {}
    sums: dict[tuple[str, str], int] = {}
    for name, labels, value in found:
        key = (labels.get("flow", ""), labels.get("status", ""))
        if name == "execution_seconds":
            singles.setdefault(key, {})[labels["le"]] = value
        elif name == "execution_micros_sum":
            sums[key] = value
    histograms: list[Histogram] = []
    for key, counted in singles.items():
        cumulative = accumulate(counted.get(bound, 0) for bound in _BOUNDS)
        buckets = tuple(zip(_BOUNDS, cumulative, strict=True))
        histograms.append(Histogram(*key, buckets, sums.get(key, 0) / SECOND))
    return histograms
