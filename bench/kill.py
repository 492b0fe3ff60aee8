"""Kill every process of the server with thousands of executions in flight; how long until all is done."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from bench import progress
from bench.flows import SLEEP_THEN_FUNCTION, THREE_FUNCTIONS
from bench.generator import generator
from bench.load_start_until_broken import Journal
from bench.processes import cpu_between
from bench.report import Figure, figure
from bench.server import Installation, StoreKind, installation
from projections import inline_rebuild
from projections.store import ReadStore
from runtime import verification
from runtime.event_log import EventLog
from runtime.events import TERMINAL_EVENTS, Queued

IN_FLIGHT_LEAST = 2_000
ACCEPTED_BEFORE_KILL = 2_800
CLIENTS = 64
WATCHERS = 8
SECONDS_MAX = 120.0
AIM_SECONDS = 10.0

FLOWS = [THREE_FUNCTIONS["id"], *[SLEEP_THEN_FUNCTION["id"]] * 3]
"""One client in four starts what runs at once; the others what is still asleep when the kill comes, so that
enough is in flight however fast the server is."""

_TERMINAL = frozenset(event.TOPIC for event in TERMINAL_EVENTS)


class Facts(NamedTuple):
    """What the log says. ``recorded``: execution id to flow."""

    recorded: dict[str, str]
    ended: frozenset[str]

    @property
    def in_flight(self) -> list[str]:
        return sorted(self.recorded.keys() - self.ended)


async def kill(store: StoreKind) -> list[Figure]:
    async with installation(store) as installed:
        await installed.publish_flows()
        await installed.start()
        journal, killed_at = await _load_and_kill(installed)
        gone_at = time.monotonic()
        at_kill = await asyncio.to_thread(_facts, installed.store_env)
        # Looking into the log is the measurement's own time, so it is taken off.
        looking = time.monotonic() - gone_at
        times = await installed.start()
        ready_at = time.monotonic()
        before = installed.sample()
        open_ids = at_kill.in_flight
        async with generator(installed, "see_end", execution_ids=open_ids, clients=WATCHERS) as load:
            await load.mark("end", SECONDS_MAX)
            ended_at = time.monotonic()
            cpu = cpu_between(before, installed.sample())
            statuses: dict[str, int] = await load.result(dict[str, int], 10)
        await installed.stop()
        after = await asyncio.to_thread(_facts, installed.store_env)
        broken = await asyncio.to_thread(_broken_promises, installed.store_env, journal.acknowledged)
    figures = _figures(
        journal=journal,
        at_kill=at_kill,
        after=after,
        broken=broken,
        statuses=statuses,
        seconds=ended_at - killed_at - looking,
        parameters={
            "in_flight_at_kill": len(open_ids),
            "acknowledged": len(journal.acknowledged),
            "starts_unanswered": journal.unanswered,
            "in_flight_by_flow": dict(Counter(at_kill.recorded[open_id] for open_id in open_ids)),
            "seconds_until_all_processes_were_gone": round(gone_at - killed_at, 2),
            "seconds_from_start_to_ready": round(times.ready, 2),
            "seconds_from_ready_to_all_done": round(ended_at - ready_at, 2),
        },
        cpu=cpu.by_role,
    )
    progress.show(figures)
    return figures


async def _load_and_kill(installed: Installation) -> tuple[Journal, float]:
    async with generator(
        installed,
        "start_until_broken",
        flows=FLOWS,
        clients=CLIENTS,
        enough=ACCEPTED_BEFORE_KILL,
    ) as load:
        await load.mark("begin", 30)
        await load.mark("enough", 60)
        killed_at = time.monotonic()
        await installed.kill()
        return await load.result(Journal, 60), killed_at


def _facts(env: dict[str, str]) -> Facts:
    log = EventLog.open(env)
    try:
        recorded: dict[str, str] = {}
        ended: set[str] = set()
        for each in verification.pages(log.feed):
            if each.topic == Queued.TOPIC:
                queued = cast("Queued", each.event())
                recorded[each.originator_id] = queued.flow_id
            elif each.topic in _TERMINAL:
                ended.add(each.originator_id)
        return Facts(recorded, frozenset(ended))
    finally:
        log.close()


def _broken_promises(env: dict[str, str], acknowledged: Sequence[str]) -> list[str]:
    """What the checker of logs finds, and every summary row that is not what its events give."""
    log = EventLog.open(env)
    try:
        journal = [verification.Accepted(execution_id) for execution_id in acknowledged]
        report = verification.verify(verification.pages(log.feed), journal, settled=True)
        broken = [f"{each.rule}: {each.originator_id}: {each.detail}" for each in report.violations]
        return broken + [str(each) for each in inline_rebuild.check(ReadStore.over(log))]
    finally:
        log.close()


def _figures(
    *,
    journal: Journal,
    at_kill: Facts,
    after: Facts,
    broken: list[str],
    statuses: dict[str, int],
    seconds: float,
    parameters: dict[str, Any],
    cpu: dict[str, float],
) -> list[Figure]:
    lost = len(set(journal.acknowledged) - after.ended)
    return [
        figure(
            "kill_all_done",
            "kill -9 of every server process, restart, until every execution is terminal",
            [seconds],
            "s",
            goal=AIM_SECONDS,
            better="lower",
            cpu_seconds=cpu,
            **parameters,
        ),
        figure(
            "kill_in_flight",
            "executions accepted and not ended at the kill",
            [len(at_kill.in_flight)],
            "executions",
            goal=IN_FLIGHT_LEAST,
        ),
        figure(
            "kill_lost",
            "acknowledged executions without an end afterwards",
            [lost],
            "executions",
            goal=0,
            better="lower",
        ),
        figure(
            "kill_not_completed",
            "executions in flight at the kill that ended in another status than COMPLETED",
            [sum(count for status, count in statuses.items() if status != "COMPLETED")],
            "executions",
            goal=0,
            better="lower",
            statuses=statuses,
        ),
        figure(
            "kill_broken_promises",
            "what `heliograph verify` finds afterwards, and summary rows that are not what their events give:"
            " nothing recorded twice, no owners interleaved, chains of hashes whole",
            [len(broken)],
            "findings",
            goal=0,
            better="lower",
            first_findings=broken[:20],
        ),
    ]
