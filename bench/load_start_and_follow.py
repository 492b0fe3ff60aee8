"""One client: start an execution, open its stream at once, read to the end; one after another."""

from __future__ import annotations

import time

import msgspec

from bench.event_stream import open_stream
from bench.load_session import LoadFault, Session, accepted_of, expect

COMPLETED = b'{"type":"execution_completed"'


class Followed(msgspec.Struct):
    """Milliseconds from the first byte of the start request."""

    accept_ms: list[float] = []
    first_event_ms: list[float] = []
    terminal_event_ms: list[float] = []


async def run(session: Session, *, flow: str, warm_up: int, executions: int) -> Followed:
    followed = Followed()
    connection = await session.connect()
    start = session.start_request(flow, {"input_data": {"name": "one"}})
    session.mark("warm")
    for number in range(warm_up + executions):
        if number == warm_up:
            session.mark("begin")
        began = time.perf_counter()
        execution_id = accepted_of(expect(await connection.ask(start), 202)).execution_id
        accepted = time.perf_counter()
        times: list[tuple[float, bytes]] = []
        stream = await open_stream(
            session, execution_id, lambda frame, times=times: times.append((time.perf_counter(), frame.data))
        )
        await stream.ended()
        if not times or not times[-1][1].startswith(COMPLETED):
            raise LoadFault(f"{execution_id}: the stream ended with {times[-1:]}")
        if number >= warm_up:
            followed.accept_ms.append((accepted - began) * 1000)
            followed.first_event_ms.append((times[0][0] - began) * 1000)
            followed.terminal_event_ms.append((times[-1][0] - began) * 1000)
    session.mark("end")
    connection.close()
    return followed
