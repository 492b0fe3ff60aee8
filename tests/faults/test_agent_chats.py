"""A conversation outlives the death of its server in the middle of a turn."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.faults.agent_talks import insist
from tests.faults.server import FaultyServer
from tests.model_server import Answer, Asked, Exchange, ModelServer, says
from tests.model_server.fixture import model_server, running_model_server
from tests.sandbox import Sandbox

__all__ = ["model_server", "running_model_server"]

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.acceptance]


@pytest.fixture
def server(sandbox: Sandbox, running_model_server: ModelServer) -> Iterator[FaultyServer]:
    server = FaultyServer(
        sandbox.root / "chats",
        local=True,
        shutdown_seconds="1",
        model="scripted",
        model_url=running_model_server.url,
        model_key="sk-test",
    )
    server.start()
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(server.folder)


def remembering(asked: Asked) -> Answer:
    """Says all that the user said so far. The second turn hangs when it is asked for the first time."""
    said = [message["content"] for message in asked.messages if message["role"] == "user"]
    hangs = asked.prompt == "two" and not asked.tries
    return says(f"I heard {', '.join(said)}", hang="gate" if hangs else "", hang_after=1)


def chat(server: FaultyServer, agent_id: str, message: str, conversation_id: str, key: str) -> dict[str, Any]:
    body = {"message": message, "conversationId": conversation_id}
    path = f"/api/external/agents/{agent_id}/chat"
    return insist(server, "POST", path, json=body, headers={"Idempotency-Key": key}).json()["data"]


def asked_for(exchanges: list[Exchange], prompt: str) -> list[Exchange]:
    return [each for each in exchanges if each.body["messages"][-1]["content"] == prompt]


def test_a_turn_whose_server_was_killed_is_answered_once_and_stays_in_the_history(
    server: FaultyServer, model_server: ModelServer
) -> None:
    model_server.play(remembering)
    agent = {"name": "Listener", "system_prompt": "Listen."}
    agent_id = insist(server, "POST", "/api/agents", json=agent).json()["id"]
    first = chat(server, agent_id, "one", "", "turn-1")
    conversation_id: str = first["conversationId"]
    assert first["response"]["content"] == "I heard one"
    with server.kept(), ThreadPoolExecutor(1) as pool:
        # The client repeats its request, with the same key, until it gets an answer.
        waiting = pool.submit(chat, server, agent_id, "two", conversation_id, "turn-2")
        model_server.journal.until_hanging("gate")
        os.kill(server.process.pid, signal.SIGKILL)
        second = waiting.result(timeout=90)
        third = chat(server, agent_id, "three", conversation_id, "turn-3")
    assert second["response"]["content"] == "I heard one, two"
    assert third["response"]["content"] == "I heard one, two, three"
    exchanges = model_server.journal.until_settled()
    assert [each.outcome for each in asked_for(exchanges, "one")] == ["answered"]
    assert [each.outcome for each in asked_for(exchanges, "two")] == ["dropped", "answered"]
    assert len({each.idempotency_key for each in asked_for(exchanges, "two")}) == 1
    assert [each.outcome for each in asked_for(exchanges, "three")] == ["answered"]


def test_a_turn_nobody_asks_for_again_is_in_the_history_too(
    server: FaultyServer, model_server: ModelServer
) -> None:
    model_server.play(remembering)
    agent = {"name": "Listener", "system_prompt": "Listen."}
    agent_id = insist(server, "POST", "/api/agents", json=agent).json()["id"]
    conversation_id: str = chat(server, agent_id, "one", "", "turn-1")["conversationId"]
    body = {"message": "two", "conversationId": conversation_id}
    with ThreadPoolExecutor(1) as pool, server.client() as client:
        waiting = pool.submit(client.post, f"/api/external/agents/{agent_id}/chat", json=body)
        model_server.journal.until_hanging("gate")
        server.kill()
        assert isinstance(waiting.exception(timeout=60), httpx.TransportError)
    server.start()
    # The next turn waits for the one before it, which goes on by itself.
    third = chat(server, agent_id, "three", conversation_id, "turn-3")
    assert third["response"]["content"] == "I heard one, two, three"
    exchanges = model_server.journal.until_settled()
    assert [each.outcome for each in asked_for(exchanges, "two")] == ["dropped", "answered"]
