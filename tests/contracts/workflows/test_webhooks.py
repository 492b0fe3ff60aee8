"""Workflows contract, acceptance scenario 17: webhooks."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from standardwebhooks import Webhook

from tests.contracts.ability.wire import Callback, receiving
from tests.contracts.live_server import LiveServer
from tests.contracts.workflows.wire import Api
from tests.model_server import Fault, ModelServer, Rule, says

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]


def verified(server: LiveServer, callback: Callback) -> dict[str, Any]:
    """The body, once its signature was checked as a receiver would."""
    secret = (server.folder / "webhook-secret").read_text().strip()
    headers = {name.lower(): value for name, value in callback.headers.items()}
    assert headers["content-type"] == "application/json"
    Webhook(secret).verify(callback.body, headers)
    return msgspec.json.decode(callback.body)


@pytest.mark.parametrize(
    ("output_format", "response"), [("json", '{"response":"{\\"a\\": 1}"}'), ("markdown", '{"a": 1}')]
)
def test_a_completed_run_reaches_the_webhook_alone(
    api: Api, server: LiveServer, model_server: ModelServer, output_format: str, response: str
) -> None:
    model_server.play(Rule(turns=(says('{"a": 1}'),)))
    with receiving(204) as receiver, receiving(204) as other:
        workflow_id = api.workflow(
            title="Report",
            output_format=output_format,
            webhook_url=receiver.url,
            error_webhook_url=other.url,
        )
        task = api.run(workflow_id, "report please")
        [callback] = receiver.wait_for(1)
        body = verified(server, callback)
        assert other.count == 0
    elapsed, timestamp = body.pop("elapsed_seconds"), body.pop("timestamp")
    assert elapsed == task["elapsed_seconds"]
    assert timestamp.endswith("+00:00")
    assert body == {
        "task_id": task["id"],
        "workflow_id": workflow_id,
        "workflow_title": "Report",
        "prompt": "report please",
        "response": response,
        "status": "completed",
    }


@pytest.mark.parametrize(("status", "error_type"), [(401, "authentication_error"), (400, "http_error")])
def test_a_failed_run_reaches_the_error_webhook_alone(
    api: Api, server: LiveServer, model_server: ModelServer, status: int, error_type: str
) -> None:
    model_server.play(Rule(turns=(Fault(status=status, message="no good"),)))
    with receiving(204) as receiver, receiving(204) as other:
        workflow_id = api.workflow(webhook_url=other.url, error_webhook_url=receiver.url)
        task = api.run(workflow_id)
        assert task["status"] == "failed"
        [callback] = receiver.wait_for(1)
        body = verified(server, callback)
        assert other.count == 0
    assert (body["status"], body["task_id"]) == ("failed", task["id"])
    assert "response" not in body
    assert (body["error_type"], body["error_code"]) == (error_type, status)
    assert body["error_message"].endswith(f"(HTTP {status})")
    assert [each["event"] for each in task["logs"]][-1] == "error"


def test_a_halted_run_reaches_nobody(api: Api, server: LiveServer, model_server: ModelServer) -> None:
    """The one told of the run after it is the first that comes."""
    model_server.play(
        Rule(turns=(says("one two", deltas=2, hang="gate", hang_after=1),), prompt="hold"),
        Rule(turns=(says("{prompt}"),)),
    )
    with receiving(204) as receiver:
        workflow_id = api.workflow(webhook_url=receiver.url, error_webhook_url=receiver.url)
        halted = api.prompt(workflow_id, "hold on")["task_id"]
        model_server.journal.until_hanging("gate")
        api.call("POST", f"/api/workflows/{workflow_id}/halt", 200)
        assert api.ended(halted)["status"] == "halted"
        model_server.release("gate")
        after = api.run(workflow_id, "next")
        [callback] = receiver.wait_for(1)
        assert verified(server, callback)["task_id"] == after["id"]
