"""How frames become the chunks of a response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

import pytest

from actors.client import LaggedBehind
from gateway.sse import CHUNK_BYTES, RETRY, chunks


def test_frames_that_are_ready_together_are_one_chunk() -> None:
    async def scenario() -> None:
        more = asyncio.Event()

        async def frames() -> AsyncGenerator[bytes]:
            yield b"one"
            yield b"two"
            await more.wait()
            yield b"three"

        got: list[bytes] = []
        async for chunk in chunks(frames()):
            got.append(chunk)
            if chunk == b"onetwo":
                more.set()
        assert got == [RETRY, b"onetwo", b"three"]

    asyncio.run(scenario())


def test_a_stream_whose_time_is_up_ends_properly_and_closes_its_source() -> None:
    async def scenario() -> None:
        is_closed = False

        async def frames() -> AsyncGenerator[bytes]:
            nonlocal is_closed
            try:
                yield b"one"
                await asyncio.Event().wait()
            finally:
                is_closed = True

        assert [chunk async for chunk in chunks(frames(), 0.05)] == [RETRY, b"one"]
        assert is_closed

    asyncio.run(scenario())


def test_a_failure_is_raised_behind_the_frames_before_it() -> None:
    async def scenario() -> None:
        async def frames() -> AsyncGenerator[bytes]:
            yield b"one"
            raise LaggedBehind

        async with aclosing(cast("Any", chunks(frames()))) as stream:
            assert await anext(stream) == RETRY
            assert await anext(stream) == b"one"
            with pytest.raises(LaggedBehind):
                await anext(stream)

    asyncio.run(scenario())


def test_frames_nobody_takes_wait_at_their_source_which_is_closed_with_the_stream() -> None:
    async def scenario() -> None:
        made = 0
        held = asyncio.Event()
        is_closed = False

        async def frames() -> AsyncGenerator[bytes]:
            nonlocal made, is_closed
            try:
                while True:
                    made += 1
                    if made * 1024 == CHUNK_BYTES:
                        held.set()
                    yield bytes(1024)
            finally:
                is_closed = True

        async with aclosing(cast("Any", chunks(frames()))) as stream:
            assert await anext(stream) == RETRY
            await held.wait()
            for _ in range(10):
                await asyncio.sleep(0)
            assert made * 1024 == CHUNK_BYTES
            assert len(await anext(stream)) == CHUNK_BYTES
        assert is_closed

    asyncio.run(scenario())
