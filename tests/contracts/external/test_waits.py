"""External contract 4.5 and 5.3: the limits of waiting, in the application's own process, cut short.

The host here records and runs no node, so a run ends only when the test ends it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.dialects.external import analysis, chat, runs
from gateway.dialects.external.records import CONVERSATION
from gateway.registry import Resource
from runtime.administration import Cause
from runtime.commands import TimeOut
from runtime.errors import Overloaded
from runtime.events import Json
from runtime.ids import SECOND
from tests.gateway.running_app import Running, running

PREFIX = "/api/external"


async def made(app: Running, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await app.client.post(path, json=body)
    assert answer.is_success, answer.text
    return answer.json()


async def a_task(app: Running) -> str:
    return (await made(app, f"{PREFIX}/tasks", {"content": "x"}))["data"]["task"]["id"]


async def an_agent(app: Running) -> str:
    return (await made(app, "/api/agents", {"name": "Waits", "system_prompt": "x"}))["id"]


def test_an_analysis_that_takes_too_long_keeps_the_old_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 5.3: 408."""
    monkeypatch.setattr(analysis, "ANALYSIS_SECONDS", 0.1)

    async def story() -> None:
        async with running() as app:
            task_id = await a_task(app)
            answer = await app.client.post(f"{PREFIX}/tasks/{task_id}/analyze")
            assert (answer.status_code, answer.json()["error"]) == (408, "REQUEST_TIMEOUT")
            shown = await app.client.get(f"{PREFIX}/tasks/{task_id}")
            assert shown.json()["data"]["task"]["mcpWorkflow"] is None

    asyncio.run(story())


def test_a_turn_waits_for_the_one_before_and_then_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 4.5: CONVERSATION_BUSY; the turn before goes on."""

    async def story() -> None:
        async with running() as app:
            agent_id = await an_agent(app)
            url = f"{PREFIX}/agents/{agent_id}/chat"
            first = asyncio.create_task(app.client.post(url, json={"message": "one"}))
            turn_id = await app.host.until_started(1)
            monkeypatch.setattr(chat, "WAIT_SECONDS", 0.1)
            # A new conversation has the id of its first turn.
            body = {"message": "two", "conversationId": turn_id}
            second = await app.client.post(url, json=body)
            assert (second.status_code, second.json()["error"]) == (409, "CONVERSATION_BUSY")
            assert app.host.started == [turn_id]
            await app.host.send(turn_id, TimeOut(at=app.gateway.clock()))
            ended = await first
            assert (ended.status_code, ended.json()["error"]) == (408, "REQUEST_TIMEOUT")

    asyncio.run(story())


def test_a_turn_of_another_gateway_holds_the_conversation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 4.5: by its claim; one whose run never came holds it no longer than `runs.CLAIM_SECONDS`."""

    async def story() -> None:
        async with running() as app:
            agent_id = await an_agent(app)
            url = f"{PREFIX}/agents/{agent_id}/chat"
            first = asyncio.create_task(app.client.post(url, json={"message": "one"}))
            conversation_id = await app.host.until_started(1)
            await app.host.send(conversation_id, TimeOut(at=app.gateway.clock()))
            await first

            async def claim(at: int) -> None:
                def decide(_: Resource) -> dict[str, Json]:
                    return {"latest_run": "of-another-gateway", "claimed_at": at}

                cause = Cause(at=app.gateway.clock())
                await app.gateway.registry.change("default", CONVERSATION, conversation_id, decide, cause)

            monkeypatch.setattr(chat, "WAIT_SECONDS", 0.1)
            body = {"message": "two", "conversationId": conversation_id}
            await claim(app.gateway.clock())
            refused = await app.client.post(url, json=body)
            assert (refused.status_code, refused.json()["error"]) == (409, "CONVERSATION_BUSY")
            await claim(app.gateway.clock() - runs.CLAIM_SECONDS * SECOND)
            second = asyncio.create_task(app.client.post(url, json=body))
            await app.host.send(await app.host.until_started(2), TimeOut(at=app.gateway.clock()))
            assert (await second).status_code == 408

    asyncio.run(story())


def test_a_caller_whose_run_shows_no_end_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Section 4.2: 408 also when nobody can end the run; what it did stays readable."""
    monkeypatch.setattr(runs, "GRACE_SECONDS", 0.0)

    async def story() -> None:
        async with running() as app:
            agent_id = await an_agent(app)
            body = {"input": "x", "timeout": 0.1}
            answer = await app.client.post(f"{PREFIX}/agents/{agent_id}/execute", json=body)
            assert (answer.status_code, answer.json()["error"]) == (408, "REQUEST_TIMEOUT")

    asyncio.run(story())


def test_a_refused_start_leaves_nothing_behind() -> None:
    """Rule G4: 503, and nothing was created; the task of an agent's execution neither."""

    async def story() -> None:
        async with running() as app:
            agent_id = await an_agent(app)
            app.host.fault = Overloaded("full")
            answer = await app.client.post(f"{PREFIX}/agents/{agent_id}/execute", json={"input": "x"})
            assert (answer.status_code, answer.json()["error"]) == (503, "SERVICE_UNAVAILABLE")
            assert int(answer.headers["retry-after"]) >= 1
            listed = (await app.client.get(f"{PREFIX}/tasks")).json()["data"]
            assert listed["tasks"] == []

    asyncio.run(story())


def test_health_tells_when_the_runtime_is_down() -> None:
    """Section 3."""

    async def story() -> None:
        async with running() as app:
            app.gateway.runtime = None
            answer = await app.client.get(f"{PREFIX}/health")
            assert (answer.status_code, answer.json()["error"]) == (503, "SERVICE_UNAVAILABLE")

    asyncio.run(story())
