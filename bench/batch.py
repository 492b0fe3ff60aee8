"""One batch of very many executions: does its rate hold, and does memory stay flat, from start to end?

`BENCH_BATCH_ITEMS` makes it smaller. The inputs lie in a file the server reads; the batch is watched by one
status request every half second, which is all the load beside it.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, NamedTuple

import msgspec

from bench import http_client, progress
from bench.flows import THREE_TEMPLATES
from bench.processes import GATEWAY, HOST, Sample, cpu_between, pss_by_role
from bench.report import Figure, figure
from bench.server import HOST as ADDRESS
from bench.server import Installation, ServerFault, StoreKind, installation

ITEMS_KEY = "BENCH_BATCH_ITEMS"
ITEMS = 100_000
WARM_UP = 2_000
CONCURRENCY = 64
POLL_SECONDS = 0.5
BATCH_SECONDS_MAX = 3_600.0
RATE_LOSS_MAX = 10.0
"""Percent by which the last fifth may be slower than the first. A tenth is 9 s: a shared machine swings by as
much within that."""

MEMORY_MB_MAX = 64.0
"""More memory of gateway and hosts over the last four fifths: what a million items may not multiply."""

MB = 1_000_000


class Look(NamedTuple):
    """What one status request told; ``at`` in seconds since the batch was accepted."""

    at: float
    ended: int
    pss: dict[str, int]
    moment: Sample


async def batch(store: StoreKind) -> list[Figure]:
    items = int(os.environ.get(ITEMS_KEY, str(ITEMS)))
    async with installation(store) as installed:
        await installed.publish_flows()
        installed.settings["HELIOGRAPH_FILES_ROOT"] = str(installed.folder)
        await installed.start()
        await _run(installed, WARM_UP)
        before = installed.sample()
        looks = await _run(installed, items)
        cpu = cpu_between(before, installed.sample())
    return _figures(items, looks, cpu.by_role)


async def _run(installed: Installation, items: int) -> list[Look]:
    """One batch to its end. Raises: ServerFault when an item failed or it takes too long."""
    name = f"inputs-{items}.jsonl"
    with (installed.folder / name).open("wb") as file:
        for number in range(items):
            file.write(b'{"name":"item %d"}\n' % number)
    body = {"flow": THREE_TEMPLATES["id"], "source": name, "concurrency": CONCURRENCY}
    connection = await http_client.connect(ADDRESS, installed.port)
    try:
        made = await _ask(installed, connection, "POST", "", msgspec.json.encode(body))
        began = time.monotonic()
        looks: list[Look] = []
        while True:
            shown = await _ask(installed, connection, "GET", f"/{made['batch_id']}")
            counts = shown["counts"]
            ended = counts["completed"] + counts["failed"]
            moment = installed.sample()
            pss = await asyncio.to_thread(pss_by_role, moment)
            looks.append(Look(time.monotonic() - began, ended, pss, moment))
            if shown["status"] in ("completed", "failed", "cancelled"):
                if shown["status"] != "completed" or counts["completed"] != items:
                    raise ServerFault(f"the batch ended {shown['status']}: {counts}, {shown['error']}")
                return looks
            if looks[-1].at > BATCH_SECONDS_MAX:
                raise ServerFault(f"the batch runs for more than {BATCH_SECONDS_MAX:.0f} s: {counts}")
            await asyncio.sleep(POLL_SECONDS)
    finally:
        connection.close()


async def _ask(
    installed: Installation, connection: http_client.Connection, method: str, path: str, body: bytes = b""
) -> Any:
    answer = await connection.ask(installed.request(method, f"/api/admin/batches{path}", body))
    if answer.status >= 300:
        raise ServerFault(f"{method} {path}: {answer.status} {answer.body[:300]!r}")
    return msgspec.json.decode(answer.body)


def _figures(items: int, looks: list[Look], cpu: dict[str, float]) -> list[Figure]:
    wall = looks[-1].at
    first, last = _rate(looks, 0, items / 5), _rate(looks, items * 4 / 5, items)
    loss = (1 - last / first) * 100
    grown = {role: _grown(looks, items, role) for role in (GATEWAY, HOST)}
    figures = [
        figure(
            "batch_rate",
            f"executions of 3 nodes, a batch of {items:,}",
            [items / wall],
            "executions/s",
            wall_seconds=wall,
            cpu_seconds=cpu,
            digits=1,
            items=items,
            concurrency=CONCURRENCY,
            warm_up=WARM_UP,
            server_cpu_ms_each={role: round(used / items * 1000, 3) for role, used in cpu.items()},
            by_tenth=[
                round(_rate(looks, items * tenth / 10, items * (tenth + 1) / 10), 1) for tenth in range(10)
            ],
            # A busy machine slows everything down alike; what an execution costs shows what really grows.
            server_cpu_ms_each_by_fifth=[round(each, 3) for each in _costs(looks, items)],
        ),
        figure(
            "batch_rate_loss",
            "how much slower the last fifth is than the first",
            [loss],
            "%",
            goal=RATE_LOSS_MAX,
            better="lower",
            digits=1,
            first_fifth=round(first, 1),
            last_fifth=round(last, 1),
        ),
        figure(
            "batch_memory",
            "more memory (PSS) of gateway and hosts at the end than after the first fifth",
            [sum(grown.values())],
            "MB",
            goal=MEMORY_MB_MAX,
            better="lower",
            digits=1,
            more_mb_by_role={role: round(more, 1) for role, more in grown.items()},
            start_mb={role: round(size / MB, 1) for role, size in looks[0].pss.items()},
            end_mb={role: round(size / MB, 1) for role, size in looks[-1].pss.items()},
        ),
    ]
    progress.show(figures)
    return figures


def _rate(looks: list[Look], begin: float, end: float) -> float:
    """Items a second between the moments at which so many had ended."""
    return (end - begin) / max(0.001, _moment(looks, end) - _moment(looks, begin))


def _moment(looks: list[Look], ended: float) -> float:
    """When so many had ended, between two looks in proportion."""
    earlier = Look(0.0, 0, {}, Sample({}, {}))
    for look in looks:
        if look.ended >= ended:
            share = (ended - earlier.ended) / max(1, look.ended - earlier.ended)
            return earlier.at + share * (look.at - earlier.at)
        earlier = look
    return earlier.at


def _costs(looks: list[Look], items: int) -> list[float]:
    """CPU of all server processes for one item, in milliseconds, fifth by fifth."""
    costs: list[float] = []
    begin = looks[0]
    for fifth in range(1, 6):
        end = next(look for look in looks if look.ended >= items * fifth / 5)
        cpu = cpu_between(begin.moment, end.moment).server
        costs.append(cpu / max(1, end.ended - begin.ended) * 1000)
        begin = end
    return costs


def _grown(looks: list[Look], items: int, role: str) -> float:
    settled = next(look for look in looks if look.ended >= items / 5)
    return (looks[-1].pss.get(role, 0) - settled.pss.get(role, 0)) / MB
