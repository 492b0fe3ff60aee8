"""How many executions of three sequential nodes a second, and what one costs."""

from __future__ import annotations

import asyncio
import statistics
from typing import Any

from bench import progress
from bench.flows import THREE_FUNCTIONS, THREE_TEMPLATES
from bench.generator import generator
from bench.load_closed_loop import FOUND_SHARE, Window
from bench.processes import Cpu, cpu_between
from bench.report import Figure, figure, percentile
from bench.server import Installation, StoreKind, installation

CLIENTS = (1, 16, 64)
RESTING_SECONDS = 5.0
WARM_UP_SECONDS = 4.0
WINDOW_SECONDS = 10.0
WINDOWS = 3

_POLLING = (
    f"first look after a shared estimate that {FOUND_SHARE:.0%} of first looks find sufficient,"
    " then every quarter of it within 1-20 ms"
)


async def templates(store: StoreKind) -> list[Figure]:
    return await _throughput(
        store,
        THREE_TEMPLATES,
        "throughput_template",
        {"executions/s": {64: 600.0}, "cpu": {64: 2.0}},
    )


async def functions(store: StoreKind) -> list[Figure]:
    return await _throughput(
        store, THREE_FUNCTIONS, "throughput_python", {"executions/s": {64: 150.0}, "cpu": {}}
    )


async def _throughput(
    store: StoreKind, flow: dict[str, Any], name: str, goals: dict[str, dict[int, float]]
) -> list[Figure]:
    async with installation(store) as installed:
        await installed.publish_flows()
        await installed.start()
        resting = await _resting(installed)
        figures: list[Figure] = []
        for clients in CLIENTS:
            measured = await point(installed, flow["id"], clients)
            figures += _figures(f"{name}_{clients}", clients, measured, goals, resting)
            progress.show(each for each in figures if each.name.startswith(f"{name}_{clients}"))
        return figures


async def _resting(installed: Installation) -> dict[str, float]:
    """What each role takes without any load, in percent of one core."""
    await asyncio.sleep(RESTING_SECONDS)
    before = installed.sample()
    await asyncio.sleep(RESTING_SECONDS)
    cpu = cpu_between(before, installed.sample())
    return {role: round(seconds / RESTING_SECONDS * 100, 1) for role, seconds in cpu.by_role.items()}


async def point(installed: Installation, flow: str, clients: int) -> list[tuple[Window, Cpu]]:
    """Windows of closed-loop load on a server that is ready, each with what it cost."""
    async with generator(
        installed,
        "closed_loop",
        flow=flow,
        clients=clients,
        warm_up_seconds=WARM_UP_SECONDS,
        window_seconds=WINDOW_SECONDS,
        windows=WINDOWS,
    ) as load:
        costs: list[Cpu] = []
        for _ in range(WINDOWS):
            await load.mark("begin", WARM_UP_SECONDS + 30)
            before = installed.sample()
            await load.mark("end", WINDOW_SECONDS + 30)
            costs.append(cpu_between(before, installed.sample()))
        windows: list[Window] = await load.result(list[Window], 60)
    return list(zip(windows, costs, strict=True))


def _figures(
    name: str,
    clients: int,
    measured: list[tuple[Window, Cpu]],
    goals: dict[str, dict[int, float]],
    resting: dict[str, float],
) -> list[Figure]:
    rates = [window.completed / window.seconds for window, _ in measured]
    each_ms = [cpu.server / max(1, window.completed) * 1000 for window, cpu in measured]
    store_ms = [cpu.store / max(1, window.completed) * 1000 for window, cpu in measured]
    roles = sorted({role for _, cpu in measured for role in cpu.by_role})
    cpu = {role: sum(cost.by_role.get(role, 0.0) for _, cost in measured) for role in roles}
    wall = sum(window.seconds for window, _ in measured)
    completed = sum(window.completed for window, _ in measured)
    generator_ms = sum(window.generator_cpu_seconds for window, _ in measured) / max(1, completed) * 1000
    parameters: dict[str, Any] = {
        "clients": clients,
        "nodes": 3,
        "executions": completed,
        "windows": len(measured),
        "window_seconds": WINDOW_SECONDS,
        "warm_up_seconds": WARM_UP_SECONDS,
        "polls_per_execution": round(sum(window.polls for window, _ in measured) / max(1, completed), 2),
        "polling": _POLLING,
        "generator_cpu_ms_each": round(generator_ms, 3),
        "percent_of_one_core_without_load_by_role": resting,
        "server_cpu_ms_each_by_role": {
            role: round(seconds / max(1, completed) * 1000, 3) for role, seconds in cpu.items()
        },
    }
    figures = [
        figure(
            name,
            f"executions of 3 nodes, HTTP start to terminal status, {clients} clients",
            rates,
            "executions/s",
            goal=goals["executions/s"].get(clients),
            wall_seconds=wall,
            cpu_seconds=cpu,
            digits=1,
            **parameters,
        ),
        figure(
            f"{name}_cpu",
            "CPU of all server processes for one execution",
            each_ms,
            "ms",
            goal=goals["cpu"].get(clients),
            better="lower",
            wall_seconds=wall,
            cpu_seconds=cpu,
        ),
    ]
    for share, label in ((0.5, "p50"), (0.99, "p99")):
        figures.append(
            figure(
                f"{name}_{label}",
                f"start sent to terminal status seen, {label}",
                [percentile(window.terminal_ms, share) for window, _ in measured],
                "ms",
                better="lower",
            )
        )
    figures.append(
        figure(
            f"{name}_accept_p50",
            "start sent to 202 (durable), p50",
            [statistics.median(window.accept_ms) for window, _ in measured],
            "ms",
            better="lower",
        )
    )
    if any(store_ms):
        figures.append(
            figure(f"{name}_store_cpu", "CPU of the store for one execution", store_ms, "ms", better="lower")
        )
    return figures
