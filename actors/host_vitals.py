"""What a host says about itself: where it is, what it has, and how much of a CPU its process uses."""

import time
from typing import Literal

import ray

from actors.admission import Admission
from actors.messages import HostStatus
from actors.placement_reports import PlacementReports

SAMPLE_SECONDS = 1.0
"""A share is measured over at least this long, however often it is asked for."""


class Vitals:
    """Lives on its host's loop."""

    def __init__(self, running_max: int, reports: PlacementReports) -> None:
        self._running_max = running_max
        self._reports = reports
        self._sampled_at = time.monotonic()
        self._used = time.process_time()
        self._busy = 0.0
        self._node: str | None = None

    def status(
        self,
        state: Literal["recovering", "running", "draining", "leaving", "closed"],
        incarnation: str,
        in_memory: int,
        admission: Admission,
    ) -> HostStatus:
        return HostStatus(
            incarnation=incarnation,
            state=state if state in ("running", "draining") else "recovering",
            in_memory=in_memory,
            queued=admission.short_of_places,
            admitted=admission.admitted,
            running_max=self._running_max,
            busy=self._share(),
            node=self._place(),
            unschedulable=self._reports.count,
        )

    def _share(self) -> float:
        """Share of one CPU this process used lately: 1.0 is all a single event loop can use."""
        now = time.monotonic()
        seconds = now - self._sampled_at
        if seconds >= SAMPLE_SECONDS:
            used = time.process_time()
            self._busy = (used - self._used) / seconds
            self._sampled_at, self._used = now, used
        return self._busy

    def _place(self) -> str:
        """Ray's id of the machine this process is on; empty without Ray."""
        if self._node is None:
            self._node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        return self._node
