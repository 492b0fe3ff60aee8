"""Agents: many runs at once against a model of known speed, many idle conversations, a kill in mid-talk."""

from __future__ import annotations

import asyncio
import time
from typing import Any, NamedTuple, cast

from bench import progress
from bench.agent_flows import AGENT_RUN, DELTAS, QUICK, RUN_SECONDS, SCRIPT, SYSTEM_PROMPT, TOOL
from bench.generator import generator
from bench.load_agents import AgentRuns, LibraryRuns
from bench.model_server import Exchange, model_server
from bench.processes import SERVER_ROLES, STORE, cpu_between, pss_by_role
from bench.report import Figure, figure, percentile
from bench.server import Installation, StoreKind, installation
from runtime import verification
from runtime.event_log import EventLog
from runtime.events import TERMINAL_EVENTS, MessageRecorded

RUNS = 200
WARM_UP = 3
WALL_SHARE_MAX = 1.5
DELTA_P50_MS_MAX = 15.0
DELTA_P99_MS_MAX = 60.0
SECONDS_MAX = 300.0

CONVERSATIONS = 5_000
CONVERSATIONS_BEFORE = 200
CHAT_CLIENTS = 16
CHAT_SECONDS_MAX = 900.0
SETTLE_SECONDS = 10.0

KILL_RUNS = 100
KILL_CLIENTS = 50
KILL_SPREAD_SECONDS = RUN_SECONDS * 0.8
"""Between the first start and the last, after which everything is killed: no run can have ended, and they
are in all parts of their calls."""

WATCHERS = 8

AGENT: dict[str, Any] = {"name": "bench", "system_prompt": SYSTEM_PROMPT, "tool_definitions": [TOOL]}

_TERMINAL = frozenset(event.TOPIC for event in TERMINAL_EVENTS)


# --- many runs at once ----------------------------------------------------------------------------------


async def agents(store: StoreKind) -> list[Figure]:
    async with installation(store) as installed, model_server(installed, SCRIPT):
        await installed.publish_flows()
        await installed.start()
        figures = await _runs(installed, "agents", "prompts to as many workflows", "")
        figures += await _runs(installed, "agents_flow", "executions of an agent's flow", AGENT_RUN["id"])
    progress.show(figures)
    return figures


async def _runs(installed: Installation, name: str, what: str, flow: str) -> list[Figure]:
    async with generator(installed, "agent_runs", flow=flow, agent=AGENT, runs=RUNS, warm_up=WARM_UP) as load:
        await load.mark("warm", 60)
        await load.mark("begin", SECONDS_MAX)
        before = installed.sample()
        await load.mark("end", SECONDS_MAX)
        cpu = cpu_between(before, installed.sample())
        done: AgentRuns = await load.result(AgentRuns, 60)
    deltas = RUNS * DELTAS
    seen = len(done.delta_ms) + done.early
    return [
        figure(
            f"{name}_wall",
            f"{RUNS} {what} at once, all ended, as a multiple of what the model itself takes for one",
            [done.wall_seconds / RUN_SECONDS],
            "times",
            goal=WALL_SHARE_MAX,
            better="lower",
            wall_seconds=done.wall_seconds,
            cpu_seconds=cpu.by_role,
            ideal_seconds=RUN_SECONDS,
            the_model="two answers of 20 deltas in 2 s each, a tool call between them",
            ended=done.ended,
            run_seconds_p50=round(percentile(done.run_seconds, 0.5), 3),
            accept_ms_p50=round(percentile(done.accept_ms, 0.5), 1),
        ),
        *_delta_figures(
            name,
            f"{RUNS} {what} at once: delta sent by the model to delta received by the client",
            done.delta_ms,
            (DELTA_P50_MS_MAX, DELTA_P99_MS_MAX),
            deltas_sent_before_their_stream_was_open=done.early,
        ),
        figure(
            f"{name}_deltas_lost",
            f"{RUNS} {what} at once: deltas that did not reach their client",
            [deltas - seen],
            "deltas",
            goal=0,
            better="lower",
        ),
        figure(
            f"{name}_run_cpu",
            f"CPU of all server processes for one of {what}",
            [cpu.server / RUNS * 1e3],
            "ms",
            better="lower",
        ),
        figure(
            f"{name}_delta_cpu",
            f"CPU of all server processes for one delta of {what}, all else of the run included",
            [cpu.server / deltas * 1e6],
            "us",
            better="lower",
        ),
    ]


def _delta_figures(
    name: str, what: str, delta_ms: list[float], goals: tuple[float | None, float | None], **more: Any
) -> list[Figure]:
    return [
        figure(
            f"{name}_delta_p{round(share * 100)}",
            f"{what}, p{round(share * 100)}",
            [percentile(delta_ms or [SECONDS_MAX * 1e3], share)],
            "ms",
            goal=goal,
            better="lower",
            deltas_timed=len(delta_ms),
            **more,
        )
        for share, goal in zip((0.5, 0.99), goals, strict=True)
    ]


# --- the same runs by the model library alone ------------------------------------------------------------


async def library(store: StoreKind) -> list[Figure]:
    """For comparison: what is reached on this machine without durability, a server or readers elsewhere."""
    async with (
        installation(store) as installed,
        model_server(installed, SCRIPT) as models,
        generator(installed, "library_runs", url=models.url, runs=RUNS, warm_up=WARM_UP) as load,
    ):
        done: LibraryRuns = await load.result(LibraryRuns, SECONDS_MAX)
    what = f"{RUNS} runs at once by the model library alone, in one process"
    figures = [
        figure(
            "library_wall",
            f"{what}, as a multiple of what the model itself takes for one",
            [done.wall_seconds / RUN_SECONDS],
            "times",
            better="lower",
            wall_seconds=done.wall_seconds,
        ),
        *_delta_figures(
            "library",
            f"{what}: delta sent by the model to delta in that process",
            done.delta_ms,
            (None, None),
        ),
        figure(
            "library_run_cpu", f"CPU of one of {what}", [done.cpu_seconds / RUNS * 1e3], "ms", better="lower"
        ),
    ]
    progress.show(figures)
    return figures


# --- idle conversations ---------------------------------------------------------------------------------


async def conversations(store: StoreKind) -> list[Figure]:
    async with installation(store) as installed, model_server(installed, SCRIPT):
        await installed.publish_flows()
        await installed.start()
        await _chat(installed, "before", CONVERSATIONS_BEFORE)
        before = await _settled(installed)
        seconds = await _chat(installed, "measured", CONVERSATIONS)
        after = await _settled(installed)
    added = {role: after.get(role, 0) - before.get(role, 0) for role in (*SERVER_ROLES, STORE)}
    bytes_each = sum(added[role] for role in SERVER_ROLES) / CONVERSATIONS
    figures = [
        figure(
            "conversation_memory",
            f"PSS of all server processes for one of {CONVERSATIONS:,} idle conversations of one turn",
            [bytes_each / 1e3],
            "kB",
            better="lower",
            mb_added_by_role={role: round(size / 1e6, 1) for role, size in added.items() if size},
            conversations_before=CONVERSATIONS_BEFORE,
            turns_per_second=round(CONVERSATIONS / seconds, 1),
        )
    ]
    progress.show(figures)
    return figures


async def _chat(installed: Installation, name: str, number: int) -> float:
    agent = {"name": f"chat-{name}", "system_prompt": "Be brief."}
    async with generator(
        installed, "chat", agent=agent, message=QUICK, conversations=number, clients=CHAT_CLIENTS
    ) as load:
        await load.mark("begin", 60)
        began = time.monotonic()
        await load.mark("end", CHAT_SECONDS_MAX)
        seconds = time.monotonic() - began
        await load.result(int, 30)
    return seconds


async def _settled(installed: Installation) -> dict[str, int]:
    await asyncio.sleep(SETTLE_SECONDS)
    return pss_by_role(installed.sample())


# --- a kill in mid-talk ---------------------------------------------------------------------------------


class Facts(NamedTuple):
    """What the log says. ``recorded``: keys of the model calls whose answer is recorded."""

    ended: frozenset[str]
    recorded: frozenset[str]


async def agents_kill(store: StoreKind) -> list[Figure]:
    async with installation(store) as installed, model_server(installed, SCRIPT) as models:
        await installed.publish_flows()
        await installed.start()
        started = await _start(installed, 1)
        await _see_end(installed, started)  # the libraries of agents are loaded by now
        started = await _start(installed, KILL_RUNS, KILL_SPREAD_SECONDS)
        killed_at = time.time()
        await installed.kill()
        at_kill = await asyncio.to_thread(_facts, installed.store_env)
        asked_before = await models.exchanges()
        await installed.start()
        ready_at = time.time()
        statuses = await _see_end(installed, started)
        seconds = time.time() - ready_at
        await installed.stop()
        asked = await models.exchanges()
    figures = _kill_figures(
        in_flight=len(set(started) - at_kill.ended),
        statuses=statuses,
        recorded=at_kill.recorded,
        before=asked_before,
        after=[each for each in asked if each.at > killed_at],
        seconds=seconds,
    )
    progress.show(figures)
    return figures


async def _start(installed: Installation, number: int, seconds: float = 0.0) -> list[str]:
    async with generator(
        installed,
        "start_some",
        flow=AGENT_RUN["id"],
        inputs={"prompt": "talk"},
        executions=number,
        clients=min(number, KILL_CLIENTS),
        seconds=seconds,
    ) as load:
        await load.mark("begin", 30)
        return await load.result(list[str], 60)


async def _see_end(installed: Installation, ids: list[str]) -> dict[str, int]:
    async with generator(installed, "see_end", execution_ids=ids, clients=WATCHERS) as load:
        await load.mark("end", SECONDS_MAX)
        return await load.result(dict[str, int], 10)


def _facts(env: dict[str, str]) -> Facts:
    log = EventLog.open(env)
    try:
        ended: set[str] = set()
        recorded: set[str] = set()
        for each in verification.pages(log.feed):
            if each.topic in _TERMINAL:
                ended.add(each.originator_id)
            elif each.topic == MessageRecorded.TOPIC:
                message = cast("MessageRecorded", each.event())
                recorded.add(f"{each.originator_id}:{message.node_id}:{message.step}")
        return Facts(frozenset(ended), frozenset(recorded))
    finally:
        log.close()


def _kill_figures(
    *,
    in_flight: int,
    statuses: dict[str, int],
    recorded: frozenset[str],
    before: list[Exchange],
    after: list[Exchange],
    seconds: float,
) -> list[Figure]:
    answered = {each.idempotency_key for each in before if each.outcome == "answered"}
    again = [each.idempotency_key for each in after if each.idempotency_key in recorded]
    return [
        figure(
            "agents_kill_in_flight",
            "agent runs accepted and not ended at the kill -9 of every server process",
            [in_flight],
            "runs",
            goal=KILL_RUNS,
            model_calls_open=sum(each.outcome != "answered" for each in before),
            model_calls_answered=len(answered),
        ),
        figure(
            "agents_kill_not_completed",
            "agent runs that ended in another status than COMPLETED after the kill",
            [sum(number for status, number in statuses.items() if status != "COMPLETED")],
            "runs",
            goal=0,
            better="lower",
            statuses=statuses,
        ),
        figure(
            "agents_kill_paid_twice",
            "model calls whose answer was recorded at the kill and that were made again",
            [len(again)],
            "calls",
            goal=0,
            better="lower",
            first=again[:10],
        ),
        figure(
            "agents_kill_answers_lost",
            "answers the model server had sent whole and the kill took before they were recorded",
            [len(answered - recorded)],
            "calls",
            better="lower",
        ),
        figure(
            "agents_kill_all_done",
            "ready again after the kill, until every agent run has ended",
            [seconds],
            "s",
            better="lower",
        ),
    ]
