"""What the hosts add to /metrics, as this gateway sees them at the moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.context import Gateway

_PER_HOST = {
    "in_memory": "Executions in the host's memory.",
    "admitted": "Executions that have a place on the host.",
    "queued": "Executions that wait for a place on the host.",
    "unschedulable": "Nodes of executions that no machine of the cluster can hold.",
    "busy": "Share of one CPU the host's process uses.",
}


class HostMetrics(Collector):
    """A Prometheus collector; asks nobody, so a scrape never waits for a host."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def describe(self) -> list[Metric]:
        """Nothing in advance: the hosts come later."""
        return []

    def collect(self) -> Iterator[Metric]:
        cluster = self._gateway.cluster
        hosts = () if cluster is None else cluster.glance()
        states = GaugeMetricFamily("heliograph_hosts", "Execution hosts by state.", labels=["state"])
        for state, count in sorted(Counter(host.state for host in hosts).items()):
            states.add_metric([state], count)
        yield states
        for name, text in _PER_HOST.items():
            family = GaugeMetricFamily(f"heliograph_host_{name}", text, labels=["host"])
            for host in hosts:
                family.add_metric([host.name], getattr(host, name))
            yield family
