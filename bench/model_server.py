"""The model server of the tests as a process of its own, beside the server under measurement."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import msgspec

from bench.server import ROOT, Installation, ServerFault

READY_LINE = "model server on "
START_SECONDS_MAX = 30.0
JOURNAL_SECONDS_MAX = 60.0
MODEL = "scripted"
KEY = "sk-bench"

Script = Sequence[Mapping[str, Any]]
"""Rules as `tests.model_server.script` reads them."""


class Exchange(msgspec.Struct):
    """One request it got. ``at``: seconds since the epoch; ``outcome``: `answered` when sent whole."""

    at: float
    idempotency_key: str
    outcome: str


class ModelServer(NamedTuple):
    url: str

    async def exchanges(self) -> list[Exchange]:
        """Every request so far, in the order of arrival."""
        async with httpx.AsyncClient(timeout=JOURNAL_SECONDS_MAX) as client:
            answer = await client.get(f"{self.url.removesuffix('/v1')}/journal")
        return msgspec.json.decode(answer.content, type=list[Exchange])


@asynccontextmanager
async def model_server(installed: Installation, script: Script) -> AsyncGenerator[ModelServer]:
    """Running, and what the installation's agents talk to from its next start on."""
    file = installed.folder / "script.json"
    file.write_bytes(msgspec.json.encode(script))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.model_server",
        "--script",
        str(file),
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    # Neither measured nor killed with the server.
    installed.generators.add(process.pid)
    try:
        url = await _url(process)
        installed.settings |= {
            "HELIOGRAPH_MODEL": MODEL,
            "HELIOGRAPH_MODEL_URL": url,
            "HELIOGRAPH_MODEL_KEY": KEY,
        }
        yield ModelServer(url)
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        installed.generators.discard(process.pid)


async def _url(process: asyncio.subprocess.Process) -> str:
    if process.stdout is None:
        raise ServerFault("the model server has no output")
    async with asyncio.timeout(START_SECONDS_MAX):
        line = (await process.stdout.readline()).decode()
    if not line.startswith(READY_LINE):
        raise ServerFault(f"the model server said {line!r}")
    return line.removeprefix(READY_LINE).strip()
