"""Blocking calls in shared hops: each caller gets its own outcome, in its own context."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

import pytest

from gateway import hops
from gateway.hops import AT_ONCE_MAX, Hops
from runtime.errors import Overloaded

WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


def test_calls_that_come_while_the_thread_is_busy_go_in_one_hop() -> None:
    async def scenario() -> None:
        shared = Hops()
        begun, go_on = threading.Event(), threading.Event()

        def hold() -> str:
            begun.set()
            assert go_on.wait(10)
            return "first"

        first = asyncio.create_task(shared.run(hold))
        assert await asyncio.to_thread(begun.wait, 10)
        landed: list[int] = []

        async def ask(number: int) -> int:
            answer = await shared.run(lambda: number)
            landed.append(number)
            return answer

        rest = [asyncio.create_task(ask(number)) for number in range(3 * AT_ONCE_MAX)]
        await asyncio.sleep(0)
        assert landed == []
        go_on.set()
        assert await first == "first"
        assert await asyncio.gather(*rest) == list(range(3 * AT_ONCE_MAX)) == landed
        shared.close()

    asyncio.run(scenario())


def test_of_many_answers_some_go_on_in_each_sweep_of_the_loop() -> None:
    async def scenario() -> None:
        shared = Hops()
        loop = asyncio.get_running_loop()
        sweep, is_over = 0, False
        seen: list[int] = []

        def count() -> None:
            nonlocal sweep
            sweep += 1
            if not is_over:
                loop.call_soon(count)

        async def ask() -> None:
            await shared.run(int)
            seen.append(sweep)

        count()
        async with asyncio.timeout(10):
            await asyncio.gather(*(ask() for _ in range(5 * AT_ONCE_MAX)))
        is_over = True
        assert max(seen.count(each) for each in seen) <= AT_ONCE_MAX
        shared.close()

    asyncio.run(scenario())


def test_a_call_that_raises_harms_no_other_and_each_runs_in_its_callers_context() -> None:
    async def scenario() -> None:
        shared = Hops(2)

        async def ask(name: str) -> str:
            WHO.set(name)
            return await shared.run(WHO.get)

        async def fail() -> None:
            await shared.run(int, "x")

        got = await asyncio.gather(ask("a"), fail(), ask("b"), return_exceptions=True)
        assert (got[0], got[2]) == ("a", "b")
        assert isinstance(got[1], ValueError)
        shared.close()

    asyncio.run(scenario())


def test_who_is_cancelled_while_waiting_keeps_nobody_waiting() -> None:
    async def scenario() -> None:
        shared = Hops()
        go_on = threading.Event()
        held = asyncio.create_task(shared.run(go_on.wait, 10))
        given_up = asyncio.create_task(shared.run(int))
        other = asyncio.create_task(shared.run(lambda: 7))
        await asyncio.sleep(0)
        given_up.cancel()
        go_on.set()
        assert await asyncio.gather(held, other) == [True, 7]
        shared.close()

    asyncio.run(scenario())


def test_more_calls_than_may_wait_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        shared = Hops()
        go_on = threading.Event()
        tasks = [asyncio.create_task(shared.run(go_on.wait, 10)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await shared.run(int)
        go_on.set()
        assert await asyncio.gather(*tasks) == [True] * 3
        shared.close()

    monkeypatch.setattr(hops, "WAITING_MAX", 2)
    asyncio.run(scenario())
