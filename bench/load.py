"""The load generator's process: `python -m bench.load`, an order on its standard input.

One event loop (uvloop), one keep-alive connection a client. It reads every answer whole and takes the ids
it asks about from the answers, as a client would.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import sys
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import uvloop

from bench import (
    load_agents,
    load_ask_status,
    load_chat,
    load_closed_loop,
    load_fan_out,
    load_see_end,
    load_start_and_follow,
    load_start_some,
    load_start_until_broken,
    load_wait_and_signal,
)
from bench.generator import LINE_BYTES_MAX, Line, Order
from bench.http_client import ConnectionEnded
from bench.load_session import LoadFault, Session

Work = Callable[..., Awaitable[Any]]


async def _library_runs(session: Session, **parameters: Any) -> Any:
    from bench import load_library  # the library takes a second and 70 MB, which no other work needs

    return await load_library.run(session, **parameters)


WORK: dict[str, Work] = {
    "closed_loop": load_closed_loop.run,
    "start_and_follow": load_start_and_follow.run,
    "ask_status": load_ask_status.run,
    "wait_and_signal": load_wait_and_signal.run,
    "start_until_broken": load_start_until_broken.run,
    "see_end": load_see_end.run,
    "fan_out": load_fan_out.run,
    "agent_runs": load_agents.run,
    "library_runs": _library_runs,
    "start_some": load_start_some.run,
    "chat": load_chat.run,
}


async def _main() -> None:
    loop = asyncio.get_running_loop()
    words = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(words), sys.stdin)
    order = msgspec.json.decode(await words.readline(), type=Order)
    session = Session(order.host, order.port, order.key, words, _say)
    result = await WORK[order.work](session, **order.parameters)
    _say(Line(result=msgspec.Raw(msgspec.json.encode(result))))


def _say(line: Line) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.freeze()
    try:
        uvloop.run(_main())
    except* (LoadFault, ConnectionEnded, OSError) as faults:
        first = _first(faults)
        sys.exit(f"load generator: {type(first).__name__}: {first}")


def _first(group: BaseExceptionGroup[Exception]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    return error


if __name__ == "__main__":
    main()
