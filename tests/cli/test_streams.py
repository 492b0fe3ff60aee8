"""How the command line follows a stream that breaks, ends early, or never comes back."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from gateway.cli.connection import Event, Server
from gateway.cli.failures import CliFailure
from gateway.client.procedures import RECONNECTS_MAX
from gateway.target import Target
from tests.pauses import counted


class Stream:
    """A server whose stream ends after every ``piece`` events; ``last`` is the terminal one."""

    def __init__(self, last: int, piece: int) -> None:
        self.last = last
        self.piece = piece
        self.asked_after: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        after = int(request.headers.get("Last-Event-ID", "0"))
        self.asked_after.append(after)
        numbers = range(after + 1, min(after + self.piece, self.last) + 1)
        frames = "".join(f'id: {number}\ndata: {{"position": {number}}}\n\n' for number in numbers)
        headers = {"Content-Type": "text/event-stream"}
        return httpx.Response(200, text="retry: 3000\n\n" + frames, headers=headers)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    return counted(monkeypatch)


def followed(stream: Stream, *, has_end: bool = True) -> Iterator[Event]:
    server = Server(Target("http://test", "", True), httpx.MockTransport(stream))
    return server.events("/stream", 0, (lambda event: event["position"] == stream.last) if has_end else None)


def test_a_stream_that_ends_early_is_resumed_without_gap_or_repetition(pauses: list[float]) -> None:
    stream = Stream(last=7, piece=3)
    assert [event["position"] for event in followed(stream)] == [1, 2, 3, 4, 5, 6, 7]
    assert stream.asked_after == [0, 3, 6]
    assert len(pauses) == 2


def test_a_stream_with_nothing_left_ends(pauses: list[float]) -> None:
    assert list(followed(Stream(last=0, piece=3))) == []
    assert pauses == []


def test_an_endless_stream_that_brings_nothing_any_more_is_given_up(pauses: list[float]) -> None:
    with pytest.raises(CliFailure, match="the server ends the stream of events again and again"):
        list(followed(Stream(last=2, piece=3), has_end=False))
    assert len(pauses) == RECONNECTS_MAX
