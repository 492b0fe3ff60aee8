"""What ten thousand executions cost that wait for a signal, and whether all of them go on."""

from __future__ import annotations

import asyncio

from bench import progress
from bench.flows import WAIT_THEN_TEMPLATE
from bench.generator import generator
from bench.load_wait_and_signal import Waited
from bench.processes import cpu_between, pss_by_role
from bench.report import Figure, figure
from bench.server import Installation, StoreKind, installation

EXECUTIONS = 10_000
WARM_UP = 500
CLIENTS = 64
SETTLE_SECONDS = 5.0
MEMORY_MB_MAX = 100.0
MB = 1_000_000


async def waiting(store: StoreKind) -> list[Figure]:
    async with installation(store) as installed:
        await installed.publish_flows()
        await installed.start()
        # So that what is measured is the executions, and not code that is loaded at its first use.
        await _round(installed, WARM_UP)
        before = await _settled_pss(installed)
        cpu_before = installed.sample()
        waited, during = await _round(installed, EXECUTIONS)
        cpu = cpu_between(cpu_before, installed.sample())
        after = await _settled_pss(installed)
    extra = {role: (during.get(role, 0) - before.get(role, 0)) / MB for role in during}
    wall = waited.waiting_seconds + waited.end_seconds + SETTLE_SECONDS
    figures = [
        figure(
            "waiting_memory",
            f"more memory (PSS of all processes) while {EXECUTIONS:,} executions wait for a signal",
            [sum(extra.values())],
            "MB",
            goal=MEMORY_MB_MAX,
            better="lower",
            wall_seconds=wall,
            cpu_seconds=cpu.by_role,
            executions=EXECUTIONS,
            clients=CLIENTS,
            warm_up=WARM_UP,
            more_mb_by_role={role: round(more, 1) for role, more in extra.items()},
            more_mb_after_the_end=round((sum(after.values()) - sum(before.values())) / MB, 1),
        ),
        figure(
            "waiting_resumed",
            "executions that went on with the payload of their own signal, and completed",
            [waited.resumed],
            "executions",
            goal=EXECUTIONS,
        ),
        figure("waiting_start", "executions accepted a second", [EXECUTIONS / waited.start_seconds], "1/s"),
        figure("waiting_signal", "signals accepted a second", [EXECUTIONS / waited.signal_seconds], "1/s"),
        figure(
            "waiting_end", "first signal sent to last end seen", [waited.end_seconds], "s", better="lower"
        ),
    ]
    progress.show(figures)
    return figures


async def _round(installed: Installation, executions: int) -> tuple[Waited, dict[str, int]]:
    """One round of waiting and going on; the memory by role while all wait."""
    async with generator(
        installed,
        "wait_and_signal",
        flow=WAIT_THEN_TEMPLATE["id"],
        node="wait",
        executions=executions,
        clients=CLIENTS,
    ) as load:
        await load.mark("begin", 30)
        await load.mark("waiting", 300)
        during = await _settled_pss(installed)
        await load.say()
        await load.mark("signalled", 300)
        await load.mark("end", 300)
        return await load.result(Waited, 30), during


async def _settled_pss(installed: Installation) -> dict[str, int]:
    await asyncio.sleep(SETTLE_SECONDS)
    return await asyncio.to_thread(lambda: pss_by_role(installed.sample()))
