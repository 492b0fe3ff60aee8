"""What Ctrl-C does to a run that is followed: once halts it, twice leaves it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from threading import Event as Flag
from typing import Any

import pytest

from gateway.cli import run_feed
from gateway.cli.failures import CliFailure
from gateway.cli.run_feed import Outcome, RunFeed

WAIT_SECONDS = 60.0


class Run:
    """A stream that brings one event, and its last when the run is halted or ``over`` is set."""

    def __init__(self) -> None:
        self.over = Flag()
        self.told: list[str] = []
        self.halts = 0

    def events(self) -> Iterator[dict[str, Any]]:
        yield {"number": 1}
        assert self.over.wait(WAIT_SECONDS)
        yield {"number": 2}

    def halt(self) -> None:
        self.halts += 1
        self.over.set()


def interrupt(_: object) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def run() -> Iterator[Run]:
    made = Run()
    yield made
    made.over.set()  # the thread that reads ends with the stream


def test_one_interrupt_halts_and_the_rest_is_still_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_feed, "LEAVE_SECONDS", 0.0)
    shown: list[int] = []

    def show(event: dict[str, Any]) -> None:
        shown.append(event["number"])
        if event["number"] == 1:
            interrupt(event)

    feed = RunFeed(run.events(), run.halt, run.told.append)
    assert feed.follow(show) is Outcome.ENDED
    assert (shown, run.halts, feed.was_halted) == ([1, 2], 1, True)
    assert "Ctrl-C again leaves it running" in run.told[0]


def test_a_second_interrupt_leaves_and_halts_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_feed, "LEAVE_SECONDS", WAIT_SECONDS)
    feed = RunFeed(run.events(), run.halt, interrupt)
    assert feed.follow(interrupt) is Outcome.LEFT
    assert run.halts == 0


def test_an_interrupt_while_the_run_winds_down_leaves(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_feed, "LEAVE_SECONDS", 0.0)
    feed = RunFeed(run.events(), lambda: interrupt(None), run.told.append)
    assert feed.follow(interrupt) is Outcome.LEFT_HALTING


def test_a_run_that_ends_in_time_needs_no_halt(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_feed, "LEAVE_SECONDS", WAIT_SECONDS)

    def show(event: dict[str, Any]) -> None:
        if event["number"] == 1:
            interrupt(event)
            run.over.set()

    feed = RunFeed(run.events(), run.halt, run.told.append)
    assert feed.follow(show) is Outcome.ENDED
    assert run.halts == 0


def test_a_fault_of_the_stream_is_the_callers_and_interrupts_are_as_before(run: Run) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield {"number": 1}
        raise CliFailure("the connection broke")

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(CliFailure, match="the connection broke"):
        RunFeed(broken(), run.halt, run.told.append).follow(lambda _: None)
    assert signal.getsignal(signal.SIGINT) is before
