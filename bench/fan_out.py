"""A thousand readers of event streams: does every one get every event, once, and how fast."""

from __future__ import annotations

from bench import progress
from bench.flows import FAN_OUT_NODES, WAIT_THEN_CHAIN
from bench.generator import generator
from bench.load_fan_out import FannedOut
from bench.processes import cpu_between
from bench.report import Figure, figure, percentile
from bench.server import Installation, StoreKind, installation

READERS = 1_000
SECONDS_MAX = 180.0


async def fan_out(store: StoreKind) -> list[Figure]:
    async with installation(store) as installed:
        await installed.publish_flows()
        await installed.start()
        figures = await _measure(installed, "sse_one_execution", 1)
        figures += await _measure(installed, "sse_many_executions", READERS)
    progress.show(figures)
    return figures


async def _measure(installed: Installation, name: str, executions: int) -> list[Figure]:
    async with generator(
        installed, "fan_out", flow=WAIT_THEN_CHAIN["id"], executions=executions, readers=READERS
    ) as load:
        await load.mark("begin", 60)
        await load.mark("open", SECONDS_MAX)
        before = installed.sample()
        await load.mark("end", SECONDS_MAX)
        cpu = cpu_between(before, installed.sample())
        done: FannedOut = await load.result(FannedOut, SECONDS_MAX)
    where = "one execution" if executions == 1 else f"{executions:,} executions"
    return [
        figure(
            f"{name}_exact",
            f"of {READERS:,} readers on {where}: those that got every event once, in order",
            [done.exact],
            "readers",
            goal=READERS,
            wall_seconds=done.end_seconds,
            cpu_seconds=cpu.by_role,
            nodes=FAN_OUT_NODES,
            frames_received=done.frames,
            seconds_to_open_all=round(done.open_seconds, 2),
            server_cpu_us_per_frame=round(cpu.server / max(1, done.frames) * 1e6, 1),
        ),
        figure(
            f"{name}_end",
            f"first signal sent to the last of {READERS:,} streams ended",
            [done.end_seconds],
            "s",
            better="lower",
            seconds_to_signal_all=round(done.signal_seconds, 3),
        ),
        figure(
            f"{name}_end_p50",
            "first signal sent to the end of a stream, p50",
            [percentile(done.end_ms, 0.5)],
            "ms",
            better="lower",
        ),
    ]
