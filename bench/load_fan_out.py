"""Very many readers of event streams; every frame each of them gets is kept and compared."""

from __future__ import annotations

import asyncio
import time

import msgspec

from bench.event_stream import EventStream, Frame, open_stream
from bench.load_session import Session, accepted_of, expect

OPEN_AT_ONCE_MAX = 32
SIGNAL_AT_ONCE_MAX = 16
END_SECONDS_MAX = 120.0


class FannedOut(msgspec.Struct):
    """``exact``: readers that got every frame of their execution's log once, in order, byte for byte."""

    readers: int
    executions: int
    exact: int
    frames: int
    open_seconds: float
    signal_seconds: float
    end_seconds: float
    end_ms: list[float]


async def run(session: Session, *, flow: str, executions: int, readers: int) -> FannedOut:
    """Marks: `begin`, `open`, `end`. The readers are spread evenly over the executions."""
    connection = await session.connect()
    start = session.start_request(flow, {})
    ids = [accepted_of(expect(await connection.ask(start), 202)).execution_id for _ in range(executions)]
    session.mark("begin")
    began = time.perf_counter()
    got: list[list[Frame]] = [[] for _ in range(readers)]
    streams = await _open_all(session, [ids[number % executions] for number in range(readers)], got)
    opened = time.perf_counter()
    session.mark("open")
    ends: list[float] = []

    async def see_end(stream: EventStream) -> None:
        await stream.ended()
        ends.append(time.perf_counter())

    waiting = [asyncio.ensure_future(see_end(stream)) for stream in streams]
    signalling = time.perf_counter()
    await _signal_all(session, ids)
    signalled = time.perf_counter()
    async with asyncio.timeout(END_SECONDS_MAX):
        await asyncio.gather(*waiting)
    session.mark("end")
    reference = await _replay_all(session, ids)
    exact = sum(frames == reference[ids[number % executions]] for number, frames in enumerate(got))
    connection.close()
    return FannedOut(
        readers=readers,
        executions=executions,
        exact=exact,
        frames=sum(map(len, got)),
        open_seconds=opened - began,
        signal_seconds=signalled - signalling,
        end_seconds=max(ends) - signalling,
        end_ms=[(end - signalling) * 1000 for end in ends],
    )


async def _open_all(session: Session, ids: list[str], got: list[list[Frame]]) -> list[EventStream]:
    permits = asyncio.Semaphore(OPEN_AT_ONCE_MAX)

    async def open_one(number: int) -> EventStream:
        async with permits:
            return await open_stream(session, ids[number], got[number].append)

    return await asyncio.gather(*(open_one(number) for number in range(len(ids))))


async def _signal_all(session: Session, ids: list[str]) -> None:
    body = msgspec.json.encode({"name": "go", "payload": "go"})
    remaining = iter(ids)

    async def client() -> None:
        connection = await session.connect()
        for execution_id in remaining:
            request = session.request("POST", f"/api/admin/executions/{execution_id}/signal", body)
            expect(await connection.ask(request), 200)
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(min(SIGNAL_AT_ONCE_MAX, len(ids))):
            group.create_task(client())


async def _replay_all(session: Session, ids: list[str]) -> dict[str, list[Frame]]:
    """What each log holds: the stream of an execution that has ended."""
    got: list[list[Frame]] = [[] for _ in ids]
    for stream in await _open_all(session, ids, got):
        await stream.ended()
    return dict(zip(ids, got, strict=True))
