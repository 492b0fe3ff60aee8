"""External contract, acceptance scenario 21: the server is killed during an execution and started again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.contracts.external.conftest import settings_for
from tests.contracts.external.wire import PREFIX, Api
from tests.contracts.live_server import LiveServer
from tests.model_server import ModelServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray, pytest.mark.slow, pytest.mark.fault]


def test_an_execution_outlives_its_server(own_server: LiveServer, models: ModelServer) -> None:
    server = own_server
    server.settings |= settings_for(models)
    server.environment["HELIOGRAPH_MODEL_KEY"] = "sk-of-the-model-server"
    server.start(hosts="1")
    with server.client() as client:
        api = Api(client)
        talk = api.data(api.post(f"/agents/{api.plain_agent('Remembers')}/chat", {"message": "one"}))
        task_id = api.planned("[plan:two] x [hang:external-restart]")
        with ThreadPoolExecutor(1) as pool, server.client() as other:
            waiting = pool.submit(other.post, f"{PREFIX}/tasks/{task_id}/execute")
            models.journal.until_hanging("external-restart")
            api.wait_for(task_id, "running")
            server.kill()
            assert isinstance(waiting.exception(timeout=30), httpx.TransportError)
    models.release("external-restart")
    server.start(hosts="1")
    with server.client() as client:
        api = Api(client)
        task = api.wait_for(task_id, "completed")
        assert task["result"]["output"]
        assert [(step["step"], step["success"]) for step in api.history(task_id)] == [(1, True), (2, True)]
        agent_id = api.data(api.get("/agents"))["agents"][0]["id"]
        body = {"message": "two", "conversationId": talk["conversationId"]}
        again = api.data(api.post(f"/agents/{agent_id}/chat", body))
        assert again["response"]["content"] == "Answered: one / two"
