"""What is repeated, how often, and how streams are taken up again: both drivers, over a scripted server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, closing
from typing import Any

import httpx
import pytest

from gateway.client import AsyncClient, Client, Overloaded, Refused, Unreachable
from gateway.client.calls import start
from gateway.client.procedures import ask
from gateway.client.steps import Send
from tests.pauses import counted

URL = "http://server.test"
ID = "0198c2f4-7d1e-7b3a-9c55-0242ac120002"
STARTED = {"execution_id": ID}

Answer = httpx.Response | httpx.TransportError
Script = Callable[[httpx.Request], Answer]


def scripted(*answers: Answer) -> tuple[Script, list[httpx.Request]]:
    """A server that gives one answer after the other, and what it was asked."""
    asked: list[httpx.Request] = []
    left = iter(answers)

    def serve(request: httpx.Request) -> Answer:
        request.read()
        asked.append(request)
        return next(left)

    return serve, asked


def told(answer: Answer) -> httpx.Response:
    if isinstance(answer, httpx.TransportError):
        raise answer
    return answer


class Stage:
    """Both clients over a script; pauses are counted, not waited for."""

    def __init__(self, is_blocking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self._is_blocking = is_blocking
        self.paused = counted(monkeypatch)

    def __call__(self, make: Callable[[Any], Any], script: Script) -> Any:
        """What ``make(client)`` gives at last: an answer, what a coroutine returns, a list of what comes."""
        if not self._is_blocking:
            return asyncio.run(self._awaited(make, script))
        with Client(URL, "hg_x", transport=httpx.MockTransport(lambda r: told(script(r)))) as client:
            found = make(client)
            return list(found) if hasattr(found, "__next__") else found

    async def _awaited(self, make: Callable[[Any], Any], script: Script) -> Any:
        async def serve(request: httpx.Request) -> httpx.Response:
            return told(script(request))

        async with AsyncClient(URL, "hg_x", transport=httpx.MockTransport(serve)) as client:
            found = make(client)
            if hasattr(found, "__anext__"):
                return [item async for item in found]
            return await found


@pytest.fixture(params=["blocking", "asynchronous"])
def perform(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(request.param == "blocking", monkeypatch)


def started() -> httpx.Response:
    return httpx.Response(202, json=STARTED)


def busy(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, json={"detail": "Busy."}, headers=headers)


def start_it(client: Any) -> Any:
    return client.start("hello", {"who": "Ada"})


def test_a_start_is_repeated_with_the_same_key_until_it_is_answered(perform: Stage) -> None:
    script, asked = scripted(
        httpx.ConnectError("refused"), httpx.ReadError("reset"), busy(503), busy(429), started()
    )
    assert perform(start_it, script).id == ID
    assert len(asked) == 5
    assert len({request.headers["idempotency-key"] for request in asked}) == 1
    assert {request.content for request in asked} == {b'{"input_data":{"who":"Ada"}}'}
    assert all(request.headers["x-api-key"] == "hg_x" for request in asked)


def test_retry_after_says_how_long_to_pause(perform: Stage) -> None:
    script, asked = scripted(busy(429, **{"Retry-After": "7"}), started())
    perform(start_it, script)
    assert len(asked) == 2
    assert perform.paused == [7]


def test_a_pause_that_would_take_too_long_ends_the_repeats(perform: Stage) -> None:
    script, asked = scripted(busy(429, **{"Retry-After": "600"}), started())
    with pytest.raises(Overloaded) as refused:
        perform(start_it, script)
    assert (refused.value.retry_after, len(asked)) == (600, 1)


def test_repeats_end_after_a_bounded_number(perform: Stage) -> None:
    script, asked = scripted(*[httpx.ConnectError("refused")] * 30)
    with pytest.raises(Unreachable, match="no server answers at http://server"):
        perform(start_it, script)
    assert len(asked) == 10


def test_a_request_whose_key_is_being_served_is_asked_for_again(perform: Stage) -> None:
    script, asked = scripted(busy(409, **{"Retry-After": "1"}), started())
    assert perform(start_it, script).id == ID
    assert len(asked) == 2


def test_a_refusal_is_not_repeated(perform: Stage) -> None:
    for status in (400, 401, 403, 404, 409, 413, 422, 500):
        script, asked = scripted(busy(status), started())
        with pytest.raises(Refused) as refused:
            perform(start_it, script)
        assert (refused.value.status, len(asked)) == (status, 1)


def test_what_must_not_happen_twice_is_only_repeated_when_it_was_not_sent(perform: Stage) -> None:
    def resume_it(client: Any) -> Any:
        return client.execution(ID).resume()

    sent = {"execution_id": ID, "previous_status": "paused", "status": "running", "version": 3}
    script, asked = scripted(httpx.ConnectError("refused"), busy(429), httpx.Response(200, json=sent))
    assert perform(resume_it, script).status == "running"
    assert len(asked) == 3
    script, asked = scripted(httpx.ReadError("reset"), httpx.Response(200, json=sent))
    with pytest.raises(Unreachable):
        perform(resume_it, script)
    assert len(asked) == 1


def test_a_cancel_that_is_repeated_is_known_as_the_same(perform: Stage) -> None:
    sent = {"execution_id": ID, "previous_status": "running", "status": "cancelling", "version": 3}
    script, asked = scripted(httpx.ReadTimeout("slow"), httpx.Response(200, json=sent))
    perform(lambda client: client.execution(ID).cancel(), script)
    first, second = asked
    assert first.headers["x-correlation-id"] == second.headers["x-correlation-id"]


def test_a_signal_that_is_repeated_has_the_same_id(perform: Stage) -> None:
    sent = {"execution_id": ID, "previous_status": "waiting", "status": "running", "version": 3}
    script, asked = scripted(httpx.ReadTimeout("slow"), httpx.Response(200, json=sent))
    perform(lambda client: client.execution(ID).signal("go"), script)
    assert len({json.loads(request.content)["signal_id"] for request in asked}) == 1


# --- streams --------------------------------------------------------------------------------------------


def frames(*positions: int, last: int = 0) -> bytes:
    """An event stream as the server sends it; the event at ``last`` ends the execution."""
    sent = b"retry: 3000\n\n"
    for position in positions:
        topic = "execution.completed" if position == last else "execution.node_started"
        record = {
            "position": position,
            "stream": ID,
            "version": position,
            "type": topic,
            "at": "2026-01-31T12:00:00.004211Z",
        }
        sent += b"id: %d\ndata: %s\n\n: keep-alive\n\n" % (position, json.dumps(record).encode())
    return sent


def stream(content: bytes) -> httpx.Response:
    return httpx.Response(200, content=content, headers={"content-type": "text/event-stream"})


class Breaking(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body whose connection breaks behind ``content``."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self._content
        raise httpx.ReadError("reset")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content
        raise httpx.ReadError("reset")


def breaking(content: bytes) -> httpx.Response:
    return httpx.Response(200, stream=Breaking(content), headers={"content-type": "text/event-stream"})


def positions(client: Any) -> Any:
    return client.execution(ID).events()


def test_a_stream_goes_on_behind_the_last_event_that_came(perform: Stage) -> None:
    script, asked = scripted(
        breaking(frames(1, 2)),  # the connection breaks
        httpx.ConnectError("refused"),  # the server is away
        stream(frames(3)),  # the server ends it early, because it stops
        busy(503),
        stream(frames(4, 5, last=5)),
    )
    assert [record.position for record in perform(positions, script)] == [1, 2, 3, 4, 5]
    seen = [request.headers.get("last-event-id") for request in asked]
    assert seen == [None, "2", "2", "3", "3"]


def test_a_stream_that_has_nothing_more_ends(perform: Stage) -> None:
    script, asked = scripted(stream(frames()))
    assert perform(lambda client: client.execution(ID).events(after=9), script) == []
    assert asked[0].headers["last-event-id"] == "9"


def test_a_stream_that_never_brings_anything_ends_with_an_error(perform: Stage) -> None:
    script, asked = scripted(*[breaking(frames()) for _ in range(50)])
    with pytest.raises(Unreachable):
        perform(positions, script)
    assert len(asked) == 11


def test_an_answer_that_is_no_stream_is_refused(perform: Stage) -> None:
    script, _ = scripted(httpx.Response(200, text="<html>"))
    with pytest.raises(Exception, match="sent no event stream"):
        perform(positions, script)


def test_waiting_works_without_a_place_for_a_stream(perform: Stage) -> None:
    shown = {
        "execution_id": ID,
        "flow_id": "hello",
        "flow_version": "1",
        "status": "running",
        "created_at": "2026-01-31T12:00:00Z",
    }
    ended = {**shown, "status": "completed", "output": 7}
    refused = [busy(429, **{"Retry-After": "100"})]
    script, _ = scripted(*refused, httpx.Response(200, json=shown), httpx.Response(200, json=ended))
    assert perform(lambda client: client.execution(ID).result(), script) == 7


class Open(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that brings ``content`` and would never end; says when it was closed."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        while True:
            yield self._content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            yield self._content

    def close(self) -> None:
        self.is_closed = True

    async def aclose(self) -> None:
        self.is_closed = True


def test_who_leaves_a_stream_early_closes_its_connection(perform: Stage) -> None:
    body = Open(frames(1))
    script, _ = scripted(
        httpx.Response(200, stream=body, headers={"content-type": "text/event-stream"}), started()
    )

    async def first_async(events: Any) -> Any:
        async with aclosing(events) as source:
            return await anext(source)

    def first(client: Any) -> Any:
        events = client.execution(ID).events()
        if isinstance(client, AsyncClient):
            return first_async(events)
        with closing(events) as source:
            return next(source)

    assert perform(first, script).position == 1
    assert body.is_closed


# --- downloads ------------------------------------------------------------------------------------------

ENDED = {
    "execution_id": ID,
    "flow_id": "hello",
    "flow_version": "1",
    "status": "completed",
    "created_at": "2026-01-31T12:00:00Z",
}
DATASET = {"dataset": 1, "items": 4, "failed": 1, "format": "jsonl", "parts": {"sha256": "a" * 64, "size": 1}}


def test_a_broken_download_of_a_data_set_goes_on_where_it_broke(perform: Stage) -> None:
    script, asked = scripted(
        httpx.Response(200, json={**ENDED, "output": {"rows": DATASET}}),
        breaking(b'{"n": 1}\nnull\n{"n"'),
        httpx.ConnectError("refused"),
        httpx.Response(200, content=b'{"n": 3}\n{"n": 4}\n'),
    )

    async def read_async(client: Any) -> Any:
        result = await client.execution(ID).result(1)
        return [row async for row in result["rows"]]

    def read(client: Any) -> Any:
        if isinstance(client, AsyncClient):
            return read_async(client)
        return list(client.execution(ID).result(1)["rows"])

    assert perform(read, script) == [{"n": 1}, None, {"n": 3}, {"n": 4}]
    assert [dict(request.url.params) for request in asked[1:]] == [
        {"at": "/rows"},
        {"at": "/rows", "after": "2"},
        {"at": "/rows", "after": "2"},
    ]


def test_an_output_too_large_to_be_shown_is_fetched(perform: Stage) -> None:
    kept = {"sha256": "a" * 64, "size": 20_000_000, "media_type": "application/json"}
    script, asked = scripted(
        httpx.Response(200, json={**ENDED, "output": {"blob": kept}}), httpx.Response(200, json=["large"])
    )
    assert perform(lambda client: client.execution(ID).result(1), script) == ["large"]
    assert asked[1].url.path.endswith("/output")


def test_what_looks_like_a_reference_and_is_none_stays(perform: Stage) -> None:
    output = {"a": {"$blob": "x"}, "b": {"blob": {"size": 1}}, "c/d~": [{"dataset": 2}]}
    script, _ = scripted(httpx.Response(200, json={**ENDED, "output": output}))
    assert perform(lambda client: client.execution(ID).result(1), script) == output


def test_a_request_is_described_without_sending_it() -> None:
    call = start("a/b", {}, "k")
    assert call.path == "/v1/executions/a%2Fb/async"
    procedure = ask(call)
    assert next(procedure) == Send(call)
    with pytest.raises(StopIteration) as ended:
        procedure.send(b'{"execution_id": "e1"}')
    assert ended.value.value == "e1"
