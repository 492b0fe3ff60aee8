"""What the scenarios say to the server, and what they read."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import msgspec
from httpx_sse import EventSource

from tests.contracts.live_server import poll

PREFIX = "/api/external"
UNKNOWN = "0190a000-0000-7000-8000-000000000000"


class Event(NamedTuple):
    id: int
    name: str
    data: dict[str, Any]


class Api:
    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.client.get(PREFIX + path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        if body is not None:
            options["json"] = body
        return self.client.post(PREFIX + path, **options)

    def data(self, response: httpx.Response, status: int = 200) -> dict[str, Any]:
        assert response.status_code == status, response.text
        body = response.json()
        assert body["success"] is True
        return body["data"]

    # --- tasks ------------------------------------------------------------------------------------------

    def task(self, content: str, **fields: Any) -> str:
        """A new task's id."""
        created = self.data(self.post("/tasks", {"content": content, **fields}), 201)
        return created["task"]["id"]

    def planned(self, content: str) -> str:
        """A task with a plan."""
        task_id = self.task(content)
        self.data(self.post(f"/tasks/{task_id}/analyze"))
        return task_id

    def shown(self, task_id: str) -> dict[str, Any]:
        return self.data(self.get(f"/tasks/{task_id}"))["task"]

    def wait_for(self, task_id: str, *statuses: str) -> dict[str, Any]:
        def is_there(body: dict[str, Any]) -> bool:
            return body["data"]["task"]["status"] in statuses

        return poll(self.client, f"{PREFIX}/tasks/{task_id}", is_there)["data"]["task"]

    def history(self, task_id: str) -> list[dict[str, Any]]:
        return self.data(self.get(f"/tasks/{task_id}/executions"))["executions"]

    def agent(self, name: str, content: str = "Market report") -> str:
        """An agent made of a completed task."""
        task_id = self.planned(content)
        self.data(self.post(f"/tasks/{task_id}/execute"))
        body = {"taskId": task_id, "name": name, "description": "Made for a test."}
        return self.data(self.post("/agents", body), 201)["agent"]["id"]

    def plain_agent(self, name: str) -> str:
        """An agent that answers by itself, made by the other contract's companion path."""
        made = self.client.post("/api/agents", json={"name": name, "system_prompt": "Be brief."})
        assert made.is_success, made.text
        return made.json()["id"]

    # --- streams ----------------------------------------------------------------------------------------

    @contextmanager
    def stream(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Generator[Iterator[Event]]:
        url = PREFIX + path
        with self.client.stream("POST", url, json={} if body is None else body, headers=headers) as response:
            if response.status_code != 200:
                response.read()
            assert response.status_code == 200, response.text
            assert response.headers["x-api-version"] == "1.0"
            yield events_of(response)

    def events(self, path: str, body: Any = None, headers: dict[str, str] | None = None) -> list[Event]:
        """All events of a stream, to its end."""
        with self.stream(path, body, headers) as events:
            return list(events)


def events_of(response: httpx.Response) -> Iterator[Event]:
    for sent in EventSource(response).iter_sse():
        if not sent.data:
            continue  # the `retry` line
        body = msgspec.json.decode(sent.data)
        assert set(body) == {"event", "data"}
        assert sent.event == "message"  # no `event:` line
        yield Event(int(sent.id), body["event"], body["data"])


def refusal(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error's body, which has the contract's shape."""
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["success", "error", "message", "details"]
    assert (body["success"], body["error"]) == (False, code)
    assert body["message"]
    assert isinstance(body["details"], list)
    assert response.headers["x-api-version"] == "1.0"
    return body


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]
