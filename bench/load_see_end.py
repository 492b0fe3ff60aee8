"""Ask about known executions until every one has ended."""

from __future__ import annotations

import asyncio
from collections import Counter

from bench.load_session import TERMINAL, LoadFault, Session, expect, status_of

LOOKS_MAX = 6_000
LOOK_SECONDS = 0.02


async def run(session: Session, *, execution_ids: list[str], clients: int) -> dict[str, int]:
    """How many ended in which status. Mark: `end`, when the last one was seen to have ended."""
    seen: Counter[str] = Counter()
    # Newest first: what was accepted last ends last, so most of the others need one look.
    remaining = iter(list(reversed(execution_ids)))

    async def client() -> None:
        connection = await session.connect()
        for execution_id in remaining:
            request = session.status_request(execution_id)
            for _ in range(LOOKS_MAX):
                answer = await connection.ask(request)
                if answer.status == 404:
                    seen["LOST"] += 1
                    break
                status = status_of(expect(answer, 200)).status
                if status in TERMINAL:
                    seen[status] += 1
                    break
                await asyncio.sleep(LOOK_SECONDS)
            else:
                raise LoadFault(f"{execution_id} does not end")
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    session.mark("end")
    return dict(seen)
