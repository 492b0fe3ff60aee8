"""Whether the log costs the same however long it is: reads, appends and the questions hosts keep asking.

No server: the store is asked as gateways and hosts ask it, by one client in this process. Between the points
the log grows by executions that ended; a thousand stay open all the time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

from bench import history, progress
from bench.bulk_history import Filler
from bench.report import Figure, figure, percentile
from bench.server import StoreKind, installation
from projections import execution_summary
from projections.store import ReadStore
from projections.stores import partitions
from runtime.event_log import Append, Chain, EventLog
from runtime.evolution import begin, evolve
from runtime.ids import SECOND, HostName, Micros, Position

LEVELS = (10_000, 100_000, 1_000_000, 10_000_000)
REPEATS = 300
OPEN_EXECUTIONS = 1_000
FEED_PAGE = 500
PAST_DAYS = 8
"""Days over which the executions spread; each is a partition of a PostgreSQL log."""

_HOST = HostName("host-0")
_DAY = 86_400 * SECOND

OPERATIONS = {
    "status": "status of one execution, of any age",
    "history": "all events of one execution, of any age",
    "append": "one execution's events appended in two commits, for each commit",
    "feed": f"a page of {FEED_PAGE} events behind any position",
    "tail": "a look for news behind the last position",
    "open": "a page of 500 open executions of a host",
    "owners": "which hosts hold open executions",
    "due": "whose wake-up time came",
}


async def log_growth(store: StoreKind) -> list[Figure]:
    """Every operation at every length of the log, and the longest as a multiple of the shortest."""
    async with installation(store) as installed:
        return await asyncio.to_thread(_measure, {**installed.store_env, "POSTGRES_PARTITION_DAYS": "1"})


def _measure(env: dict[str, str]) -> list[Figure]:
    log = EventLog.open(env)
    reads = ReadStore.over(log)
    today = Micros(time.time_ns() // 1_000 // _DAY * _DAY)
    first = Micros(today - PAST_DAYS * _DAY)
    if reads.dialect == "postgres":
        with reads.transaction() as transaction:
            for day in range(PAST_DAYS):
                partitions.make(transaction, Micros(first + day * _DAY), Micros(first + (day + 1) * _DAY))
    _open_some(log)
    told, _ = history.one_life()
    filler = Filler(env, first, PAST_DAYS * _DAY // (LEVELS[-1] // len(told) + 1))
    found: dict[str, list[Figure]] = {}
    try:
        for level in LEVELS:
            began = time.monotonic()
            filler.fill(level)
            filler.settle()
            progress.say(f"{filler.events:,} events, filled up in {time.monotonic() - began:.0f} s")
            for name, work in _operations(log, reads, filler).items():
                found.setdefault(name, []).append(_figure(name, level, work))
            progress.show(figures[-1] for figures in found.values())
    finally:
        filler.close()
        log.close()
    return [figure for name, figures in found.items() for figure in (*figures, _growth(name, figures))]


def _operations(log: EventLog, reads: ReadStore, filler: Filler) -> dict[str, Callable[[], Any]]:
    draw = random.Random(1)
    end = log.max_position()
    behind = Position(end + REPEATS * 100)  # also behind what is appended meanwhile
    now = Micros(time.time_ns() // 1_000)

    def any_id() -> str:
        return filler.execution_id(draw.randrange(filler.executions))

    def status() -> None:
        if execution_summary.get(reads, any_id()) is None:
            raise LookupError("an execution that was recorded is not there")

    def read_history() -> None:
        if not log.read(any_id()):
            raise LookupError("an execution that was recorded has no events")

    return {
        "status": status,
        "history": read_history,
        "append": _appending(log),
        "feed": lambda: log.feed(Position(draw.randrange(max(1, end - FEED_PAGE))), FEED_PAGE),
        "tail": lambda: log.feed(behind, FEED_PAGE),
        "open": lambda: log.open_executions(_HOST, limit=500),
        "owners": log.owners,
        "due": lambda: log.due(_HOST, now, 500),
    }


def _appending(log: EventLog) -> Callable[[], None]:
    """Alternately the first events of a new execution, and the rest of them; all made beforehand."""
    pending: list[Append] = []
    for _ in range((REPEATS + 1) // 2):
        told, state = history.one_life()
        chain = Chain()
        begun = evolve(begin(told[0]), told[1])
        pending.append(Append(told[0].originator_id, told[2:], state, chain))
        pending.append(Append(told[0].originator_id, told[:2], begun, chain))

    def append() -> None:
        [outcome] = log.append([pending.pop()])
        if not isinstance(outcome, tuple):
            raise outcome

    return append


def _open_some(log: EventLog) -> None:
    group: list[Append] = []
    for _ in range(OPEN_EXECUTIONS):
        told, _ = history.one_life()
        state = evolve(begin(told[0]), told[1])
        group.append(Append(told[0].originator_id, told[:2], state, Chain()))
    for outcome in log.append(group):
        if not isinstance(outcome, tuple):
            raise outcome


def _figure(name: str, level: int, work: Callable[[], Any]) -> Figure:
    taken: list[float] = []
    cpu = time.process_time()
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        taken.append((time.perf_counter() - began) * 1_000)
    cpu = time.process_time() - cpu
    return figure(
        f"log_{name}_{level}",
        f"{OPERATIONS[name]}, in a log of {level:,} events, p50",
        [percentile(taken, 0.5)],
        "ms",
        better="lower",
        wall_seconds=sum(taken) / 1_000,
        p10_ms=round(percentile(taken, 0.1), 3),
        p99_ms=round(percentile(taken, 0.99), 3),
        client_cpu_ms_each=round(cpu / REPEATS * 1_000, 3),
        repeats=REPEATS,
        open_executions=OPEN_EXECUTIONS,
    )


def _growth(name: str, figures: list[Figure]) -> Figure:
    shortest, longest = figures[0].value, figures[-1].value
    return figure(
        f"log_{name}_growth",
        f"{OPERATIONS[name]}: in the longest log, as a multiple of the shortest",
        [longest / shortest if shortest else 1.0],
        "times",
        better="lower",
        shortest_events=LEVELS[0],
        longest_events=LEVELS[-1],
    )
