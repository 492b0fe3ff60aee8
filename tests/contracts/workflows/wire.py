"""What the scenarios say to the server: make, prompt, follow, wait."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import httpx_sse
import msgspec

from tests.contracts.live_server import poll

UNKNOWN = "00000000-0000-7000-8000-000000000000"
STREAM_SECONDS = 30.0
"""How long a test may read one stream."""

ENDS = ("completed", "failed", "halted", "max_turns_reached")

SEED = {
    "model": "gpt-4.1",
    "max_turns": 10,
    "output_format": "markdown",
    "reasoning_effort": "medium",
    "skill_tags": ["incident"],
    "guardrail_tags": ["safe-output"],
    "infinite_session": True,
    "bypass_memory": False,
    "auto_memory": True,
    "tsv_tool_results": False,
    "caveman": True,
}
"""The seed's create body, without the agent's id."""


class Heard(NamedTuple):
    """One frame of a stream."""

    id: int
    type: str
    data: Any

    @property
    def is_end(self) -> bool:
        return self.type == "status" and self.data["status"] in ENDS

    @property
    def log(self) -> str:
        """The log's event; empty for another frame."""
        return self.data["event"] if self.type == "log" else ""


class Api:
    """A client in the contract's words; every call checks the status it expects."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def call(self, method: str, path: str, status: int, **options: Any) -> Any:
        answer = self.client.request(method, path, **options)
        assert answer.status_code == status, answer.text
        return msgspec.json.decode(answer.content) if answer.content else None

    def agent(self, **fields: Any) -> str:
        return self.call("POST", "/api/agents", 201, json={"name": "helper", **fields})["id"]

    def skill(self, **fields: Any) -> str:
        body = {"name": "skill", "instructions": "Be kind.", **fields}
        return self.call("POST", "/api/skills", 201, json=body)["id"]

    def guardrail(self, kind: str, tags: tuple[str, ...] = (), /, name: str = "g", **rules: Any) -> str:
        body = {"name": name, "guardrail_type": kind, "tags": tags, f"{kind}_config": rules}
        return self.call("POST", "/api/guardrails", 201, json=body)["id"]

    def workflow(self, agent_id: str | None = None, **fields: Any) -> str:
        """Of a new agent, unless one is named."""
        body = {"agent_id": agent_id or self.agent(), **fields}
        return self.call("POST", "/api/workflows", 201, json=body)["id"]

    def get(self, workflow_id: str) -> dict[str, Any]:
        return self.call("GET", f"/api/workflows/{workflow_id}", 200)

    def prompt(self, workflow_id: str, prompt: str = "hello", **fields: Any) -> dict[str, Any]:
        body = {"prompt": prompt, **fields}
        return self.call("POST", f"/api/workflows/{workflow_id}/prompt", 201, json=body)

    def run(self, workflow_id: str, prompt: str = "hello", **fields: Any) -> dict[str, Any]:
        """The task of a prompt, once it has ended."""
        return self.ended(self.prompt(workflow_id, prompt, **fields)["task_id"])

    def ended(self, task_id: str) -> dict[str, Any]:
        return poll(self.client, f"/api/tasks/{task_id}", _is_ended)

    def until_running(self, task_id: str) -> None:
        poll(self.client, f"/api/tasks/{task_id}", _is_running)

    @contextmanager
    def stream(
        self, workflow_id: str, headers: dict[str, str] | None = None, **query: str
    ) -> Generator[Iterator[Heard]]:
        url = f"/api/workflows/{workflow_id}/stream"
        with httpx_sse.connect_sse(self.client, "GET", url, params=query, headers=headers or {}) as source:
            assert source.response.status_code == 200, source.response.read()
            # Keep-alives hide a silent stream from the client's own time-out.
            watch = threading.Timer(STREAM_SECONDS, _cut, [source.response])
            watch.start()
            try:
                yield _heard(source)
            finally:
                watch.cancel()

    def run_frames(self, workflow_id: str) -> list[Heard]:
        """Every frame up to the next end."""
        with self.stream(workflow_id, until="terminal") as frames:
            return list(frames)

    def after(self, workflow_id: str, last_id: str, count: int) -> list[Heard]:
        """The next frames behind an id."""
        with self.stream(workflow_id, {"last-event-id": last_id}) as frames:
            return [next(frames) for _ in range(count)]


def _cut(response: httpx.Response) -> None:
    """End a stream that a test waits for in vain: the next read fails."""
    response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def _is_ended(task: dict[str, Any]) -> bool:
    return task["status"] in ENDS


def _is_running(task: dict[str, Any]) -> bool:
    return task["status"] == "running"


def _heard(source: httpx_sse.EventSource) -> Iterator[Heard]:
    for event in source.iter_sse():
        if not event.data:
            continue  # the library hands on the `retry` line; the standard dispatches nothing for it
        assert event.event == "message", "the contract's frames have no event: line"
        body = msgspec.json.decode(event.data)
        assert str(body["id"]) == event.id
        assert body["timestamp"].endswith("+00:00")
        yield Heard(body["id"], body["type"], body["data"])
