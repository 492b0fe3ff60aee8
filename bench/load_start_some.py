"""Start so many executions, evenly spread over some time; say when all are acknowledged."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from bench.load_session import Session, accepted_of, expect


async def run(
    session: Session, *, flow: str, inputs: Any, executions: int, clients: int, seconds: float
) -> list[str]:
    """Their ids. Mark: `begin`, when the connections are open."""
    connections = [await session.connect() for _ in range(clients)]
    session.mark("begin")
    request = session.start_request(flow, {"input_data": inputs})
    left = iter(range(executions))
    ids: list[str] = []
    began = time.perf_counter()

    async def client(number: int) -> None:
        for place in left:
            await asyncio.sleep(began + place * seconds / executions - time.perf_counter())
            answer = await connections[number].ask(request)
            ids.append(accepted_of(expect(answer, 202)).execution_id)
        connections[number].close()

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
    return ids
