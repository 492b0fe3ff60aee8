"""Very many conversations with an agent, one turn each; then nobody says anything more."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from bench.load_session import LoadFault, Session, expect


async def run(session: Session, *, agent: Any, message: str, conversations: int, clients: int) -> int:
    """How many conversations there are. Marks: `begin`, `end`."""
    connection = await session.connect()
    body = msgspec.json.encode(agent)
    made = msgspec.json.decode(
        expect(await connection.ask(session.request("POST", "/api/agents", body)), 201)
    )
    connection.close()
    request = session.request(
        "POST", f"/api/external/agents/{made['id']}/chat", msgspec.json.encode({"message": message})
    )
    session.mark("begin")
    left = iter(range(conversations))
    seen: set[str] = set()

    async def client() -> None:
        connection = await session.connect()
        for _ in left:
            answer = msgspec.json.decode(expect(await connection.ask(request), 200))
            seen.add(answer.get("data", answer)["conversationId"])
        connection.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client())
    if len(seen) != conversations:
        raise LoadFault(f"{conversations} first messages began {len(seen)} conversations")
    session.mark("end")
    return len(seen)
