"""Named tokens of a workflow (contract sections 2 and 3.1): used by the run, shown nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.actors.agents.tools.git_house import served
from tests.contracts.live_server import LiveServer
from tests.contracts.workflows.wire import Api
from tests.model_server import ModelServer, tool_loop

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]

TOKEN = "ghp-never-to-be-seen"


def set_secret(api: Api, name: str) -> None:
    api.client.put(f"/api/admin/secrets/{name}", json={"value": TOKEN}).raise_for_status()


def assert_shown_nowhere(api: Api, server: LiveServer, model_server: ModelServer, workflow_id: str) -> None:
    """In no answer of this contract or the audit API, not in what the model was told, and not on disk."""
    [task] = api.call("GET", f"/api/tasks/workflow/{workflow_id}", 200)
    for path in (
        f"/api/workflows/{workflow_id}",
        f"/api/workflows/{workflow_id}/export",
        f"/api/tasks/{task['id']}",
        f"/api/audit/executions/{task['id']}/events",
        f"/api/workflows/{workflow_id}/stream?until=terminal",
    ):
        answer = api.client.get(path)
        assert answer.status_code == 200
        assert TOKEN not in answer.text, path
    assert TOKEN not in str([each.body for each in model_server.journal.exchanges])
    for file in server.folder.glob("heliograph.db*"):
        assert TOKEN.encode() not in file.read_bytes()


def test_a_private_repository_is_read_with_the_named_token(
    api: Api, server: LiveServer, model_server: ModelServer, tmp_path: Path
) -> None:
    set_secret(api, "git-token")
    model_server.play(tool_loop("read_file", {"path": "notes.txt"}))
    with served(tmp_path, TOKEN) as remote:
        remote.push({"notes.txt": "on main"})
        remote.push({"notes.txt": "on the branch"}, branch="topic")
        workflow_id = api.workflow(repo_url=remote.url, repo_branch="topic", repo_token_name="git-token")
        task = api.run(workflow_id)
    assert task["status"] == "completed"
    assert "on the branch" in task["response"]
    offered = {tool["function"]["name"] for tool in model_server.journal.exchanges[0].body["tools"]}
    assert {"list_files", "read_file", "search"} <= offered
    assert_shown_nowhere(api, server, model_server, workflow_id)


def test_credential_overrides_say_which_token_a_tool_uses(
    api: Api, server: LiveServer, model_server: ModelServer, tmp_path: Path
) -> None:
    set_secret(api, "their-token")
    model_server.play(tool_loop("look", {"id": "project.git/HEAD"}))
    with served(tmp_path, plain_files=True) as remote:
        remote.push({"a": "b"})
        base = remote.url.removesuffix("/project.git")
        tool = {
            "kind": "http",
            "name": "look",
            "url": base + "/project.git/{id}",
            "headers": {"Authorization": "Bearer {secret:API_TOKEN}"},
            "schema": {"type": "object", "properties": {"id": {"type": "string"}}},
        }
        workflow_id = api.workflow(
            api.agent(tool_definitions=[tool]), credential_overrides={"API_TOKEN": "their-token"}
        )
        task = api.run(workflow_id)
        asked = [authorization for _, authorization in remote.requests]
    assert task["status"] == "completed"
    assert asked == [f"Bearer {TOKEN}"]
    assert_shown_nowhere(api, server, model_server, workflow_id)
