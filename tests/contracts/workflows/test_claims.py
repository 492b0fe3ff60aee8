"""One unfinished task a workflow (contract section 2): what becomes of a claim whose start failed.

Over the real application with a host in the test's process, which can be made to fail at a start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.builtin_flows import ANSWER
from gateway.dialects.workflows.prompts import CLAIM_SECONDS
from runtime.administration import Cause
from runtime.commands import Admit, RequestCancel, StartNode
from runtime.errors import Overloaded, Unavailable
from runtime.ids import SECOND, NodeId
from tests.gateway.running_app import Running, running


def in_app(scenario: Callable[[Running, str], Awaitable[None]]) -> None:
    """Run it with the application and a workflow's id."""

    async def run() -> None:
        async with running(model="scripted") as app:
            agent = (await app.client.post("/api/agents", json={"name": "a"})).json()
            made = await app.client.post("/api/workflows", json={"agent_id": agent["id"]})
            await scenario(app, made.json()["id"])

    asyncio.run(run())


async def prompt(app: Running, workflow_id: str) -> int:
    answer = await app.client.post(f"/api/workflows/{workflow_id}/prompt", json={"prompt": "x"})
    return answer.status_code


async def shown(app: Running, workflow_id: str) -> dict[str, Any]:
    return (await app.client.get(f"/api/workflows/{workflow_id}")).json()


def test_a_start_that_was_refused_gives_the_claim_back() -> None:
    async def scenario(app: Running, workflow_id: str) -> None:
        app.host.fault = Overloaded("full")
        assert await prompt(app, workflow_id) == 503
        assert (await shown(app, workflow_id))["status"] == "active"
        assert await prompt(app, workflow_id) == 201
        assert await prompt(app, workflow_id) == 400
        assert (await shown(app, workflow_id))["task_count"] == 1

    in_app(scenario)


@pytest.mark.parametrize("is_started", [True, False])
def test_a_start_of_unknown_outcome_keeps_the_claim(is_started: bool) -> None:
    """If it did start, the run is found by it; if not, the claim lapses."""

    async def scenario(app: Running, workflow_id: str) -> None:
        app.host.fault, app.host.fault_before_record = Unavailable("gone quiet"), not is_started
        assert await prompt(app, workflow_id) == 503
        assert (await shown(app, workflow_id))["task_count"] == int(is_started)
        assert await prompt(app, workflow_id) == 400
        gateway = app.gateway
        old = gateway.clock() - (CLAIM_SECONDS + 1) * SECOND
        await gateway.registry.change(
            "default", "workflow", workflow_id, lambda _: {"claimed_at": old}, Cause(at=gateway.clock())
        )
        assert await prompt(app, workflow_id) == (400 if is_started else 201)

    in_app(scenario)


def test_a_repeat_with_the_same_key_goes_on_from_its_own_claim() -> None:
    """G6: 503 is not kept, and the row keeps the id for the retry."""

    async def scenario(app: Running, workflow_id: str) -> None:
        app.host.fault = Unavailable("gone quiet")
        url, headers = f"/api/workflows/{workflow_id}/prompt", {"idempotency-key": "k"}
        answers = [await app.client.post(url, json={"prompt": "x"}, headers=headers) for _ in range(3)]
        assert [each.status_code for each in answers] == [503, 201, 201]
        assert len(set(app.host.started)) == 1
        assert answers[1].json()["task_id"] == answers[2].json()["task_id"] == app.host.started[0]

    in_app(scenario)


def test_a_task_that_winds_down_is_halted_already() -> None:
    """G7 and 3.7: every view shows it at once, a repeat is harmless, and a prompt needn't wait."""

    async def scenario(app: Running, workflow_id: str) -> None:
        assert await prompt(app, workflow_id) == 201
        [execution_id] = app.host.started
        at = app.gateway.clock()
        await app.host.send(execution_id, Admit(at=at))
        await app.host.send(execution_id, StartNode(at=at, node_id=NodeId(ANSWER)))
        for _ in range(2):
            halted = await app.client.post(f"/api/workflows/{workflow_id}/halt")
            assert (halted.status_code, halted.json()) == (200, {"detail": "Halt signal sent"})
        now = await shown(app, workflow_id)
        assert (now["status"], now["last_task_status"]) == ("active", "halted")
        task = (await app.client.get(f"/api/tasks/{execution_id}")).json()
        assert task["status"] == "halted"
        assert await prompt(app, workflow_id) == 201

    in_app(scenario)


def test_a_run_halted_through_another_door_is_halted_here() -> None:
    async def scenario(app: Running, workflow_id: str) -> None:
        assert await prompt(app, workflow_id) == 201
        gateway = app.gateway
        command = RequestCancel(at=gateway.clock(), by="first", cause="test")
        await gateway.executions.send(app.host.started[0], command)
        assert (await shown(app, workflow_id))["last_task_status"] == "halted"

    in_app(scenario)
