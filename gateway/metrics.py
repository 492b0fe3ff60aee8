"""What /metrics shows (Prometheus). Names are an interface: see the README before changing one."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counters of one gateway process, in a registry of their own so that two apps can share a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "heliograph_http_requests",
            "Requests answered, by dialect and status (499: the client left first).",
            ["dialect", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "heliograph_http_request_seconds",
            "Time from a request's first byte to the end of its answer, streams included.",
            ["dialect"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.open_streams = Gauge(
            "heliograph_open_streams", "Event streams open in this process.", registry=self.registry
        )
        self.streams_cut = Counter(
            "heliograph_streams_cut",
            "Event streams cut off because their reader was too slow.",
            registry=self.registry,
        )
        # Looking a child up by its labels costs more than counting, hence the two caches.
        self._request_children: dict[tuple[str, int], Counter] = {}
        self._second_children: dict[str, Histogram] = {}

    def request(self, dialect: str, status: int, seconds: float) -> None:
        key = (dialect or "none", status)
        child = self._request_children.get(key)
        if child is None:
            child = self._request_children[key] = self._requests.labels(key[0], str(status))
            self._second_children[key[0]] = self._seconds.labels(key[0])
        child.inc()
        self._second_children[key[0]].observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
