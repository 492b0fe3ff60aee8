"""Start executions until the server is gone; remember what it acknowledged."""

from __future__ import annotations

import asyncio

import msgspec

from bench.http_client import ConnectionEnded
from bench.load_session import Session, accepted_of, expect

SECONDS_MAX = 120.0


class Journal(msgspec.Struct):
    """``unanswered``: starts whose outcome the clients don't know."""

    acknowledged: list[str] = []
    unanswered: int = 0


async def run(session: Session, *, flows: list[str], clients: int, enough: int) -> Journal:
    """Marks: `begin`, and `enough` at that many acknowledged starts; goes on until the connections break."""
    journal = Journal()
    connections = [await session.connect() for _ in range(clients)]
    session.mark("begin")

    async def client(number: int) -> None:
        request = session.start_request(flows[number % len(flows)], {"input_data": {"name": f"n{number}"}})
        while True:
            try:
                answer = await connections[number].ask(request)
            except ConnectionEnded:
                journal.unanswered += 1
                return
            journal.acknowledged.append(accepted_of(expect(answer, 202)).execution_id)
            if len(journal.acknowledged) == enough:
                session.mark("enough")

    async with asyncio.timeout(SECONDS_MAX), asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number))
    return journal
