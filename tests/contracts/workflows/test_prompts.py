"""Workflows contract, acceptance scenarios 5, 6, 10, 11, 16 and 18: prompts, halts, ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.contracts.ability.wire import receiving
from tests.contracts.live_server import LiveServer, poll
from tests.contracts.workflows.agent_tools import ROWS
from tests.contracts.workflows.wire import Api
from tests.model_server import ModelServer, Rule, endless_tool_loop, says

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]

HELD = Rule(turns=(says("one two three four", deltas=4, hang="gate", hang_after=2),), prompt="hold")
ECHO = Rule(turns=(says("{prompt}"),))


def is_cancelled(run: dict[str, Any]) -> bool:
    return run["status"] == "cancelled"


def test_a_prompt_is_accepted_while_the_model_takes_its_time(api: Api, model_server: ModelServer) -> None:
    """Scenario 5; the model answers only once everything else was seen."""
    model_server.play(HELD)
    workflow_id = api.workflow(max_turns=7)
    accepted = api.prompt(workflow_id, "hold on")
    model_server.journal.until_hanging("gate")
    shown = api.get(workflow_id)
    model_server.release("gate")
    assert accepted["stream_url"].startswith(f"/api/workflows/{workflow_id}/stream?ticket=")
    expected: dict[str, Any] = {
        "workflow_id": workflow_id,
        "status": "running",
        "current_turn": 0,
        "max_turns": 7,
        "response": None,
        "output_format": "json",
        "infinite_session": True,
        "caveman": False,
        "tsv_tool_results": False,
        "usage": None,
        "logs": [],
        "messages": [],
    }
    assert accepted | expected == accepted
    assert (shown["status"], shown["last_task_status"], shown["task_count"]) == ("running", "running", 1)
    task = api.ended(accepted["task_id"])
    assert (task["status"], task["response"]) == ("completed", "one two three four")
    later = api.get(workflow_id)
    assert (later["status"], later["last_task_status"]) == ("active", "completed")
    assert [(each["role"], each["content"]) for each in later["messages"]] == [
        ("user", "hold on"),
        ("assistant", "one two three four"),
    ]
    assert [each["event"] for each in later["logs"]] == [
        "prompt_received",
        "model_call",
        "model_response",
        "completed",
    ]
    assert later["usage"]["total_input_tokens"] > 0
    assert later["last_task_at"] == task["created_at"]


def test_a_second_prompt_waits_for_the_end_of_the_first(api: Api, model_server: ModelServer) -> None:
    """Scenario 6."""
    model_server.play(HELD, ECHO)
    workflow_id = api.workflow()
    first = api.prompt(workflow_id, "hold on")["task_id"]
    model_server.journal.until_hanging("gate")
    refused = api.call("POST", f"/api/workflows/{workflow_id}/prompt", 400, json={"prompt": "two"})
    assert refused == {"detail": "A task is already running for this workflow"}
    assert api.get(workflow_id)["task_count"] == 1
    model_server.release("gate")
    assert api.ended(first)["status"] == "completed"
    second = api.run(workflow_id, "two")
    shown = api.get(workflow_id)
    assert shown["task_count"] == 2
    assert [each["content"] for each in shown["messages"]] == ["two", "two"]
    assert [each["event"] for each in shown["logs"]].count("prompt_received") == 1
    tasks = api.call("GET", f"/api/tasks/workflow/{workflow_id}", 200)
    assert [each["id"] for each in tasks] == [second["id"], first]


def test_of_ten_prompts_at_once_one_is_accepted(
    server: LiveServer, api: Api, model_server: ModelServer
) -> None:
    """Section 2: one unfinished task a workflow."""
    model_server.play(HELD)
    workflow_id = api.workflow()

    def prompt(_: int) -> int:
        with server.client() as own:
            return own.post(f"/api/workflows/{workflow_id}/prompt", json={"prompt": "hold"}).status_code

    with ThreadPoolExecutor(10) as pool:
        statuses = list(pool.map(prompt, range(10)))
    assert sorted(statuses) == [201] + [400] * 9
    model_server.journal.until_hanging("gate")
    model_server.release("gate")
    [task] = api.call("GET", f"/api/tasks/workflow/{workflow_id}", 200)
    assert api.ended(task["id"])["status"] == "completed"
    assert len(model_server.journal.exchanges) == 1


def test_a_repeated_prompt_runs_once(api: Api, client: httpx.Client, model_server: ModelServer) -> None:
    """G6."""
    workflow_id = api.workflow()
    url, headers = f"/api/workflows/{workflow_id}/prompt", {"idempotency-key": f"once-{workflow_id}"}
    first = client.post(url, json={"prompt": "x"}, headers=headers)
    api.ended(first.json()["task_id"])
    again = client.post(url, json={"prompt": "x"}, headers=headers)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert len(model_server.journal.exchanges) == 1


def test_a_request_object_is_the_prompt(api: Api, model_server: ModelServer) -> None:
    """Section 3.6."""
    workflow_id = api.workflow()
    body = {"request": {"city": "Örebro", "days": 2}, "prompt": "not sent"}
    task_id = api.call("POST", f"/api/workflows/{workflow_id}/prompt", 201, json=body)["task_id"]
    assert api.ended(task_id)["prompt"] == '{"city": "Örebro", "days": 2}'
    [exchange] = model_server.journal.exchanges
    assert "not sent" not in str(exchange.body)
    for empty in ({}, {"prompt": ""}, {"prompt": None, "request": None}):
        refused = api.call("POST", f"/api/workflows/{workflow_id}/prompt", 400, json=empty)
        assert refused == {"detail": "Either 'prompt' or 'request' must be provided."}


def test_a_halt_ends_the_run_at_once(api: Api, model_server: ModelServer) -> None:
    """Scenario 10."""
    model_server.play(HELD, ECHO)
    workflow_id = api.workflow()
    path = f"/api/workflows/{workflow_id}/halt"
    assert api.call("POST", path, 400) == {"detail": "No running task to halt"}
    task_id = api.prompt(workflow_id, "hold on")["task_id"]
    with api.stream(workflow_id) as frames:
        heard = [next(frames)]
        while heard[-1].type != "message_delta":
            heard.append(next(frames))
        assert api.call("POST", path, 200) == {"detail": "Halt signal sent"}
        while not heard[-1].is_end:
            heard.append(next(frames))
        halted = heard[-1]
        task = api.ended(task_id)
        assert task["status"] == halted.data["status"] == "halted"
        assert api.get(workflow_id)["status"] == "active"
        # What the model says now is heard by nobody: the next frame is the next run's.
        model_server.release("gate")
        poll(api.client, f"/api/audit/executions/{task_id}", is_cancelled)
        assert api.call("POST", path, 400) == {"detail": "No running task to halt"}
        api.prompt(workflow_id, "again")
        assert (next(frames).data, next(frames).log) == (
            {"status": "running", "current_turn": 0},
            "prompt_received",
        )
    assert [each["event"] for each in task["logs"]][-1] == "halted"


def test_a_task_can_be_stopped_by_its_own_path(api: Api, model_server: ModelServer) -> None:
    """Section 3.13."""
    model_server.play(HELD)
    workflow_id = api.workflow()
    task_id = api.prompt(workflow_id, "hold on")["task_id"]
    model_server.journal.until_hanging("gate")
    stopped = api.call("POST", f"/api/tasks/{task_id}/stop", 202)
    assert stopped == {"status": "halt_requested", "workflow_id": workflow_id}
    assert api.ended(task_id)["status"] == "halted"


def test_turns_are_counted_and_bounded(api: Api, model_server: ModelServer) -> None:
    """Scenario 11: and no webhook, which the one of the run after it shows."""
    model_server.play(endless_tool_loop("rows", {"topic": "x"}, prompt="loop"), ECHO)
    with receiving(204) as receiver:
        workflow_id = api.workflow(
            api.agent(tool_definitions=[ROWS]),
            max_turns=2,
            webhook_url=receiver.url,
            error_webhook_url=receiver.url,
        )
        task = api.run(workflow_id, "loop")
        shown = api.get(workflow_id)
        assert task["status"] == shown["last_task_status"] == "max_turns_reached"
        assert shown["current_turn"] == 2
        assert task["tool_calls"] == 2
        frames = api.run_frames(workflow_id)
        assert frames[-1].data == {"status": "max_turns_reached", "current_turn": 2}
        assert frames[-2].log == "max_turns_reached"
        after = api.run(workflow_id, "plain")
        [told] = receiver.wait_for(1)
        assert after["id"] in told.body.decode()


def test_deleting_a_workflow_halts_its_task(
    api: Api, client: httpx.Client, model_server: ModelServer
) -> None:
    """Scenario 16."""
    model_server.play(HELD)
    workflow_id = api.workflow()
    task_id = api.prompt(workflow_id, "hold on")["task_id"]
    model_server.journal.until_hanging("gate")
    with api.stream(workflow_id) as frames:
        next(frames)
        assert client.delete(f"/api/workflows/{workflow_id}").status_code == 204
        *_, last = frames  # the deletion closes the stream
    assert (last.type, last.data["status"]) == ("status", "halted")
    for tail in ("", "/stream", "/export"):
        assert client.get(f"/api/workflows/{workflow_id}{tail}").status_code == 404
    assert client.get(f"/api/tasks/{task_id}").status_code == 404
    model_server.release("gate")
    ended = poll(client, f"/api/audit/executions/{task_id}", is_cancelled)
    assert ended["status"] == "cancelled"


@pytest.mark.parametrize(
    ("rules", "prompt", "reason"),
    [
        ({"max_length": 5}, "too long by far", "prompt is too long (15 chars, maximum 5)."),
        ({"min_length": 5}, "x", "prompt is too short (1 chars, minimum 5)."),
        ({"forbidden_patterns": ["pass\\w+"]}, "my PASSWORD", "prompt matches forbidden pattern 'pass\\w+'."),
        ({"required_patterns": ["please"]}, "do it", "prompt does not match required pattern 'please'."),
    ],
)
def test_a_prompt_that_breaks_a_guardrail_starts_nothing(
    api: Api, model_server: ModelServer, rules: dict[str, object], prompt: str, reason: str
) -> None:
    """Scenario 18."""
    workflow_id = api.workflow(guardrail_ids=[api.guardrail("prompt", name="Manners", **rules)])
    refused = api.call("POST", f"/api/workflows/{workflow_id}/prompt", 422, json={"prompt": prompt})
    assert refused == {"detail": f"Guardrail 'Manners': {reason}"}
    assert api.get(workflow_id)["task_count"] == 0
    assert model_server.journal.exchanges == []


def test_a_request_that_breaks_a_guardrail_starts_nothing(api: Api) -> None:
    """Scenario 18, by tag; a missing input is 400."""
    schema = {"type": "object", "properties": {"days": {"type": "integer"}}}
    tag = "workflows-request"
    api.guardrail("request", (tag,), name="Order", json_schema=schema, required_fields=["city"])
    workflow_id = api.workflow(guardrail_tags=[tag])
    path = f"/api/workflows/{workflow_id}/prompt"
    missing = api.call("POST", path, 400, json={"prompt": "x"})
    assert missing["detail"].startswith("Guardrail 'Order': ")
    api.call("POST", path, 400, json={"request": {"days": 1}})
    wrong = api.call("POST", path, 422, json={"request": {"city": "Umeå", "days": "two"}})
    assert wrong["detail"].startswith("Guardrail 'Order': request validation failed at days")
    assert api.get(workflow_id)["task_count"] == 0


def test_a_change_during_a_run_counts_from_the_next_prompt(api: Api, model_server: ModelServer) -> None:
    """Section 3.4."""
    model_server.play(HELD, ECHO)
    workflow_id = api.workflow(model="first-model")
    task_id = api.prompt(workflow_id, "hold on")["task_id"]
    model_server.journal.until_hanging("gate")
    changed = api.call("PUT", f"/api/workflows/{workflow_id}", 200, json={"model": "second-model"})
    assert (changed["status"], changed["model"]) == ("running", "second-model")
    model_server.release("gate")
    api.ended(task_id)
    api.run(workflow_id, "next")
    assert [each.model for each in model_server.journal.exchanges] == ["first-model", "second-model"]
