"""The load generator as the measuring process sees it: a process of its own that obeys one order.

It writes one JSON line for each thing to know: ``{"mark": name}`` at the moments between which CPU is
measured, and ``{"result": ...}`` at the end.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from bench.server import HOST, ROOT, Installation

LINE_BYTES_MAX = 64 * 1024 * 1024


class GeneratorFault(Exception):
    """The generator ended without a result, or took too long."""


class Order(msgspec.Struct, kw_only=True):
    """``work`` names a function of `bench.load.WORK`, which gets ``parameters``."""

    work: str
    host: str
    port: int
    key: str
    parameters: dict[str, Any]


class Line(msgspec.Struct, omit_defaults=True):
    mark: str = ""
    result: msgspec.Raw = msgspec.Raw(b"")


class Generator:
    """A running order."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def mark(self, name: str, seconds: float) -> None:
        """Wait for that moment. Raises: GeneratorFault."""
        line = await self._line(seconds)
        if line.mark != name:
            raise GeneratorFault(f"expected the mark {name}, got {line.mark or 'the result'}")

    async def result(self, kind: Any, seconds: float) -> Any:
        """What the work returned, as ``kind``. Raises: GeneratorFault."""
        line = await self._line(seconds)
        if line.mark:
            raise GeneratorFault(f"unexpected mark {line.mark}")
        return msgspec.json.decode(line.result, type=kind)

    async def say(self, text: str = "go") -> None:
        """Let a generator that waits for a word go on."""
        if self._process.stdin is not None:
            self._process.stdin.write(text.encode() + b"\n")
            await self._process.stdin.drain()

    async def _line(self, seconds: float) -> Line:
        stdout = self._process.stdout
        if stdout is None:
            raise GeneratorFault("no output")
        try:
            async with asyncio.timeout(seconds):
                text = await stdout.readline()
        except TimeoutError:
            raise GeneratorFault(f"nothing from the load generator for {seconds:g} s") from None
        if not text:
            raise GeneratorFault("the load generator ended without a result; its error is above")
        return msgspec.json.decode(text, type=Line)


@asynccontextmanager
async def generator(installed: Installation, work: str, **parameters: Any) -> AsyncGenerator[Generator]:
    """A generator at work on this server; ended with the block."""
    order = Order(work=work, host=HOST, port=installed.port, key=installed.key, parameters=parameters)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.load",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
    )
    installed.generators.add(process.pid)
    try:
        running = Generator(process)
        await running.say(msgspec.json.encode(order).decode())
        yield running
    finally:
        if process.returncode is None:
            try:
                async with asyncio.timeout(5):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
        installed.generators.discard(process.pid)
