"""What a server costs that has nothing to do, above a bare Ray measured in the same run; and its start."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench import processes, progress
from bench.processes import RAY, SERVER_ROLES, STORE, Sample, cpu_between, pss_by_role
from bench.report import Figure, figure
from bench.server import ROOT, StoreKind, installation, server_environment

SETTLE_SECONDS = 10.0
IDLE_SECONDS = 30.0
START_SECONDS_MAX = 120.0
STARTS = 3
MB = 1_000_000


Look = Callable[[], Sample]


class Idle(NamedTuple):
    """``cpu``: CPU seconds by role in ``IDLE_SECONDS``; ``pss``: bytes by role."""

    cpu: dict[str, float]
    pss: dict[str, int]

    @property
    def percent(self) -> float:
        """Of one core."""
        return sum(self.cpu.get(role, 0.0) for role in SERVER_ROLES) / IDLE_SECONDS * 100

    @property
    def memory_mb(self) -> float:
        return sum(size for role, size in self.pss.items() if role != STORE) / MB


async def idle(store: StoreKind) -> list[Figure]:
    bare = await _bare_ray()
    async with installation(store) as installed:
        await installed.publish_flows()
        # The first start also makes the tables; the others are what an operator waits for.
        starts = [await installed.start()]
        for _ in range(STARTS - 1):
            await installed.stop()
            starts.append(await installed.start())
        start_cpu = cpu_between(Sample({}, {}), installed.sample()).by_role
        ours = await _idle(installed.sample)
    figures = [
        figure(
            "idle_cpu",
            "idle CPU of all server processes, above a bare Ray",
            [ours.percent - bare.percent],
            "% of one core",
            goal=3.0,
            better="lower",
            wall_seconds=IDLE_SECONDS,
            cpu_seconds=ours.cpu,
            bare_ray_percent=round(bare.percent, 2),
            server_percent=round(ours.percent, 2),
            settle_seconds=SETTLE_SECONDS,
        ),
        figure(
            "idle_memory",
            "PSS of all server processes, idle",
            [ours.memory_mb],
            "MB",
            goal=900.0,
            better="lower",
            digits=1,
            mb_by_role={role: round(size / MB, 1) for role, size in ours.pss.items()},
            of_which_ray_itself=round(ours.pss.get(RAY, 0) / MB, 1),
            bare_ray_mb=round(bare.memory_mb, 1),
        ),
        figure(
            "start_to_health",
            "start of the process to /health",
            [start.health for start in starts],
            "s",
            better="lower",
            goal=1.0,
        ),
        figure(
            "start_to_ready",
            "start of the process to /ready",
            [start.ready for start in starts],
            "s",
            better="lower",
            goal=12.0,
            cpu_seconds=start_cpu,
        ),
    ]
    progress.show(figures)
    return figures


async def _idle(look: Look) -> Idle:
    await asyncio.sleep(SETTLE_SECONDS)
    before = look()
    await asyncio.sleep(IDLE_SECONDS)
    after = look()
    return Idle(cpu_between(before, after).by_role, pss_by_role(after))


async def _bare_ray() -> Idle:
    from actors.ray_cluster import OBJECT_STORE_BYTES

    folder = Path(tempfile.mkdtemp(prefix="hgb-"))
    options = {
        "num_cpus": len(os.sched_getaffinity(0)),
        "namespace": "bench",
        "include_dashboard": False,
        "log_to_driver": False,
        "configure_logging": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": str(folder / "r"),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.bare_ray",
        json.dumps(options),
        cwd=ROOT,
        env=server_environment({}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )

    def look() -> Sample:
        return processes.sample(os.getpid(), process.pid)

    try:
        if process.stdout is not None:
            async with asyncio.timeout(START_SECONDS_MAX):
                await process.stdout.readline()
        return await _idle(look)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        try:
            async with asyncio.timeout(30):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        await processes.kill_all(os.getpid())
        shutil.rmtree(folder, ignore_errors=True)
