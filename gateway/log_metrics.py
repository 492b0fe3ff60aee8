"""What the log's read models add to /metrics: counters of executions, nodes and agents' calls, and how far
readers are.

These are facts of the whole installation, read from the store at each scrape, not of this process: every
gateway shows the same numbers, and a restart loses none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from projections import call_counts, counters
from projections.runner import Runner
from projections.store import ReadStore

_HELP = {
    "executions_total": "Executions by flow, source and the state they reached.",
    "nodes_total": "Node outcomes by kind.",
    "tokens_total": "Tokens used by flow and direction.",
    "model_calls_total": "Answered model calls.",
    "model_unpriced_calls_total": "Answered model calls whose cost is unknown: their model has no price.",
    "model_tokens_total": "Tokens of answered model calls, by kind.",
    "model_retries_total": "Model calls made again, for whatever reason.",
    "model_errors_total": "Tries of model calls that failed, made again or given up.",
    "tool_calls_total": "Tool calls by outcome, as the model was told.",
    "tool_retries_total": "Tool calls made again.",
}

_CALL_KINDS = ("model", "tool")


class LogMetrics(Collector):
    """A Prometheus collector; blocking, for /metrics collects on a thread."""

    def __init__(self, store: ReadStore, runner: Runner) -> None:
        self._store = store
        self._runner = runner

    def describe(self) -> list[Metric]:
        """Nothing in advance: registering must not read the store."""
        return []

    def collect(self) -> Iterator[Metric]:
        counted = counters.counts(self._store)
        calls = call_counts.capped(counted)
        others = [one for one in counted if not one.labels.keys() & set(_CALL_KINDS)]
        yield from _families([*others, *calls])
        yield from _of_calls(calls)
        seconds = HistogramMetricFamily(
            "heliograph_execution_seconds",
            "Time from acceptance to the end, by flow and status.",
            labels=["flow", "status"],
        )
        for histogram in counters.durations(counted):
            buckets = list(histogram.buckets)
            seconds.add_metric([histogram.flow, histogram.status], buckets, histogram.sum_seconds)
        yield seconds
        behind = GaugeMetricFamily(
            "heliograph_projection_behind", "Events the read model has still to fold.", labels=["projection"]
        )
        parked = GaugeMetricFamily(
            "heliograph_projection_parked", "Events the read model went on without.", labels=["projection"]
        )
        for lag in self._runner.lag():
            behind.add_metric([lag.projection], lag.behind)
            parked.add_metric([lag.projection], lag.parked)
        yield from (behind, parked)
        yield CounterMetricFamily(
            "heliograph_projection_restarts",
            "Passes of the read models' reader that failed.",
            value=self._runner.restarts,
        )


def _families(counted: Iterable[call_counts.Counted]) -> Iterable[Metric]:
    families: dict[str, CounterMetricFamily] = {}
    for name, labels, value in counted:
        if name not in _HELP:
            continue
        family = families.get(name)
        if family is None:
            family = CounterMetricFamily(f"heliograph_{name}", _HELP[name], labels=sorted(labels))
            families[name] = family
        family.add_metric([labels[key] for key in sorted(labels)], value)
    return families.values()


def _of_calls(calls: list[call_counts.Counted]) -> Iterator[Metric]:
    """Cost in dollars, and the histograms, of agents' calls."""
    cost = CounterMetricFamily(
        "heliograph_model_cost_dollars",
        "Cost of answered model calls; those without a price add nothing.",
        labels=["model"],
    )
    for name, labels, value in calls:
        if name == "model_cost_nanos":
            cost.add_metric([labels["model"]], value / call_counts.NANOS)
    yield cost
    for kind in _CALL_KINDS:
        seconds = HistogramMetricFamily(
            f"heliograph_{kind}_seconds", f"Time of answered {kind} calls' last try.", labels=[kind]
        )
        for one in call_counts.durations(calls, kind):
            seconds.add_metric([one.name], list(one.buckets), one.sum_seconds)
        yield seconds
