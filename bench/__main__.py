"""`python -m bench [name ...]`: measure, and print one JSON document.

Ends with 1 when a goal was missed or a figure could not be measured, with 2 when it was ended by a signal.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, cast

import msgspec

from bench import agents, progress, throughput
from bench.batch import batch
from bench.fan_out import fan_out
from bench.generator import GeneratorFault
from bench.idle import idle
from bench.kill import kill
from bench.latency import latency
from bench.log_growth import log_growth
from bench.machine import Machine, machine
from bench.pg_hosts import pg_hosts
from bench.processes import Outlived, adopt_orphans
from bench.remote_host import remote_host
from bench.report import Figure
from bench.server import ServerFault, StoreKind
from bench.waiting import waiting
from bench.wide_map import wide_map
from runtime.errors import DomainError

Measure = Callable[[StoreKind], Awaitable[list[Figure]]]

FIGURES: dict[str, Measure] = {
    "throughput_template": throughput.templates,
    "throughput_python": throughput.functions,
    "latency": latency,
    "waiting": waiting,
    "kill": kill,
    "sse_fanout": fan_out,
    "idle": idle,
    "batch": batch,
    "wide_map": wide_map,
    "agents": agents.agents,
    "agents_library": agents.library,
    "agents_idle": agents.conversations,
    "agents_kill": agents.agents_kill,
    "log_growth": log_growth,
    "pg_hosts": pg_hosts,
    "remote_host": remote_host,
}
"""What can be measured, in the order it is."""


class Document(msgspec.Struct, kw_only=True):
    machine: Machine
    store: StoreKind
    figures: dict[str, list[Figure]]
    faults: dict[str, str]


async def _measure(names: list[str], store: StoreKind) -> Document:
    document = Document(machine=machine(), store=store, figures={}, faults={})
    for name in names:
        progress.say(f"{name} on {store}")
        try:
            document.figures[name] = await FIGURES[name](store)
        except (GeneratorFault, ServerFault, Outlived, DomainError, TimeoutError) as fault:
            document.faults[name] = f"{type(fault).__name__}: {fault}"
            progress.say(f"{name} was not measured: {fault}")
    return document


async def _until_told(work: Coroutine[Any, Any, Document]) -> Document:
    """SIGTERM ends the measurement as Ctrl-C does: with everything that was started."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(FIGURES)}; none: all")
    parser.add_argument("--store", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the document here too")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in FIGURES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    adopt_orphans()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="hgb-") as folder:
        # The PostgreSQL starter keeps its lock file there.
        os.environ["XDG_RUNTIME_DIR"] = folder
        work = _measure(arguments.names or list(FIGURES), cast("StoreKind", arguments.store))
        try:
            document = asyncio.run(_until_told(work))
        except asyncio.CancelledError:
            progress.say("ended by a signal; nothing is left behind")
            return 2
    text = msgspec.json.format(msgspec.json.encode(document), indent=2)
    if arguments.json is not None:
        arguments.json.write_bytes(text + b"\n")
    sys.stdout.buffer.write(text + b"\n")
    is_whole = not document.faults and all(
        each.met is not False for figures in document.figures.values() for each in figures
    )
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
