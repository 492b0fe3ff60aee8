"""A map over 100,000 items of a millisecond: its rate against that of bare Ray tasks, and its memory.

`BENCH_WIDE_ITEMS` makes it smaller. An item is a fixed amount of work that takes about a millisecond of one
CPU when nothing else runs. The chunks of the bare run have the sizes the map recorded. The map is watched by
one status request every half second.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from actors.ray_cluster import OBJECT_STORE_BYTES
from bench import http_client, processes, progress
from bench.bare_chunks import Work
from bench.flows import WIDE
from bench.processes import HOST, WORKER, Cpu, cpu_between, rss_by_role
from bench.report import Figure, figure
from bench.server import HOST as ADDRESS
from bench.server import ROOT, Installation, ServerFault, StoreKind, installation, server_environment
from bench.steps import toil
from runtime.event_log import EventLog
from runtime.events import ChunksRecorded

ITEMS_KEY = "BENCH_WIDE_ITEMS"
ITEMS = 100_000
WARM_UP = 4_000
ITEM_SECONDS = 0.001
POLL_SECONDS = 0.5
SECONDS_MAX = 3_600.0
START_SECONDS_MAX = 60.0
RATE_SHARE_MIN = 0.85
MEMORY_MB_MAX = 64.0
MB = 1_000_000


class Look(NamedTuple):
    """``at`` in seconds since the start was accepted."""

    at: float
    rss: dict[str, int]


class Ran(NamedTuple):
    """``sizes``: of the recorded chunks, in the order of their items."""

    seconds: float
    looks: list[Look]
    cpu: Cpu
    sizes: list[int]
    events: int


async def wide_map(store: StoreKind) -> list[Figure]:
    items = int(os.environ.get(ITEMS_KEY, str(ITEMS)))
    rounds = _calibrated()
    async with installation(store) as installed:
        await installed.publish_flows()
        installed.settings["HELIOGRAPH_FILES_ROOT"] = str(installed.folder)
        await installed.start()
        await _run(installed, WARM_UP, rounds)
        ours = await _run(installed, items, rounds)
    bare = await _bare(ours.sizes, rounds)
    return _figures(items, rounds, ours, bare)


def _calibrated() -> int:
    """Rounds of `steps.toil` that take a millisecond: the best of several tries."""
    tried = 2_000
    best = float("inf")
    for item in range(200):
        began = time.perf_counter()
        toil(item, tried)
        best = min(best, time.perf_counter() - began)
    return max(1, round(tried * ITEM_SECONDS / best))


async def _run(installed: Installation, items: int, rounds: int) -> Ran:
    """One execution to its end. Raises: ServerFault when it fails or takes too long."""
    name = f"items-{items}.jsonl"
    with (installed.folder / name).open("wb") as file:
        for number in range(items):
            file.write(b"%d\n" % number)
    body = {"input_data": {"source": name, "rounds": rounds}}
    connection = await http_client.connect(ADDRESS, installed.port)
    try:
        before = installed.sample()
        path = f"/v1/executions/{WIDE['id']}/async"
        started = await _ask(installed, connection, "POST", path, msgspec.json.encode(body))
        began = time.monotonic()
        looks: list[Look] = []
        while True:
            shown = await _ask(installed, connection, "GET", f"/v1/executions/{started['execution_id']}")
            at = time.monotonic() - began
            looks.append(Look(at, await asyncio.to_thread(lambda: rss_by_role(installed.sample()))))
            if shown["completed_at"] is not None:
                break
            if at > SECONDS_MAX:
                raise ServerFault(f"the map runs for more than {SECONDS_MAX:.0f} s")
            await asyncio.sleep(POLL_SECONDS)
        cpu = cpu_between(before, installed.sample())
    finally:
        connection.close()
    if shown["status"] != "COMPLETED":
        raise ServerFault(f"the map ended {shown['status']}: {shown}")
    return await asyncio.to_thread(_recorded, installed, started["execution_id"], items, looks, cpu)


async def _ask(
    installed: Installation, connection: http_client.Connection, method: str, path: str, body: bytes = b""
) -> Any:
    answer = await connection.ask(installed.request(method, path, body))
    if answer.status >= 300:
        raise ServerFault(f"{method} {path}: {answer.status} {answer.body[:300]!r}")
    return msgspec.json.decode(answer.body)


def _recorded(installed: Installation, execution_id: str, items: int, looks: list[Look], cpu: Cpu) -> Ran:
    """What the log says: its own times, so that polling adds nothing. Raises: ServerFault."""
    log = EventLog.open(installed.store_env)
    try:
        history = [one.event() for one in log.read(execution_id)]
    finally:
        log.close()
    chunks = [chunk for event in history if isinstance(event, ChunksRecorded) for chunk in event.chunks]
    chunks.sort(key=lambda chunk: chunk.first)
    sizes = [chunk.items for chunk in chunks]
    if sum(sizes) != items or any(chunk.failed for chunk in chunks):
        raise ServerFault(f"{sum(sizes)} of {items} items are recorded")
    return Ran((history[-1].at - history[0].at) / 1e6, looks, cpu, sizes, len(history))


class Bare(NamedTuple):
    seconds: float
    cpu: Cpu


async def _bare(sizes: list[int], rounds: int) -> Bare:
    """What the same chunks take as plain tasks of a Ray that does nothing else."""
    folder = Path(tempfile.mkdtemp(prefix="hgb-"))
    options: dict[str, Any] = {
        "num_cpus": len(os.sched_getaffinity(0)),
        "namespace": "bench",
        "include_dashboard": False,
        "log_to_driver": False,
        "configure_logging": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_temp_dir": str(folder / "r"),
    }
    work = Work(ray=options, sizes=sizes, rounds=rounds, warm_up=500)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.bare_chunks",
        msgspec.json.encode(work).decode(),
        cwd=ROOT,
        env=server_environment({}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        if process.stdin is None or process.stdout is None:
            raise ServerFault("bare Ray has no pipes")
        async with asyncio.timeout(SECONDS_MAX):
            await process.stdout.readline()
            before = processes.sample(os.getpid(), process.pid)
            told = await process.stdout.readline()
        cpu = cpu_between(before, processes.sample(os.getpid(), process.pid))
        if not told:
            raise ServerFault(f"bare Ray ended with {await process.wait()}")
        done = msgspec.json.decode(told)
        if done["items"] != sum(sizes):
            raise ServerFault(f"bare Ray did {done['items']} of {sum(sizes)} items")
        process.stdin.close()
        async with asyncio.timeout(START_SECONDS_MAX):
            await process.wait()
        return Bare(float(done["seconds"]), cpu)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await processes.kill_all(os.getpid())
        shutil.rmtree(folder, ignore_errors=True)


def _figures(items: int, rounds: int, ours: Ran, bare: Bare) -> list[Figure]:
    settled = next(look for look in ours.looks if look.at >= ours.looks[-1].at / 10)
    last = ours.looks[-1]
    grown = {role: (last.rss.get(role, 0) - settled.rss.get(role, 0)) / MB for role in (HOST, WORKER)}
    ordered = sorted(ours.sizes)
    figures = [
        figure(
            "wide_map_rate",
            f"a map over {items:,} items of 1 ms, start to end",
            [items / ours.seconds],
            "items/s",
            wall_seconds=ours.seconds,
            cpu_seconds=ours.cpu.by_role,
            digits=1,
            items=items,
            rounds=rounds,
            chunks=len(ours.sizes),
            chunk_items_median=ordered[len(ordered) // 2],
            chunk_items_most=ordered[-1],
            events=ours.events,
        ),
        figure(
            "wide_map_share",
            "its rate, as a share of that of the same chunks as bare Ray tasks",
            [bare.seconds / ours.seconds],
            "of 1",
            goal=RATE_SHARE_MIN,
            bare_items_per_second=round(items / bare.seconds, 1),
            bare_seconds=round(bare.seconds, 3),
            # What other processes of the machine don't change: the CPU that an item costs, all told.
            cpu_us_each=round(sum(ours.cpu.by_role.values()) / items * 1e6, 1),
            bare_cpu_us_each=round(sum(bare.cpu.by_role.values()) / items * 1e6, 1),
        ),
        figure(
            "wide_map_memory",
            "more resident memory of the host at the end than after the first tenth",
            [grown[HOST]],
            "MB",
            goal=MEMORY_MB_MAX,
            better="lower",
            digits=1,
            host_start_mb=round(ours.looks[0].rss.get(HOST, 0) / MB, 1),
            host_tenth_mb=round(settled.rss.get(HOST, 0) / MB, 1),
            host_end_mb=round(last.rss.get(HOST, 0) / MB, 1),
            workers_more_mb=round(grown[WORKER], 1),
        ),
    ]
    progress.show(figures)
    return figures
