"""Very many executions that wait for a signal: start them, see them wait, signal them, see them end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from bench.http_client import Connection
from bench.load_session import TERMINAL, LoadFault, Session, accepted_of, expect, status_of

LOOKS_MAX = 10_000
LOOK_SECONDS = 0.02


class Waited(msgspec.Struct):
    """``resumed``: completed with the payload of their own signal."""

    start_seconds: float
    waiting_seconds: float
    signal_seconds: float
    end_seconds: float
    resumed: int


async def run(session: Session, *, flow: str, node: str, executions: int, clients: int) -> Waited:
    """Marks: `begin`, `waiting` (then waits for a word), `signalled`, `end`."""
    spread = _over(session, clients)
    session.mark("begin")
    began = time.perf_counter()
    ids = await _start(session, spread, flow, executions)
    started = time.perf_counter()

    async def see_waiting(connection: Connection, number: int) -> None:
        await _until(session, connection, ids[number], lambda body: _current_node(body) == node)

    await spread(see_waiting, executions)
    waiting = time.perf_counter()
    session.mark("waiting")
    await session.word()
    resumed_at = time.perf_counter()

    async def signal(connection: Connection, number: int) -> None:
        body = msgspec.json.encode({"name": "go", "payload": number})
        path = f"/api/admin/executions/{ids[number]}/signal"
        expect(await connection.ask(session.request("POST", path, body)), 200)

    await spread(signal, executions)
    signalled = time.perf_counter()
    session.mark("signalled")
    resumed = 0

    async def see_end(connection: Connection, number: int) -> None:
        nonlocal resumed
        body = await _until(session, connection, ids[number], _is_terminal)
        status = status_of(body)
        if status.status == "COMPLETED" and str(status.final_output).count(f"with {number}'"):
            resumed += 1

    await spread(see_end, executions)
    ended = time.perf_counter()
    session.mark("end")
    return Waited(
        start_seconds=started - began,
        waiting_seconds=waiting - began,
        signal_seconds=signalled - resumed_at,
        end_seconds=ended - resumed_at,
        resumed=resumed,
    )


class _Progress(msgspec.Struct):
    status: str
    current_node: str | None = None


_progress_of = msgspec.json.Decoder(_Progress).decode


def _current_node(body: bytes) -> str | None:
    progress = _progress_of(body)
    if progress.status in TERMINAL:
        raise LoadFault(f"ended before its signal: {body[:300]!r}")
    return progress.current_node


def _is_terminal(body: bytes) -> bool:
    return _progress_of(body).status in TERMINAL


Spread = Callable[[Callable[[Connection, int], Awaitable[None]], int], Awaitable[None]]


def _over(session: Session, clients: int) -> Spread:
    """Numbered work, spread over so many connections, new ones each time: idle ones are closed."""

    async def spread(work: Callable[[Connection, int], Awaitable[None]], count: int) -> None:
        numbers = iter(range(count))

        async def client() -> None:
            connection = await session.connect()
            for number in numbers:
                await work(connection, number)
            connection.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(min(clients, count)):
                group.create_task(client())

    return spread


async def _start(session: Session, spread: Spread, flow: str, executions: int) -> Sequence[str]:
    ids = [""] * executions
    request = session.start_request(flow, {})

    async def start(connection: Connection, number: int) -> None:
        ids[number] = accepted_of(expect(await connection.ask(request), 202)).execution_id

    await spread(start, executions)
    return ids


async def _until(
    session: Session, connection: Connection, execution_id: str, is_so: Callable[[bytes], bool]
) -> bytes:
    request = session.status_request(execution_id)
    body = b""
    for _ in range(LOOKS_MAX):
        body = expect(await connection.ask(request), 200)
        if is_so(body):
            return body
        await asyncio.sleep(LOOK_SECONDS)
    raise LoadFault(f"{execution_id}: {body[:300]!r} after {LOOKS_MAX} looks")
