"""The executions contract's stream encoder, with a run driven by hand (its scenario 19 and section 3.4)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from gateway.dialects.executions.stream import frames
from runtime import commands
from runtime.events import StepError
from runtime.ids import NodeId
from tests.gateway.running_app import Running, running

HELLO = NodeId("hello")


async def _start(app: Running) -> str:
    answer = await app.client.post("/v1/executions/greeting/async")
    execution_id: str = answer.json()["execution_id"]
    for command in (commands.Admit(at=app.gateway.clock()), _node_started(app)):
        await app.host.send(execution_id, command)
    return execution_id


def _node_started(app: Running) -> commands.StartNode:
    return commands.StartNode(at=app.gateway.clock(), node_id=HELLO)


async def _finish(app: Running, execution_id: str, output: Any) -> None:
    at = app.gateway.clock()
    await app.host.send(
        execution_id, commands.RecordCompleted(at=at, node_id=HELLO, attempt=1, output=output)
    )
    await app.host.send(execution_id, commands.Complete(at=at, output=output))


def _parse(text: bytes) -> list[dict[str, Any]]:
    found = [line[6:] for line in text.split(b"\n") if line.startswith(b"data: ")]
    return [msgspec.json.decode(line) for line in found]


async def _stream(app: Running, execution_id: str, *, deltas: bool) -> list[dict[str, Any]]:
    recorded = app.host.follow(execution_id, deltas=deltas)
    made = frames(execution_id, recorded, {}, app.gateway.blobs, 0)
    return [each async for chunk in made for each in _parse(chunk)]


def test_joined_deltas_equal_the_output_though_the_feed_lost_some() -> None:
    """Scenario 19."""

    async def scenario() -> None:
        async with running() as app:
            execution_id = await _start(app)
            with_deltas = asyncio.create_task(_stream(app, execution_id, deltas=True))
            without = asyncio.create_task(_stream(app, execution_id, deltas=False))
            await asyncio.sleep(0)
            for text in ("Once ", "upon "):
                await app.host.say(execution_id, "hello", text)
            await app.host.until_heard(execution_id, 2)
            await _finish(app, execution_id, "Once upon a time")
            told = await with_deltas
            assert (
                "".join(each["delta"] for each in told if each["type"] == "output_delta")
                == "Once upon a time"
            )
            ids = [each["event_id"] for each in told]
            assert ids == sorted(ids)
            assert [each for each in told if each["type"] != "output_delta"] == await without

    asyncio.run(scenario())


def test_a_large_output_appears_as_its_size_and_whole_in_the_status() -> None:
    async def scenario() -> None:
        async with running() as app:
            execution_id = await _start(app)
            large = "x" * 300_000
            await _finish(app, execution_id, large)
            told = await _stream(app, execution_id, deltas=False)
            shown = {"truncated": True, "size": 300_002}
            assert [each["output"] for each in told if each["type"] == "node_completed"] == [shown]
            assert told[-1]["final_output"] == shown
            status = (await app.client.get(f"/v1/executions/{execution_id}")).json()
            assert status["final_output"] == {"output": large}

    asyncio.run(scenario())


def test_a_cancel_of_a_running_node_ends_the_stream_before_the_node_ends() -> None:
    async def scenario() -> None:
        async with running() as app:
            execution_id = await _start(app)
            answer = await app.client.delete(f"/v1/executions/{execution_id}")
            assert answer.json()["previous_status"] == "RUNNING"
            shown = (await app.client.get(f"/v1/executions/{execution_id}")).json()
            assert (shown["status"], shown["current_node"]) == ("CANCELLED", None)
            told = await _stream(app, execution_id, deltas=False)
            assert [each["type"] for each in told] == [
                "execution_started",
                "node_started",
                "execution_cancelled",
            ]
            await app.host.send(execution_id, commands.ConfirmCancelled(at=app.gateway.clock()))
            later = (await app.client.get(f"/v1/executions/{execution_id}")).json()
            assert later["completed_at"] == shown["completed_at"]
            assert await _stream(app, execution_id, deltas=False) == told

    asyncio.run(scenario())


def test_status_and_stream_give_one_error_message() -> None:
    async def scenario() -> None:
        async with running() as app:
            execution_id = await _start(app)
            error = StepError(type="ValueError", message="no such word")
            failed = commands.RecordFailed(
                at=app.gateway.clock(), node_id=HELLO, attempt=1, error=error, draw=0.5
            )
            await app.host.send(execution_id, failed)
            told = await _stream(app, execution_id, deltas=False)
            status = (await app.client.get(f"/v1/executions/{execution_id}")).json()
            assert told[-1]["error_message"] == status["error_message"] == "Node hello failed: no such word"

    asyncio.run(scenario())
