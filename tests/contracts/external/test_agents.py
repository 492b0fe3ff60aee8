"""External contract, acceptance scenarios 7, 8, 10 and 13: agents and their executions."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any

import pytest

from gateway.agent_documents import AGENT
from gateway.registry import Registry
from projections.store import ReadStore
from runtime.administration import Cause
from runtime.event_log import EventLog, store_env
from runtime.ids import Micros
from tests.contracts.external.wire import UNKNOWN, Api, names, refusal
from tests.contracts.live_server import LiveServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]


def test_an_agent_is_made_of_a_finished_task_only(api: Api) -> None:
    """Scenario 13."""
    task_id = api.planned("[plan:two] Market report")
    body = {
        "taskId": task_id,
        "name": "Market Report Assistant",
        "description": "An agent that generates market analysis reports automatically.",
    }
    refusal(api.post("/agents", body), 400, "TASK_NOT_COMPLETED")
    api.data(api.post(f"/tasks/{task_id}/execute"))
    agent = api.data(api.post("/agents", body), 201)["agent"]
    assert (agent["name"], agent["status"], agent["taskId"]) == (body["name"], "private", task_id)
    assert agent["mcpWorkflow"] == api.shown(task_id)["mcpWorkflow"]
    refusal(api.post("/agents", body), 409, "AGENT_NAME_EXISTS")
    listed = api.data(api.get("/agents", params={"limit": "100"}))["agents"]
    assert agent["id"] in [each["id"] for each in listed]
    assert all("mcpWorkflow" not in each for each in listed)
    done = api.data(api.post(f"/agents/{agent['id']}/execute", {"input": "Do it again"}))
    assert done["executionId"].startswith("external-agent-exec-")
    assert done["status"] == "completed"
    task = api.shown(done["taskId"])
    assert (task["title"], task["taskType"]) == ("Agent execution: Do it again", "agent")
    assert (task["result"], task["agentId"]) == (done["result"], agent["id"])
    assert api.data(api.get(f"/agents/{agent['id']}"))["agent"]["usageCount"] == 1


def test_an_agent_keeps_its_plan_whatever_becomes_of_the_task(api: Api) -> None:
    """Section 4.6."""
    agent_id = api.agent("Keeps its plan", "[plan:two] x")
    agent = api.data(api.get(f"/agents/{agent_id}"))["agent"]
    api.data(api.post(f"/tasks/{agent['taskId']}/analyze"))
    assert api.data(api.get(f"/agents/{agent_id}"))["agent"] == agent


def test_a_failed_task_makes_an_agent_too(api: Api) -> None:
    """Section 4.6."""
    task_id = api.planned("[plan:broken] x")
    refusal(api.post(f"/tasks/{task_id}/execute"), 500, "EXECUTION_FAILED")
    body = {"taskId": task_id, "name": "Of a failed one", "description": "d"}
    agent_id = api.data(api.post("/agents", body), 201)["agent"]["id"]
    failed = refusal(api.post(f"/agents/{agent_id}/execute", {"input": "x"}), 500, "EXECUTION_FAILED")
    [detail] = failed["details"]
    assert (detail["step"], api.shown(detail["taskId"])["status"]) == (2, "failed")
    assert detail["executionId"].startswith("external-agent-exec-")


def test_broken_rules_of_an_agent_are_listed(api: Api, their_api: Api) -> None:
    """Section 4.6."""
    task_id = api.task("x")
    body = refusal(api.post("/agents", {"taskId": task_id}), 400, "INVALID_REQUEST")
    assert {detail["field"] for detail in body["details"]} == {"name", "description"}
    for wrong in ({"name": "x" * 51}, {"name": "a\nb"}, {"description": "x" * 281}, {"description": " "}):
        given = {"taskId": task_id, "name": "fine", "description": "fine", **wrong}
        refusal(api.post("/agents", given), 400, "INVALID_REQUEST")
    given = {"taskId": task_id, "name": "fine", "description": "fine"}
    foreign, unknown = their_api.post("/agents", given), api.post("/agents", {**given, "taskId": UNKNOWN})
    refusal(foreign, 404, "NOT_FOUND")
    assert foreign.content == unknown.content


def test_categories_filter_in_any_case(api: Api, server: LiveServer) -> None:
    """Section 4.1."""
    make_agent(server, "default", name="Of a category", categories=["Market Research", "Finance"])
    for category, found in (("market research", 1), ("FINANCE", 1), ("market", 0), ("nothing", 0)):
        listed = api.data(api.get("/agents", params={"category": category}))
        assert (len(listed["agents"]), listed["pagination"]["total"]) == (found, found)


def test_public_agents_are_seen_and_executed_by_all(api: Api, their_api: Api, server: LiveServer) -> None:
    """Section 2: the execution is the caller's own."""
    plan = {
        "mcps": [{"name": "assistant"}],
        "workflow": [{"step": 1, "mcp": "assistant", "action": "answer", "input": {"instruction": "Go."}}],
    }
    agent_id = make_agent(server, "default", name="Public one", status="public", plan=plan)
    private_id = make_agent(server, "default", name="Private one")
    seen = [agent["id"] for agent in their_api.data(their_api.get("/agents"))["agents"]]
    assert agent_id in seen
    assert private_id not in seen
    done = their_api.data(their_api.post(f"/agents/{agent_id}/execute", {"input": "theirs"}))
    assert their_api.shown(done["taskId"])["status"] == "completed"
    refusal(api.get(f"/tasks/{done['taskId']}"), 404, "NOT_FOUND")
    hidden, unknown = their_api.get(f"/agents/{private_id}"), their_api.get(f"/agents/{UNKNOWN}")
    refusal(hidden, 404, "NOT_FOUND")
    assert hidden.content == unknown.content


def test_parameters_reach_the_flow_as_named_inputs(api: Api, server: LiveServer) -> None:
    """Section 4.2."""
    given = {"text": "${inputs.lang} ${inputs.parameters.format} ${inputs.input}"}
    plan = {
        "mcps": [{"name": "flows"}],
        "workflow": [{"step": 1, "mcp": "flows", "action": "external-shout", "input": given}],
    }
    agent_id = make_agent(server, "default", name="Reads parameters", plan=plan)
    body = {"input": "now", "parameters": {"lang": "en", "format": "pdf", "input": "never this"}}
    done = api.data(api.post(f"/agents/{agent_id}/execute", body))
    assert [step["result"] for step in api.history(done["taskId"])] == ["EN PDF NOW"]


def make_agent(server: LiveServer, tenant: str, **document: Any) -> str:
    """An agent with fields that no path of a contract sets."""

    async def make(registry: Registry) -> str:
        cause = Cause(at=Micros(time.time_ns() // 1000))
        return (await registry.create(tenant, AGENT, document, cause)).resource_id

    log = EventLog.open(store_env(f"sqlite:///{server.folder / 'heliograph.db'}"))
    try:
        return asyncio.run(make(Registry(log, ReadStore.over(log))))
    finally:
        log.close()


def test_an_agent_without_a_plan_answers_by_itself(api: Api) -> None:
    """Section 4.2: parameters stand in the prompt; the stream tells the answer as its one step."""
    agent_id = api.plain_agent("Plain answerer")
    body = {"input": "Say it", "parameters": {"lang": "en"}}
    done = api.data(api.post(f"/agents/{agent_id}/execute", body))
    assert "Say it" in done["result"]["output"]
    assert '{"lang":"en"}' in done["result"]["output"]
    events = api.events(f"/agents/{agent_id}/execute/stream", body)
    assert [e.data["mcpName"] for e in events if e.name == "step_start"] == ["assistant"]
    chunks = "".join(event.data["chunk"] for event in events if event.name == "final_result_chunk")
    assert chunks == done["result"]["output"]
    assert [step["action"] for step in api.history(done["taskId"])] == ["answer"]


def test_an_agents_tool_calls_are_steps_and_its_words_before_them_no_result(
    api: Api, server: LiveServer
) -> None:
    """Sections 4.3 and 5.7."""
    tools = [{"kind": "flow", "flow_id": "external-shout"}]
    agent_id = make_agent(server, "default", name="Calls a flow", tools=tools)
    given = {"input": "x [call] [say:It said HI.]"}
    headers = {"idempotency-key": "external-agent-tools"}
    path = f"/agents/{agent_id}/execute/stream"
    events = api.events(path, given, headers)
    steps = [(event.name, event.data["step"]) for event in events if event.name.startswith("step_")]
    assert steps == [("step_start", 1), ("step_start", 2), ("step_complete", 2), ("step_complete", 1)]
    [tool] = [event for event in events if event.name == "step_complete" and event.data["step"] == 2]
    assert "HI" in str(tool.data["result"])
    chunks = "".join(event.data["chunk"] for event in events if event.name == "final_result_chunk")
    assert chunks == "It said HI." == events[-1].data["result"]["output"]
    for place in range(len(events)):
        resumed = api.events(path, given, {**headers, "last-event-id": str(events[place].id)})
        assert resumed == events[place + 1 :]
    history = api.history(events[1].data["taskId"])
    assert [(step["step"], step["mcp"], step["success"]) for step in history] == [
        (1, "assistant", True),
        (2, "tools", True),
    ]


def test_an_execution_past_its_time_is_408_and_failed(api: Api) -> None:
    """Scenario 7."""
    agent_id = api.agent("Takes its time")
    given = {"input": "x [hang:external-late]", "timeout": 1}
    body = refusal(api.post(f"/agents/{agent_id}/execute", given), 408, "REQUEST_TIMEOUT")
    task = api.shown(body["details"][0]["taskId"])
    assert task["status"] == "failed"
    took = datetime.fromisoformat(task["completedAt"]) - datetime.fromisoformat(task["createdAt"])
    assert took.total_seconds() < 3  # by the log's own clock, whatever else this machine does
    events = api.events(f"/agents/{agent_id}/execute/stream", given)
    assert (events[-1].name, events[-1].data["code"]) == ("error", "REQUEST_TIMEOUT")


def test_bodies_of_an_execution_keep_their_rules(api: Api) -> None:
    """Section 4.2 and scenario 7: more than 300 s is refused, not cut."""
    agent_id = api.agent("Refuses much")
    for wrong, field in (
        ({"input": "x", "timeout": 301}, "timeout"),
        ({"input": "x", "timeout": 0}, "timeout"),
        ({"input": " "}, "input"),
        ({}, "input"),
        ({"input": "x" * 32_769}, "input"),
        ({"input": "x", "parameters": [1]}, "parameters"),
    ):
        for tail in ("execute", "execute/stream"):
            body = refusal(api.post(f"/agents/{agent_id}/{tail}", wrong), 400, "INVALID_REQUEST")
            assert [detail["field"] for detail in body["details"]] == [field]
    refusal(api.post(f"/agents/{UNKNOWN}/execute", {"input": "x"}), 404, "NOT_FOUND")


def test_a_streamed_execution_tells_its_events_in_order(api: Api) -> None:
    """Scenario 8."""
    agent_id = api.agent("Streams", "[plan:flows] x")
    events = api.events(f"/agents/{agent_id}/execute/stream", {"input": "hello", "parameters": {"a": 1}})
    assert names(events)[:2] == ["connection_established", "task_created"]
    opening, created, end = events[0].data, events[1].data, events[-1].data
    assert (opening["agentId"], opening["agentName"], opening["input"], opening["status"]) == (
        agent_id,
        "Streams",
        "hello",
        "connected",
    )
    assert created["title"] == "Agent execution: hello"
    assert events[-1].name == "execution_complete"
    assert (end["taskId"], end["agentId"], end["success"], end["status"]) == (
        created["taskId"],
        agent_id,
        True,
        "completed",
    )
    assert type(end["executionTime"]) is int
    assert end["result"] == api.shown(created["taskId"])["result"]
    assert "task_progress" not in names(events)
    chunks = "".join(event.data["chunk"] for event in events if event.name == "final_result_chunk")
    assert {"output": chunks} == end["result"]


def test_a_streamed_execution_is_cancelled(api: Api, their_api: Api) -> None:
    """Scenarios 9 and 10, for agents."""
    agent_id, other = api.agent("Rests"), api.agent("Another")
    with api.stream(f"/agents/{agent_id}/execute/stream", {"input": "x [hang:external-rest]"}) as events:
        shown, task_id = next(events).data["executionId"], next(events).data["taskId"]
        answers = [
            api.post(f"/agents/{other}/cancel/{shown}"),
            api.post(f"/agents/{agent_id}/cancel/external-agent-exec-{UNKNOWN}"),
            api.post(f"/agents/{agent_id}/cancel/x"),
        ]
        assert len({answer.content for answer in answers}) == 1
        refusal(answers[0], 404, "NOT_FOUND")
        refusal(their_api.post(f"/agents/{agent_id}/cancel/{shown}"), 404, "NOT_FOUND")
        cancelled = api.data(api.post(f"/agents/{agent_id}/cancel/{shown}"))
        assert cancelled == {"executionId": shown, "cancelled": True}
        last = list(events)[-1]
    assert (last.name, last.data["status"], last.data["taskId"]) == ("cancelled", "cancelled", task_id)
    assert api.shown(task_id)["status"] == "cancelled"
    assert api.data(api.post(f"/agents/{agent_id}/cancel/{shown}"))["cancelled"] is True


def test_a_repeated_execution_starts_once(api: Api) -> None:
    """Rule G6, for both ways."""
    agent_id = api.agent("Once")
    headers = {"idempotency-key": "external-agent-1"}
    path = f"/agents/{agent_id}/execute"
    first = api.post(path, {"input": "x"}, headers=headers)
    again = api.post(path, {"input": "x"}, headers=headers)
    assert (again.status_code, again.content) == (first.status_code, first.content)
    refusal(api.post(path, {"input": "y"}, headers=headers), 422, "IDEMPOTENCY_KEY_REUSED")
    events = api.events(f"{path}/stream", {"input": "x"}, headers=headers)
    resumed = api.events(
        f"{path}/stream", {"input": "x"}, headers={**headers, "last-event-id": str(events[1].id)}
    )
    assert names(resumed)[-1] == "execution_complete"
    assert resumed[-1] == events[-1]
    assert "connection_established" not in names(resumed)
    assert api.data(api.get(f"/agents/{agent_id}"))["agent"]["usageCount"] == 2


def test_open_streams_of_a_key_are_bounded(server: LiveServer, api: Api) -> None:
    """Rule G5: an ordinary answer, and no run."""
    task_id = api.planned("x")
    with server.client(server.make_key("run", "read", open_streams_max=0)) as limited:
        answer = Api(limited).post(f"/tasks/{task_id}/execute/stream", {})
        refusal(answer, 429, "RATE_LIMIT_EXCEEDED")
    assert api.history(task_id) == []
