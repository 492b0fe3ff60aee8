"""A store that gives no answer is noticed, said, and forgotten as soon as it answers again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from gateway import store_pulse
from gateway.store_pulse import StorePulse
from runtime.errors import Overloaded, Unavailable
from tests.actors.household import until

WAIT_SECONDS = 20.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_pulse, "ASK_SECONDS", 0.01)
    monkeypatch.setattr(store_pulse, "AWAY_SECONDS", 0.2)


async def story(ask: Callable[[], object], away: Callable[[], None], back: Callable[[], None]) -> None:
    pulse = StorePulse(ask)
    running = asyncio.create_task(pulse.run())
    try:
        pulse.check()
        away()
        await until(lambda: pulse.is_away, "it is noticed")
        with pytest.raises(Overloaded) as refused:
            pulse.check()
        assert refused.value.retry_after_seconds == store_pulse.RETRY_AFTER_SECONDS
        back()
        await until(lambda: not pulse.is_away, "it answers again")
        pulse.check()
    finally:
        back()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        pulse.close()


def test_a_store_that_says_nothing_is_away() -> None:
    answers = threading.Event()
    answers.set()
    asyncio.run(story(lambda: answers.wait(WAIT_SECONDS), answers.clear, answers.set))


def test_a_store_that_fails_is_away() -> None:
    answers = threading.Event()
    answers.set()

    def ask() -> None:
        if not answers.is_set():
            raise Unavailable("no connection")

    asyncio.run(story(ask, answers.clear, answers.set))
