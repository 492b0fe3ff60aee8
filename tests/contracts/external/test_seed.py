"""External contract, acceptance scenarios 1 and 5: the seed's curl sequence as printed, and its constants."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from tests.contracts.external.wire import Api, refusal
from tests.contracts.live_server import LiveServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]

CREATE = """
curl 'https://your-domain.com/api/external/tasks' \\
-X POST \\
-H 'Content-Type: application/json' \\
-H 'X-API-Key: YOUR_API_KEY' \\
-d '{
"title": "View Twitter posts",
"content": "Please fetch my latest tweets"
}'
"""
ANALYZE = """
curl 'https://your-domain.com/api/external/tasks/TASK_ID/analyze' \\
-X POST \\
-H 'Content-Type: application/json' \\
-H 'X-API-Key: YOUR_API_KEY'
"""
EXECUTE = """
curl 'https://your-domain.com/api/external/tasks/TASK_ID/execute' \\
-X POST \\
-H 'Content-Type: application/json' \\
-H 'X-API-Key: YOUR_API_KEY' \\
-d '{
"timeoutSeconds": 600
}'
"""
STREAM = """
curl 'https://your-domain.com/api/external/tasks/TASK_ID/execute/stream' \\
-X POST \\
-H 'Content-Type: application/json' \\
-H 'X-API-Key: YOUR_API_KEY' \\
-H 'Accept: text/event-stream' \\
-d '{}'
"""


def run(command: str, server: LiveServer, task_id: str = "") -> tuple[int, str]:
    """Status and body of the command, run by a shell as it is printed in the seed."""
    command = command.strip().replace("https://your-domain.com", server.url)
    command = command.replace("YOUR_API_KEY", server.first_key).replace("TASK_ID", task_id)
    done = subprocess.run(
        ["sh", "-c", f"{command} -s -w '\\n%{{http_code}}'"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def test_the_seeds_four_commands_work_as_printed(server: LiveServer, api: Api) -> None:
    """Scenario 1."""
    status, body = run(CREATE, server)
    task = json.loads(body)["data"]["task"]
    assert (status, task["title"], task["status"]) == (201, "View Twitter posts", "pending")
    assert task["mcpWorkflow"] is None
    status, body = run(ANALYZE, server, task["id"])
    analyzed = json.loads(body)["data"]
    assert status == 200, body
    assert analyzed["message"] == (
        "Task analyzed successfully. Please authenticate required MCPs before execution."
    )
    assert [step["step"] for step in analyzed["task"]["mcpWorkflow"]["workflow"]] == [1]
    status, body = run(EXECUTE, server, task["id"])
    done = json.loads(body)["data"]
    assert (status, done["taskId"], done["status"]) == (200, task["id"], "completed")
    assert "Please fetch my latest tweets" in done["result"]["output"]
    assert isinstance(done["executionTime"], float)
    status, body = run(STREAM, server, task["id"])
    assert status == 200
    events = [json.loads(line)["event"] for line in re.findall(r"^data: (.*)$", body, re.MULTILINE)]
    assert (events[0], events[-1]) == ("connection_established", "completed")


def test_health_needs_no_key_and_info_does(server: LiveServer, api: Api) -> None:
    """Scenario 5."""
    import httpx

    health = httpx.get(f"{server.url}/api/external/health")
    assert health.status_code == 200
    shown = health.json()["data"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", shown.pop("timestamp"))
    assert shown == {"status": "healthy", "version": "1.0", "service": "mcp-server-external-api"}
    refusal(httpx.get(f"{server.url}/api/external/info"), 401, "UNAUTHORIZED")
    assert api.data(api.get("/info")) == {
        "name": "MCP Server External API",
        "version": "1.0",
        "description": "External API for MCP Server Agent execution and management",
        "endpoints": {"agents": "/api/external/agents", "tasks": "/api/external/tasks"},
    }
