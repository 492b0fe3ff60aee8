"""External contract, acceptance scenarios 11 and 12: conversations with an agent."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from tests.contracts.external.wire import PREFIX, UNKNOWN, Api, refusal
from tests.contracts.live_server import LiveServer
from tests.model_server import ModelServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]


@pytest.fixture
def agent_id(api: Api, request: pytest.FixtureRequest) -> str:
    """An agent without a plan, of the test's own."""
    return api.plain_agent(request.node.name[:50])


def test_a_turn_knows_the_turns_before_it(api: Api, agent_id: str) -> None:
    """Scenario 11."""
    first = api.data(
        api.post(f"/agents/{agent_id}/chat", {"message": "My name is Ada", "conversationId": ""})
    )
    response = first["response"]
    assert (response["role"], response["taskId"]) == ("assistant", None)
    assert response["content"] == "Answered: My name is Ada"
    assert response["usage"]["inputTokens"] > 0
    body = {"message": "Who am I?", "conversationId": first["conversationId"]}
    second = api.data(api.post(f"/agents/{agent_id}/chat", body))
    assert second["conversationId"] == first["conversationId"]
    assert second["response"]["content"] == "Answered: My name is Ada / Who am I?"
    assert second["response"]["id"] != response["id"]


def test_a_foreign_conversation_is_like_an_unknown_one(api: Api, their_api: Api, agent_id: str) -> None:
    """Scenario 11: another agent's, another tenant's, none at all."""
    known = api.data(api.post(f"/agents/{agent_id}/chat", {"message": "x"}))["conversationId"]
    other = api.client.post("/api/agents", json={"name": "Another chatter", "system_prompt": "x"}).json()[
        "id"
    ]
    theirs = their_api.client.post("/api/agents", json={"name": "Theirs", "system_prompt": "x"}).json()["id"]
    answers = [
        api.post(f"/agents/{other}/chat", {"message": "x", "conversationId": known}),
        api.post(f"/agents/{agent_id}/chat", {"message": "x", "conversationId": UNKNOWN}),
        their_api.post(f"/agents/{theirs}/chat", {"message": "x", "conversationId": known}),
    ]
    strange = {"message": "x", "conversationId": "a\u0000b"}
    answers.append(api.post(f"/agents/{agent_id}/chat", strange))
    assert len({answer.content for answer in answers}) == 1
    refusal(answers[0], 404, "NOT_FOUND")
    for wrong in ({"message": ""}, {"message": " "}, {}, {"message": "x" * 32_769}, {"message": 1}):
        refusal(api.post(f"/agents/{agent_id}/chat", wrong), 400, "INVALID_REQUEST")


def test_ten_parallel_turns_come_one_after_the_other(api: Api, server: LiveServer, agent_id: str) -> None:
    """Scenario 12: every turn is there, each with all before it."""
    known = api.data(api.post(f"/agents/{agent_id}/chat", {"message": "begin"}))["conversationId"]

    def chat(number: int) -> str:
        with server.client() as own:
            body = {"message": f"turn-{number}", "conversationId": known}
            answer = own.post(f"{PREFIX}/agents/{agent_id}/chat", json=body)
            return Api(own).data(answer)["response"]["content"]

    with ThreadPoolExecutor(10) as pool:
        answers = sorted(pool.map(chat, range(10)), key=len)
    turns = [answer.removeprefix("Answered: ").split(" / ") for answer in answers]
    assert [len(each) for each in turns] == list(range(2, 12))
    assert sorted(turns[-1][1:]) == sorted(f"turn-{number}" for number in range(10))
    for shorter, longer in pairwise(turns):
        assert longer[: len(shorter)] == shorter


def test_a_failed_turn_leaves_no_trace(api: Api, agent_id: str) -> None:
    """Section 4.5."""
    known = api.data(api.post(f"/agents/{agent_id}/chat", {"message": "one"}))["conversationId"]
    failed = api.post(f"/agents/{agent_id}/chat", {"message": "[fail]", "conversationId": known})
    refusal(failed, 500, "EXECUTION_FAILED")
    after = api.data(api.post(f"/agents/{agent_id}/chat", {"message": "two", "conversationId": known}))
    assert after["response"]["content"] == "Answered: one / two"


def test_a_turn_may_be_repeated_by_its_key(api: Api, agent_id: str) -> None:
    """Rule G6."""
    headers = {"idempotency-key": "external-chat-1"}
    first = api.post(f"/agents/{agent_id}/chat", {"message": "once"}, headers=headers)
    again = api.post(f"/agents/{agent_id}/chat", {"message": "once"}, headers=headers)
    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")


def test_an_agent_with_a_plan_may_carry_it_out_in_a_chat(api: Api, models: ModelServer) -> None:
    """Section 4.5: the plan is offered as a tool."""
    agent_id = api.agent("Chats with a plan")
    models.journal.clear()
    api.data(api.post(f"/agents/{agent_id}/chat", {"message": "hello"}))
    [asked] = models.journal.exchanges
    assert [tool["function"]["name"] for tool in asked.body["tools"]] == ["carry_out"]
