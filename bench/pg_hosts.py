"""What 1, 2 and 4 hosts on one machine do over one PostgreSQL, and what limits each.

Executions of three templates, 64 clients, as `throughput_template_64`. The CPU of every kind of process says
what the machine was busy with; the rest of its cores' time was waited.
"""

from __future__ import annotations

import os
import statistics
from typing import Any

from bench import progress
from bench.flows import THREE_TEMPLATES
from bench.history import one_life
from bench.load_closed_loop import Window
from bench.processes import STORE, Cpu
from bench.report import Figure, figure
from bench.server import StoreKind, installation
from bench.throughput import point

HOSTS = (1, 2, 4)
CLIENTS = 64


async def pg_hosts(store: StoreKind) -> list[Figure]:
    """On PostgreSQL, whatever store the other figures are measured on."""
    del store
    figures: list[Figure] = []
    for hosts in HOSTS:
        async with installation("postgres") as installed:
            installed.settings["HELIOGRAPH_HOSTS"] = str(hosts)
            await installed.publish_flows()
            await installed.start()
            made = _figures(hosts, await point(installed, THREE_TEMPLATES["id"], CLIENTS))
        progress.show(made)
        figures += made
    return figures


def _figures(hosts: int, measured: list[tuple[Window, Cpu]]) -> list[Figure]:
    events_each = len(one_life()[0])
    wall = sum(window.seconds for window, _ in measured)
    completed = sum(window.completed for window, _ in measured)
    roles = sorted({role for _, cpu in measured for role in cpu.by_role})
    cpu = {role: sum(cost.by_role.get(role, 0.0) for _, cost in measured) for role in roles}
    generator = sum(window.generator_cpu_seconds for window, _ in measured)
    cores = os.cpu_count() or 1
    shares = {role: round(seconds / wall / cores * 100, 1) for role, seconds in cpu.items()}
    shares["load generator"] = round(generator / wall / cores * 100, 1)
    rates = [window.completed / window.seconds for window, _ in measured]
    parameters: dict[str, Any] = {
        "hosts": hosts,
        "clients": CLIENTS,
        "percent_of_the_machine_by_role": shares,
        "percent_of_the_machine_busy": round(sum(shares.values()), 1),
        "cpu_ms_each_by_role": {
            role: round(seconds / max(1, completed) * 1_000, 3) for role, seconds in cpu.items()
        },
        "median_ms": round(statistics.median(t for window, _ in measured for t in window.terminal_ms), 2),
    }
    return [
        figure(
            f"pg_hosts_{hosts}",
            f"executions of 3 nodes over PostgreSQL, {hosts} hosts on this machine, {CLIENTS} clients",
            rates,
            "executions/s",
            wall_seconds=wall,
            cpu_seconds=cpu,
            digits=1,
            **parameters,
        ),
        figure(
            f"pg_hosts_{hosts}_events",
            f"events recorded over PostgreSQL, {hosts} hosts on this machine",
            [rate * events_each for rate in rates],
            "events/s",
            digits=0,
        ),
        figure(
            f"pg_hosts_{hosts}_store_cpu",
            "CPU of PostgreSQL's processes for one execution",
            [cost.by_role.get(STORE, 0.0) / max(1, window.completed) * 1_000 for window, cost in measured],
            "ms",
            better="lower",
        ),
    ]
