"""How long one client waits."""

from __future__ import annotations

import asyncio
import random

from bench import history, progress
from bench.flows import THREE_TEMPLATES
from bench.generator import generator
from bench.load_start_and_follow import Followed
from bench.processes import cpu_between
from bench.report import Figure, figure, percentile
from bench.server import StoreKind, installation

WARM_UP = 100
EXECUTIONS = 1_000
LOG_EVENTS = 1_000_000
STATUS_READS = 2_000


async def latency(store: StoreKind) -> list[Figure]:
    return [*await _streams(store), *await _status(store)]


async def _streams(store: StoreKind) -> list[Figure]:
    async with installation(store) as installed:
        await installed.publish_flows()
        await installed.start()
        async with generator(
            installed, "start_and_follow", flow=THREE_TEMPLATES["id"], warm_up=WARM_UP, executions=EXECUTIONS
        ) as load:
            await load.mark("warm", 30)
            await load.mark("begin", 120)
            before = installed.sample()
            await load.mark("end", 300)
            cpu = cpu_between(before, installed.sample())
            followed: Followed = await load.result(Followed, 30)
    figures: list[Figure] = []
    for name, what, values, goal in (
        ("accept", "start sent to 202 (durable)", followed.accept_ms, None),
        ("first_event", "start sent to first event on the stream", followed.first_event_ms, 10.0),
        ("terminal_event", "start sent to terminal event on the stream", followed.terminal_event_ms, 15.0),
    ):
        for share, label in ((0.5, "p50"), (0.99, "p99")):
            figures.append(
                figure(
                    f"latency_{name}_{label}",
                    f"{what}, one client, {label}",
                    [percentile(values, share)],
                    "ms",
                    goal=goal if share == 0.5 else None,
                    better="lower",
                    cpu_seconds=cpu.by_role,
                    executions=EXECUTIONS,
                    warm_up=WARM_UP,
                    nodes=3,
                )
            )
    progress.show(figures)
    return figures


async def _status(store: StoreKind) -> list[Figure]:
    async with installation(store) as installed:
        await installed.publish_flows()
        recorded = await asyncio.to_thread(history.record, installed.store_env, LOG_EVENTS)
        progress.say(f"recorded {recorded.events:,} events in {recorded.seconds:.0f} s")
        await installed.start()
        # A fixed seed: the same executions on every run, all over the log.
        chosen = random.Random(1).sample(recorded.execution_ids, STATUS_READS + WARM_UP)
        async with generator(installed, "ask_status", execution_ids=chosen, warm_up=WARM_UP) as load:
            await load.mark("begin", 60)
            before = installed.sample()
            await load.mark("end", 120)
            cpu = cpu_between(before, installed.sample())
            taken: list[float] = await load.result(list[float], 30)
    figures = [
        figure(
            f"latency_status_{label}",
            f"status of one execution of a log of {LOG_EVENTS:,} events, one client, {label}",
            [percentile(taken, share)],
            "ms",
            goal=3.0 if share == 0.5 else None,
            better="lower",
            wall_seconds=sum(taken) / 1000,
            cpu_seconds=cpu.by_role,
            reads=STATUS_READS,
            warm_up=WARM_UP,
            events_in_log=recorded.events,
            seconds_to_record_them=round(recorded.seconds, 1),
        )
        for share, label in ((0.5, "p50"), (0.99, "p99"))
    ]
    progress.show(figures)
    return figures
