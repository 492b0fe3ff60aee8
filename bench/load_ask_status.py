"""One client asks for the status of one known execution after another."""

from __future__ import annotations

import time

from bench.load_session import LoadFault, Session, expect, status_of


async def run(session: Session, *, execution_ids: list[str], warm_up: int) -> list[float]:
    """Milliseconds of each answer behind the warm-up."""
    connection = await session.connect()
    taken: list[float] = []
    for number, execution_id in enumerate(execution_ids):
        if number == warm_up:
            session.mark("begin")
        began = time.perf_counter()
        status = status_of(expect(await connection.ask(session.status_request(execution_id)), 200))
        if status.status != "COMPLETED":
            raise LoadFault(f"{execution_id} is {status.status}")
        taken.append((time.perf_counter() - began) * 1000)
    session.mark("end")
    connection.close()
    return taken[warm_up:]
