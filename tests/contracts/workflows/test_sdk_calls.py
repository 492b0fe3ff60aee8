"""Workflows contract, acceptance scenario 20: the HTTP calls of the public Python client.

The client (naaico-tech/tbd-agents-sdk, package `tbd_agents`) is in no package index, so it can't be a
dependency of this suite. Its source was read; `SdkCalls` makes the same requests with the same library
(httpx): paths, methods, headers, bodies with their nulls left out, the same polling, the same reading of the
stream line by line, and checks the fields its models require. Nothing of its code is here.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from datetime import datetime
from typing import Any

import httpx
import msgspec
import pytest

from tests.contracts.live_server import LiveServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray, pytest.mark.usefixtures("model_server")]

WAIT_SECONDS = 30.0
INTERVAL_SECONDS = 0.05
ENDS = {"completed", "failed", "halted", "max_turns_reached"}

WORKFLOW_DEFAULTS: dict[str, Any] = {
    "output_format": "json",
    "skill_ids": [],
    "skill_tags": [],
    "infinite_session": True,
    "caveman": False,
    "bypass_memory": False,
    "auto_memory": False,
    "tsv_tool_results": False,
    "guardrail_ids": [],
    "guardrail_tags": [],
    "repository_ids": [],
    "repository_tags": [],
}
"""What the client's create model sends beside what its user gave."""


class SdkCalls:
    """The client's requests; each answer is checked for what the client's models can't do without."""

    def __init__(self, url: str, token: str) -> None:
        self.base = f"{url}/api"
        self.root = url
        self.http = httpx.Client(
            timeout=30.0,
            headers={
                "Accept": "application/json",
                "User-Agent": "tbd-agents-python/0.1.0",
                "Authorization": f"Bearer {token}",
            },
        )

    def request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        # Its GET names no body; its POST without a payload sends none either.
        options: dict[str, Any] = {} if method in ("GET", "DELETE") else {"json": body}
        answer = self.http.request(method, f"{self.base}{path}", **options)
        assert answer.status_code < 400, answer.text
        if answer.status_code == 204 or not answer.content:
            return None
        assert "application/json" in answer.headers["content-type"]
        return answer.json()

    # --- what its models require --------------------------------------------------------------------

    @staticmethod
    def _workflow(data: Any) -> dict[str, Any]:
        for name in ("id", "agent_id", "github_user", "model", "status", "output_format"):
            assert isinstance(data[name], str), name
        for name in ("max_turns", "current_turn", "task_count"):
            assert isinstance(data[name], int), name
        for name in ("created_at", "updated_at"):
            assert datetime.fromisoformat(data[name]).tzinfo is not None
        for log in data["logs"]:
            datetime.fromisoformat(log["timestamp"])
            assert isinstance(log["event"], str)
            assert isinstance(log["detail"], str)
        for message in data["messages"]:
            assert isinstance(message["role"], str)
            assert message["content"] is None or isinstance(message["content"], str)
        return data

    @staticmethod
    def _task(data: Any) -> dict[str, Any]:
        for name in ("id", "workflow_id", "prompt", "status"):
            assert isinstance(data[name], str), name
        datetime.fromisoformat(data["created_at"])
        assert isinstance(data["tool_calls"], int)
        return data

    # --- its methods --------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        return self.http.get(f"{self.root}/health").json()

    def create(self, **fields: Any) -> dict[str, Any]:
        return self._workflow(self.request("POST", "/workflows", {**WORKFLOW_DEFAULTS, **fields}))

    def list(self) -> list[dict[str, Any]]:
        return [self._workflow(each) for each in self.request("GET", "/workflows")]

    def list_tasks(self, workflow_id: str) -> list[dict[str, Any]]:
        return [self._task(each) for each in self.request("GET", f"/tasks/workflow/{workflow_id}")]

    def run_prompt(self, workflow_id: str, prompt: str) -> dict[str, Any]:
        """Known tasks, prompt, then the list until a new task is in it, then that task until its end."""
        known = {task["id"] for task in self.list_tasks(workflow_id)}
        accepted = self.request("POST", f"/workflows/{workflow_id}/prompt", {"prompt": prompt})
        assert accepted["workflow_id"] == workflow_id
        assert isinstance(accepted["max_turns"], int)
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            for task in self.list_tasks(workflow_id):
                if task["id"] not in known:
                    return self.wait_for_task(task["id"], deadline)
            time.sleep(INTERVAL_SECONDS)
        raise TimeoutError(workflow_id)

    def wait_for_task(self, task_id: str, deadline: float) -> dict[str, Any]:
        while time.monotonic() < deadline:
            task = self._task(self.request("GET", f"/tasks/{task_id}"))
            if task["status"] in ENDS:
                return task
            time.sleep(INTERVAL_SECONDS)
        raise TimeoutError(task_id)

    def stream(self, workflow_id: str, last_event_id: int | None = None) -> Generator[dict[str, Any]]:
        """Frames by its own reading of lines; comments and `retry` count for nothing."""
        headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
        with self.http.stream(
            "GET", f"{self.base}/workflows/{workflow_id}/stream", headers=headers
        ) as answer:
            assert answer.status_code == 200
            data: list[str] = []
            for line in answer.iter_lines():
                if line:
                    field, _, value = line.partition(":")
                    if field == "data":
                        data.append(value.removeprefix(" "))
                elif data:
                    yield msgspec.json.decode("\n".join(data))
                    data = []


@pytest.fixture
def sdk(server: LiveServer) -> Iterator[SdkCalls]:
    calls = SdkCalls(server.url, server.first_key)
    try:
        yield calls
    finally:
        calls.http.close()


def agent(sdk: SdkCalls) -> str:
    body: dict[str, Any] = {
        "name": "Helper",
        "description": "",
        "system_prompt": "You are a helpful assistant.",
        "mcp_server_ids": [],
        "mcp_server_tags": [],
        "tool_definitions": [],
        "knowledge_source_ids": [],
        "knowledge_tags": [],
        "builtin_tools": [],
        "custom_tool_ids": [],
    }
    made = sdk.request("POST", "/agents", body)
    for name in ("id", "name", "description", "system_prompt", "created_at", "updated_at"):
        assert isinstance(made[name], str), name
    return made["id"]


def test_health_create_and_run_prompt_pass(sdk: SdkCalls) -> None:
    assert sdk.health()["status"] == "ok"
    workflow = sdk.create(agent_id=agent(sdk), title="From the client")
    assert workflow["id"] in [each["id"] for each in sdk.list()]
    task = sdk.run_prompt(workflow["id"], "say it back")
    assert (task["status"], task["response"]) == ("completed", "say it back")
    assert task["usage"]["total_input_tokens"] > 0
    assert task["workflow_title"] == "From the client"
    assert task["agent_name"] == "Helper"
    again = sdk.run_prompt(workflow["id"], "and again")
    assert again["id"] != task["id"]


def test_streams_are_read_and_resumed(sdk: SdkCalls) -> None:
    workflow_id = sdk.create(agent_id=agent(sdk))["id"]
    sdk.run_prompt(workflow_id, "one two three")
    # Resumed behind an id before everything, as a client does that lost its stream early.
    frames: list[dict[str, Any]] = []
    for frame in sdk.stream(workflow_id, last_event_id=1):
        datetime.fromisoformat(frame["timestamp"])
        frames.append(frame)
        if frame["type"] == "status" and frame["data"]["status"] in ENDS:
            break
    assert [frame["data"]["status"] for frame in frames if frame["type"] == "status"] == [
        "running",
        "completed",
    ]
    text = "".join(frame["data"]["delta"] for frame in frames if frame["type"] == "message_delta")
    assert text == "one two three"
    rest = sdk.stream(workflow_id, last_event_id=frames[2]["id"])
    assert [next(rest)["id"] for _ in frames[3:]] == [frame["id"] for frame in frames[3:]]
    rest.close()


def test_bundles_pass(sdk: SdkCalls) -> None:
    workflow_id = sdk.create(agent_id=agent(sdk), title="Bundled", skill_tags=["x"])["id"]
    bundle = sdk.request("GET", f"/workflows/{workflow_id}/export")
    assert (bundle["version"], bundle["resource_type"]) == ("1.0", "workflow")
    datetime.fromisoformat(bundle["exported_at"])
    made = sdk.request("POST", "/workflows/import", {"items": bundle["items"]})
    assert (made["created"], made["errors"], len(made["ids"])) == (1, [], 1)
    assert sdk.request("GET", f"/workflows/{made['ids'][0]}/export")["items"] == bundle["items"]
    assert len(sdk.request("GET", "/workflows/export")["items"]) >= 2


def test_skills_pass(sdk: SdkCalls) -> None:
    body: dict[str, Any] = {"name": "Triage", "description": "", "instructions": "Sort.", "tags": []}
    skill = sdk.request("POST", "/skills", body)
    skill_id = skill["id"]
    assert skill == sdk.request("GET", f"/skills/{skill_id}")
    changed = sdk.request("PUT", f"/skills/{skill_id}", {"description": "d"})
    assert (changed["description"], changed["instructions"]) == ("d", "Sort.")
    assert skill_id in [each["id"] for each in sdk.request("GET", "/skills")]
    workflow_id = sdk.create(agent_id=agent(sdk))["id"]
    assert sdk.request("POST", f"/workflows/{workflow_id}/skills/{skill_id}")["skill_ids"] == [skill_id]
    assert sdk.request("DELETE", f"/workflows/{workflow_id}/skills/{skill_id}")["skill_ids"] == []
    assert sdk.request("DELETE", f"/skills/{skill_id}") is None
