"""N clients; each starts an execution, asks for its status until it is terminal, then starts the next.

When to ask: all clients share one estimate of how long an execution takes. The first look comes after that
estimate; a look that finds the end lowers it a little, one that comes too early raises it, so that about
two in three first looks find the end, at any load. Then every quarter of the estimate, within 1-20 ms.
"""

from __future__ import annotations

import asyncio
import time

import msgspec

from bench.load_session import (
    TERMINAL,
    LoadFault,
    Session,
    Status,
    accepted_of,
    expect,
    own_cpu_seconds,
    status_of,
)

FOUND_SHARE = 2 / 3
STEP = 0.05
FIRST_ESTIMATE_SECONDS = 0.010
ESTIMATE_SECONDS_MAX = 5.0
POLLS_MAX = 5_000


class Window(msgspec.Struct):
    """What ended within one measured window. Latencies in milliseconds."""

    seconds: float = 0.0
    completed: int = 0
    polls: int = 0
    generator_cpu_seconds: float = 0.0
    accept_ms: list[float] = []
    terminal_ms: list[float] = []


class _Pace:
    """The shared estimate of the time from start to end."""

    def __init__(self) -> None:
        self.seconds = FIRST_ESTIMATE_SECONDS

    def looked(self, found: bool) -> None:
        factor = 1 - STEP * (1 - FOUND_SHARE) if found else 1 + STEP * FOUND_SHARE
        self.seconds = min(ESTIMATE_SECONDS_MAX, self.seconds * factor)

    @property
    def again_seconds(self) -> float:
        return min(0.020, max(0.001, self.seconds / 4))


async def run(
    session: Session, *, flow: str, clients: int, warm_up_seconds: float, window_seconds: float, windows: int
) -> list[Window]:
    """One warm-up, then the windows, one after another, without a pause in the load."""
    pace = _Pace()
    window = Window()
    ended = False
    current: list[Window] = [window]

    async def client(number: int) -> None:
        connection = await session.connect()
        start = session.start_request(flow, {"input_data": {"name": f"client {number}"}})
        while not ended:
            began = time.perf_counter()
            answer = await connection.ask(start)
            accepted = time.perf_counter()
            execution_id = accepted_of(expect(answer, 202)).execution_id
            ask = session.status_request(execution_id)
            await asyncio.sleep(max(0.0, pace.seconds - (accepted - began)))
            status = Status("PENDING")
            for look in range(POLLS_MAX):
                status = status_of(expect(await connection.ask(ask), 200))
                current[0].polls += 1
                found = status.status in TERMINAL
                if look == 0:
                    pace.looked(found)
                if found:
                    break
                await asyncio.sleep(pace.again_seconds)
            if status.status != "COMPLETED":
                raise LoadFault(f"{execution_id} is {status.status}: {status.error_message}")
            now = time.perf_counter()
            current[0].completed += 1
            current[0].accept_ms.append((accepted - began) * 1000)
            current[0].terminal_ms.append((now - began) * 1000)
        connection.close()

    async def watch() -> list[Window]:
        nonlocal ended
        await asyncio.sleep(warm_up_seconds)
        measured: list[Window] = []
        for _ in range(windows):
            current[0] = Window()
            cpu, began = own_cpu_seconds(), time.perf_counter()
            session.mark("begin")
            await asyncio.sleep(window_seconds)
            done, current[0] = current[0], Window()
            done.seconds = time.perf_counter() - began
            done.generator_cpu_seconds = own_cpu_seconds() - cpu
            session.mark("end")
            measured.append(done)
        ended = True
        return measured

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
        watcher = group.create_task(watch())
    return watcher.result()
