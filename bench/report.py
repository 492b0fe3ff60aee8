"""The shape of the document that `python -m bench` prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Literal

import msgspec


class Figure(msgspec.Struct, kw_only=True):
    """One measured value. ``goal`` None: nothing is promised, the value is context for others.

    ``value`` is the median of ``samples`` where there are several. ``cpu_seconds``: of all server
    processes by role during the measurement, beside ``wall_seconds``.
    """

    name: str
    what: str
    value: float
    unit: str
    goal: float | None = None
    better: Literal["higher", "lower"] = "higher"
    met: bool | None = None
    least: float | None = None
    most: float | None = None
    samples: list[float] = []
    wall_seconds: float | None = None
    cpu_seconds: dict[str, float] | None = None
    parameters: dict[str, Any] = {}


def figure(
    name: str,
    what: str,
    samples: Sequence[float],
    unit: str,
    *,
    goal: float | None = None,
    better: Literal["higher", "lower"] = "higher",
    wall_seconds: float | None = None,
    cpu_seconds: dict[str, float] | None = None,
    digits: int = 3,
    **parameters: Any,
) -> Figure:
    """A figure from one or more measurements, judged by its goal."""
    value = statistics.median(samples)
    met = None if goal is None else (value >= goal if better == "higher" else value <= goal)
    several = len(samples) > 1
    return Figure(
        name=name,
        what=what,
        value=round(value, digits),
        unit=unit,
        goal=goal,
        better=better,
        met=met,
        least=round(min(samples), digits) if several else None,
        most=round(max(samples), digits) if several else None,
        samples=[round(sample, digits) for sample in samples] if several else [],
        wall_seconds=None if wall_seconds is None else round(wall_seconds, 3),
        cpu_seconds=None
        if cpu_seconds is None
        else {role: round(seconds, 3) for role, seconds in sorted(cpu_seconds.items())},
        parameters=parameters,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` of them don't exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]
