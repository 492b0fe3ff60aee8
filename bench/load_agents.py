"""Agent runs started at once, each followed by a reader of its own that times every delta.

A delta's text is the moment at which the model server sent it (nanoseconds since the epoch, and a space), so
its age on arrival is what the server under measurement added; all processes share one clock.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import msgspec

from bench.event_stream import EventStream, Frame, follow, open_stream
from bench.http_client import Connection
from bench.load_session import Session, accepted_of, expect

END_SECONDS_MAX = 180.0
PREPARE_AT_ONCE = 16

WORKFLOW_ENDS = frozenset({"completed", "failed", "halted", "max_turns_reached"})


class AgentRuns(msgspec.Struct):
    """``delta_ms``: age of each delta that was sent while its reader's stream was open; ``early``: those sent
    before, which came with its opening. ``ended``: how the runs ended."""

    wall_seconds: float
    run_seconds: list[float]
    accept_ms: list[float]
    delta_ms: list[float]
    early: int
    ended: dict[str, int]


class LibraryRuns(msgspec.Struct):
    """The same by the model library alone. ``cpu_seconds``: of its process, first start to last end."""

    wall_seconds: float
    cpu_seconds: float
    delta_ms: list[float]


class Reader:
    """One run's text as it arrives."""

    def __init__(self) -> None:
        self.began_ns = 0
        self.opened_ns = 0
        self.ended_ns = 0
        self.status = ""
        self.ages_ms: list[float] = []
        self.early = 0
        self._rest = ""
        self.done = asyncio.Event()

    def take(self, text: str) -> None:
        now = time.time_ns()
        *stamps, self._rest = (self._rest + text).split(" ")
        for stamp in stamps:
            sent = int(stamp)
            if self.opened_ns and sent >= self.opened_ns:
                self.ages_ms.append((now - sent) / 1e6)
            else:
                self.early += 1

    def end(self, status: str) -> None:
        self.ended_ns, self.status = time.time_ns(), status
        self.done.set()


async def run(session: Session, *, flow: str, agent: Any, runs: int, warm_up: int) -> AgentRuns:
    """Marks: `warm`, `begin`, `end`.

    ``flow``: runs are executions of it, and a reader opens its stream as soon as the start is acknowledged.
    Without it they are prompts, each to a workflow of its own of the agent that ``agent`` makes; the streams
    are open before the prompts are sent.
    """
    agent_id = "" if flow else await _make_agent(session, agent)

    def make() -> _Execution | _Workflow:
        return _Execution(session, flow) if flow else _Workflow(session, agent_id)

    session.mark("warm")
    for _ in range(warm_up):
        await _run_all([make()])
    all_runs = [make() for _ in range(runs)]
    permits = asyncio.Semaphore(PREPARE_AT_ONCE)

    async def prepare(each: _Execution | _Workflow) -> None:
        async with permits:
            await each.prepare()

    await asyncio.gather(*map(prepare, all_runs))
    session.mark("begin")
    began = time.perf_counter()
    accept_ms = await _run_all(all_runs, prepared=True)
    wall = time.perf_counter() - began
    session.mark("end")
    readers = [each.reader for each in all_runs]
    return AgentRuns(
        wall_seconds=wall,
        run_seconds=[(reader.ended_ns - reader.began_ns) / 1e9 for reader in readers],
        accept_ms=accept_ms,
        delta_ms=[age for reader in readers for age in reader.ages_ms],
        early=sum(reader.early for reader in readers),
        ended=dict(Counter(reader.status for reader in readers)),
    )


async def _make_agent(session: Session, agent: Any) -> str:
    connection = await session.connect()
    request = session.request("POST", "/api/agents", msgspec.json.encode(agent))
    made = msgspec.json.decode(expect(await connection.ask(request), 201))
    connection.close()
    return made["id"]


async def _run_all(runs: list[_Execution | _Workflow], *, prepared: bool = False) -> list[float]:
    """Start all at once and wait for every end; milliseconds to each acknowledgement."""

    async def one(each: _Execution | _Workflow) -> float:
        if not prepared:
            await each.prepare()
        each.reader.began_ns = time.time_ns()
        accepted = await each.start()
        await each.reader.done.wait()
        each.close()
        return (accepted - each.reader.began_ns) / 1e6

    async with asyncio.timeout(END_SECONDS_MAX):
        return await asyncio.gather(*map(one, runs))


class _Execution:
    def __init__(self, session: Session, flow: str) -> None:
        self._session = session
        self._flow = flow
        self._connection: Connection | None = None
        self._stream: EventStream | None = None
        self.reader = Reader()

    async def prepare(self) -> None:
        self._connection = await self._session.connect()

    async def start(self) -> int:
        """When it was acknowledged, in nanoseconds since the epoch."""
        assert self._connection is not None
        request = self._session.start_request(self._flow, {"input_data": {"prompt": "talk"}})
        execution_id = accepted_of(expect(await self._connection.ask(request), 202)).execution_id
        accepted = time.time_ns()
        self._stream = await open_stream(self._session, execution_id, self._on_frame, "?deltas=true")
        self.reader.opened_ns = time.time_ns()
        return accepted

    def _on_frame(self, frame: Frame) -> None:
        event = msgspec.json.decode(frame.data)
        if event["type"] == "output_delta":
            self.reader.take(event["delta"])
        elif event["type"] in ("execution_completed", "execution_failed", "execution_cancelled"):
            self.reader.end(event["type"].removeprefix("execution_"))

    def close(self) -> None:
        for each in (self._stream, self._connection):
            if each is not None:
                each.close()


class _Workflow:
    def __init__(self, session: Session, agent_id: str) -> None:
        self._session = session
        self._agent_id = agent_id
        self._path = ""
        self._connection: Connection | None = None
        self._stream: EventStream | None = None
        self.reader = Reader()

    async def prepare(self) -> None:
        self._connection = await self._session.connect()
        made = await self._post("/api/workflows", {"agent_id": self._agent_id}, 201)
        self._path = f"/api/workflows/{made['id']}"
        self._stream = await follow(self._session, f"{self._path}/stream", self._on_frame)
        self.reader.opened_ns = time.time_ns()

    async def start(self) -> int:
        """When it was acknowledged, in nanoseconds since the epoch."""
        await self._post(f"{self._path}/prompt", {"prompt": "talk"}, 201)
        return time.time_ns()

    async def _post(self, path: str, body: Any, status: int) -> Any:
        assert self._connection is not None
        request = self._session.request("POST", path, msgspec.json.encode(body))
        return msgspec.json.decode(expect(await self._connection.ask(request), status))

    def _on_frame(self, frame: Frame) -> None:
        event = msgspec.json.decode(frame.data)
        if event["type"] == "message_delta":
            self.reader.take(event["data"]["delta"])
        elif event["type"] == "status" and event["data"]["status"] in WORKFLOW_ENDS:
            self.reader.end(event["data"]["status"])

    def close(self) -> None:
        for each in (self._stream, self._connection):
            if each is not None:
                each.close()
