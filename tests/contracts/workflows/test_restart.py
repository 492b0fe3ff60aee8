"""A run outlives its server: killed in the middle of an answer, started again, and followed to the end by the
client it had (contract 3.8, gateway rule G8)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import httpx
import pytest

from tests.contracts.live_server import LiveServer
from tests.contracts.workflows.agent_tools import ROWS
from tests.contracts.workflows.wire import Api, Heard
from tests.model_server import ModelServer, Rule, calls, says
from tests.sandbox import Sandbox

pytestmark = [pytest.mark.acceptance, pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def mortal(sandbox: Sandbox, model_server: ModelServer) -> Iterator[LiveServer]:
    made = LiveServer(
        sandbox.root / "mortal",
        shutdown_seconds="2",
        model="scripted",
        model_url=model_server.url,
        tool_allow="127.0.0.0/8",
    )
    made.environment["HELIOGRAPH_MODEL_KEY"] = "sk-of-the-model-server"
    made.start()
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(made.folder)


def test_a_killed_servers_run_goes_on_and_pays_for_no_answer_twice(
    mortal: LiveServer, model_server: ModelServer
) -> None:
    held = says("one two three four", deltas=4, hang="gate", hang_after=2)
    model_server.play(Rule(turns=(calls("rows", topic="x"), held)))
    with mortal.client() as client:
        api = Api(client)
        workflow_id = api.workflow(api.agent(tool_definitions=[ROWS]))
        accepted = api.prompt(workflow_id)
        before: list[Heard] = []
        with api.stream(workflow_id) as frames:
            while not before or before[-1].type != "message_delta":
                before.append(next(frames))
            mortal.kill()
    model_server.release("gate")
    mortal.start()
    with mortal.client() as client:
        api = Api(client)
        headers = {"last-event-id": str(before[-1].id)}
        with api.stream(workflow_id, headers, until="terminal") as frames:
            after = list(frames)
        task = api.ended(accepted["task_id"])
        shown = api.get(workflow_id)
    assert (task["status"], task["response"]) == ("completed", "one two three four")
    assert (shown["status"], shown["task_count"], shown["current_turn"]) == ("active", 1, 1)
    ids = [frame.id for frame in before + after]
    assert ids == sorted(set(ids))
    assert [frame.is_end for frame in after] == [False] * (len(after) - 1) + [True]
    # A host that outlived its server for a moment may have got the answer; else the call was made again.
    text = ""
    for frame in before + after:
        if frame.log == "retrying":
            text = ""
        elif frame.type == "message_delta":
            text += frame.data["delta"]
    assert text == "one two three four"
    assert [each.data["role"] for each in before + after if each.type == "message"] == [
        "assistant",
        "tool",
        "assistant",
    ]
    assert set(model_server.journal.counted.values()) == {1}
    # A ticket is the installation's, not a process's.
    opened = httpx.get(f"{mortal.url}{accepted['stream_url']}&until=terminal")
    assert opened.status_code == 200
