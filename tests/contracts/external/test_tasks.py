"""External contract, acceptance scenarios 2, 3, 9, 14, 15, 16 and 17: tasks and their runs."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contracts.external.wire import PREFIX, UNKNOWN, Api, Event, names, refusal
from tests.contracts.live_server import LiveServer
from tests.model_server import ModelServer
from tests.sandbox import REPOSITORY

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]

TOOLS_SERVER = REPOSITORY / "tests" / "mcp_servers" / "tools_server.py"


def add_server(client: httpx.Client, name: str, **fields: object) -> None:
    command = [sys.executable, str(Path(TOOLS_SERVER)), "stdio"]
    body = {"name": name, "transport": "stdio", "command": command, "description": "For tests", **fields}
    added = client.post("/api/admin/mcp-servers", json=body)
    assert added.status_code in (201, 409), added.text


def test_a_task_without_a_plan_is_not_executed(api: Api) -> None:
    """Scenario 2, both ways."""
    task_id = api.task("not yet")
    refusal(api.post(f"/tasks/{task_id}/execute"), 400, "TASK_NOT_ANALYZED")
    refusal(api.post(f"/tasks/{task_id}/execute/stream", {}), 400, "TASK_NOT_ANALYZED")
    assert api.history(task_id) == []
    assert api.shown(task_id)["status"] == "pending"
    api.data(api.post(f"/tasks/{task_id}/analyze"))
    done = api.data(api.post(f"/tasks/{task_id}/execute", {}))
    task = api.shown(task_id)
    assert (task["status"], task["result"]) == ("completed", done["result"])
    assert task["completedAt"] is not None


def test_a_plan_is_numbered_and_names_its_mcps(api: Api) -> None:
    """Section 5.3."""
    task_id = api.task("[plan:two] think twice")
    first = api.data(api.post(f"/tasks/{task_id}/analyze", content=b"ignored"))
    workflow = first["task"]["mcpWorkflow"]
    assert [step["step"] for step in workflow["workflow"]] == [1, 2]
    assert {step["mcp"] for step in workflow["workflow"]} <= {mcp["name"] for mcp in workflow["mcps"]}
    assert [mcp["name"] for mcp in first["recommendedMCPs"]] == ["assistant"]
    assert set(first["recommendedMCPs"][0]) == {
        "name",
        "description",
        "category",
        "authRequired",
        "authVerified",
        "authParams",
    }
    assert api.data(api.post(f"/tasks/{task_id}/analyze"))["task"]["mcpWorkflow"] == workflow


def test_a_plan_that_cannot_run_goes_back_to_the_model_once(api: Api, models: ModelServer) -> None:
    """Section 5.3: what is wrong is told to the model; a second fault is an error, and no plan is stored."""
    task_id = api.planned("[plan:corrected] x")
    assert api.shown(task_id)["mcpWorkflow"]["workflow"][0]["mcp"] == "assistant"
    asked = [each for each in models.journal.exchanges if "What is wrong with it" in str(each.body)]
    assert "step 4 has no result yet" in str(asked[0].body)
    hopeless = api.task("[plan:impossible] x")
    body = refusal(api.post(f"/tasks/{hopeless}/analyze"), 500, "EXECUTION_FAILED")
    assert "step 9 has no result yet" in body["details"][0]["message"]
    assert api.shown(hopeless)["mcpWorkflow"] is None


def test_an_mcp_servers_tool_is_a_step(api: Api, client: httpx.Client) -> None:
    """Section 5.3: a registered server, run as a real process."""
    add_server(client, "tools", allow=["add"])
    task_id = api.planned("[plan:tools] add them")
    done = api.data(api.post(f"/tasks/{task_id}/execute"))
    [step] = api.history(task_id)
    assert (step["mcp"], step["action"], step["success"]) == ("tools", "add", True)
    assert "5" in str(step["result"])
    assert "5" in done["result"]["output"]


def test_a_plan_with_an_mcp_that_lacks_its_secret_is_refused_by_name(api: Api, client: httpx.Client) -> None:
    """Scenario 3; once the secret is set, it runs, and the secret's value shows nowhere."""
    add_server(client, "locked", env={"API_TOKEN": "{secret:external-locked}"})
    task_id = api.task("[plan:locked] open it")
    analyzed = api.data(api.post(f"/tasks/{task_id}/analyze"))
    [mcp] = analyzed["recommendedMCPs"]
    assert (mcp["name"], mcp["authRequired"], mcp["authVerified"]) == ("locked", True, False)
    assert mcp["authParams"] == ["external-locked"]
    for tail in ("/execute", "/execute/stream"):
        body = refusal(api.post(f"/tasks/{task_id}{tail}", {}), 400, "MCP_AUTH_REQUIRED")
        assert body["details"] == [{"mcp": "locked"}]
    assert api.history(task_id) == []
    set_ = client.put("/api/admin/secrets/external-locked", json={"value": "value-of-the-token"})
    assert set_.status_code in (200, 201), set_.text
    assert api.data(api.post(f"/tasks/{task_id}/execute"))["status"] == "completed"
    assert "value-of-the-token" not in str(api.history(task_id))


def test_of_two_parallel_executions_one_runs(api: Api, server: LiveServer, models: ModelServer) -> None:
    """Scenario 14; analysis is refused meanwhile too."""
    task_id = api.planned("x [hang:external-two] y")

    def execute(_: int) -> httpx.Response:
        with server.client() as own:
            answer = own.post(f"{PREFIX}/tasks/{task_id}/execute")
            if answer.status_code == 409:
                refusal(Api(own).post(f"/tasks/{task_id}/analyze"), 409, "TASK_ALREADY_RUNNING")
                models.release("external-two")
            return answer

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(execute, range(2)))
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    refused = next(answer for answer in answers if answer.status_code == 409)
    refusal(refused, 409, "TASK_ALREADY_RUNNING")
    assert len({step["executionId"] for step in api.history(task_id)}) == 1


def test_a_task_stream_tells_each_step_and_its_progress(api: Api) -> None:
    """Scenario 15."""
    task_id = api.planned("[plan:flows] loud")
    events = api.events(f"/tasks/{task_id}/execute/stream")
    assert names(events)[0] == "connection_established"
    assert events[0].data["taskId"] == task_id
    assert events[0].data["status"] == "connected"
    assert names(events)[-2:] == ["final_result", "completed"]
    assert events[-1].data == {
        "taskId": task_id,
        "success": True,
        "message": "Task executed successfully",
    }
    progress = [event.data for event in events if event.name == "task_progress"]
    assert [each["progress"] for each in progress] == sorted(each["progress"] for each in progress)
    assert progress[-1]["progress"] == 100
    assert {each["totalSteps"] for each in progress} == {3}  # two steps, and the words of the result
    starts = [event.data for event in events if event.name == "step_start"]
    assert [(each["step"], each["mcpName"], each["actionName"]) for each in starts] == [
        (1, "flows", "external-shout"),
        (2, "flows", "external-shout"),
    ]
    ends = [event.data for event in events if event.name == "step_complete"]
    assert [(each["step"], each["success"]) for each in ends] == [(1, True), (2, True)]
    assert ends[1]["result"].startswith("AGAIN [PLAN:FLOWS] LOUD")
    chunks = "".join(event.data["chunk"] for event in events if event.name == "final_result_chunk")
    assert chunks == events[-2].data["finalResult"]
    assert api.shown(task_id)["result"] == {"output": chunks}
    assert [event.id for event in events] == sorted({event.id for event in events})
    history = api.history(task_id)
    assert [(step["step"], step["success"]) for step in history] == [(1, True), (2, True)]
    assert {step["executionId"] for step in history} == {events[0].data["executionId"]}


def test_a_second_run_is_appended_to_the_history(api: Api) -> None:
    """Section 5.4."""
    task_id = api.planned("[plan:two] again")
    for _ in range(2):
        api.data(api.post(f"/tasks/{task_id}/execute", {"timeoutSeconds": 60}))
    assert [step["step"] for step in api.history(task_id)] == [1, 2, 1, 2]
    assert api.data(api.get("/tasks", params={"status": "completed"}))["pagination"]["total"] >= 1
    for wrong in (0, -1, 3_601, "soon", True):
        refusal(api.post(f"/tasks/{task_id}/execute", {"timeoutSeconds": wrong}), 400, "INVALID_REQUEST")


def test_a_failing_step_fails_the_run_in_every_view(api: Api) -> None:
    """Scenario 16."""
    task_id = api.planned("[plan:broken] x")
    events = api.events(f"/tasks/{task_id}/execute/stream")
    assert names(events)[-1] == "error"
    assert "completed" not in names(events)
    assert events[-1].data["code"] == "EXECUTION_FAILED"
    assert [event.data["step"] for event in events if event.name == "step_error"] == [2]
    body = refusal(api.post(f"/tasks/{task_id}/execute"), 500, "EXECUTION_FAILED")
    assert (body["details"][0]["taskId"], body["details"][0]["step"]) == (task_id, 2)
    assert api.shown(task_id)["status"] == "failed"
    assert [step["success"] for step in api.history(task_id)] == [True, False, True, False]


def test_a_cancel_ends_the_stream_and_shows_at_once(api: Api) -> None:
    """Scenario 9."""
    task_id = api.planned("[plan:rest] x")
    with api.stream(f"/tasks/{task_id}/execute/stream") as events:
        first = next(events)
        shown = first.data["executionId"]
        assert shown.startswith("external-task-")
        while next(events).name != "step_start":
            pass
        cancelled = api.data(api.post(f"/tasks/{task_id}/cancel/{shown}"))
        assert cancelled == {"taskId": task_id, "executionId": shown, "cancelled": True}
        assert api.shown(task_id)["status"] == "cancelled"
        rest = list(events)
    assert names(rest)[-1] == "cancelled"
    assert rest[-1].data == {"taskId": task_id, "executionId": shown}
    assert api.data(api.post(f"/tasks/{task_id}/cancel/{shown}"))["cancelled"] is True
    assert [step["error"] for step in api.history(task_id)] == ["cancelled"]


def test_a_completed_run_is_not_cancelled(api: Api) -> None:
    """Scenario 9: after the end."""
    task_id = api.planned("x")
    events = api.events(f"/tasks/{task_id}/execute/stream")
    shown = events[0].data["executionId"]
    assert api.data(api.post(f"/tasks/{task_id}/cancel/{shown}")) == {
        "taskId": task_id,
        "executionId": shown,
        "cancelled": False,
        "status": "completed",
    }


def test_runs_of_others_cannot_be_cancelled(api: Api, their_api: Api) -> None:
    """Scenario 10, for tasks: one identical 404."""
    task_id, other = api.planned("x"), api.planned("y")
    shown = api.events(f"/tasks/{task_id}/execute/stream")[0].data["executionId"]
    theirs = their_api.planned("z")
    answers = [
        api.post(f"/tasks/{other}/cancel/{shown}"),
        api.post(f"/tasks/{task_id}/cancel/external-task-{UNKNOWN}"),
        api.post(f"/tasks/{task_id}/cancel/nonsense"),
        their_api.post(f"/tasks/{theirs}/cancel/{shown}"),
    ]
    assert len({answer.content for answer in answers}) == 1
    refusal(answers[0], 404, "NOT_FOUND")


def test_a_dropped_stream_is_taken_up_by_its_key(api: Api, models: ModelServer) -> None:
    """Scenario 17: the run goes on, the rest comes, nothing is started twice."""
    task_id = api.planned("[plan:two] x")
    headers = {"idempotency-key": "external-stream-1"}
    path = f"/tasks/{task_id}/execute/stream"
    seen: list[Event] = []
    with api.stream(path, headers=headers) as events:
        for event in events:
            seen.append(event)
            if event.name == "step_complete":
                break
    api.wait_for(task_id, "completed")
    resumed = api.events(path, headers={**headers, "last-event-id": str(seen[-1].id)})
    whole = api.events(path, headers=headers)
    assert whole[: len(seen)] == seen
    # Pieces of text are cut as they come; joined they are the same.
    assert told(seen + resumed) == told(whole)
    assert resumed[0].id > seen[-1].id
    assert len({step["executionId"] for step in api.history(task_id)}) == 1


def told(events: list[Event]) -> list[tuple[str, Any]]:
    """The events with neighbouring pieces of text joined, and without ids."""
    joined: list[tuple[str, Any]] = []
    for event in events:
        if event.name == "final_result_chunk" and joined and joined[-1][0] == event.name:
            joined[-1] = (event.name, joined[-1][1] + event.data["chunk"])
        elif event.name == "final_result_chunk":
            joined.append((event.name, event.data["chunk"]))
        else:
            joined.append((event.name, event.data))
    return joined


def test_text_is_taken_up_in_its_middle(api: Api, models: ModelServer) -> None:
    """Scenario 17, within an answer: no character twice, none missing."""
    task_id = api.planned("x [midway:external-midway] [say:one two three four five six]")
    headers = {"idempotency-key": "external-stream-2"}
    path = f"/tasks/{task_id}/execute/stream"
    seen: list[Event] = []
    with api.stream(path, headers=headers) as events:
        for event in events:
            seen.append(event)
            if event.name == "final_result_chunk":
                break
    assert api.shown(task_id)["status"] == "running"
    with api.stream(path, headers={**headers, "last-event-id": str(seen[-1].id)}) as events:
        models.release("external-midway")
        rest = list(events)
    pieces = [event.data["chunk"] for event in seen + rest if event.name == "final_result_chunk"]
    assert len(pieces) > 1
    assert "".join(pieces) == "one two three four five six" == rest[-2].data["finalResult"]
    assert rest[0].id > seen[-1].id


def test_a_waiting_caller_is_told_of_the_cancel(api: Api, server: LiveServer, models: ModelServer) -> None:
    """Section 4.2: EXECUTION_CANCELLED; the history shows the step under way before."""
    task_id = api.planned("x [hang:external-waiting]")
    with ThreadPoolExecutor(1) as pool, server.client() as other:
        waiting = pool.submit(Api(other).post, f"/tasks/{task_id}/execute")
        models.journal.until_hanging("external-waiting")
        [step] = api.history(task_id)
        assert (step["success"], step["executedAt"]) == (None, None)
        assert api.data(api.post(f"/tasks/{task_id}/cancel/{step['executionId']}"))["cancelled"] is True
        refusal(waiting.result(timeout=30), 409, "EXECUTION_CANCELLED")
    # What is over in every view doesn't hold up the next run.
    models.release("external-waiting")
    api.data(api.post(f"/tasks/{task_id}/execute"))


def test_a_refused_execution_leaves_the_task_as_it_was(api: Api, server: LiveServer) -> None:
    """Rule G5: unfinished executions of a tenant are bounded; the task is free at once."""
    task_id = api.planned("x")
    with server.client(server.make_key("run", unfinished_executions_max=0)) as limited:
        refused = Api(limited).post(f"/tasks/{task_id}/execute")
        refusal(refused, 429, "RATE_LIMIT_EXCEEDED")
        assert int(refused.headers["retry-after"]) >= 1
    assert api.shown(task_id)["status"] == "pending"
    api.data(api.post(f"/tasks/{task_id}/execute"))


def test_a_stream_is_plain_json_lines_and_ends_with_done_only_when_asked(api: Api) -> None:
    """Scenario 18."""
    task_id = api.planned("x")
    for query, last in (("", "data: {"), ("?done=true", "data: [DONE]")):
        url = f"{PREFIX}/tasks/{task_id}/execute/stream{query}"
        with api.client.stream("POST", url, json={}) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            lines = [line for line in response.iter_lines() if line]
        assert not [line for line in lines if line.startswith("event:")]
        data = [line for line in lines if line.startswith("data: ")]
        assert data[-1].startswith(last)
        assert ("data: [DONE]" in lines) is bool(query)
