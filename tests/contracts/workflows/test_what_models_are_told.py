"""Each choice of a workflow changes what is really sent to the model, as read off the model server."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contracts.live_server import poll
from tests.contracts.workflows.agent_tools import ROWS
from tests.contracts.workflows.wire import Api
from tests.model_server import Exchange, ModelServer, Rule, endless_tool_loop, gives, says, tool_loop

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]

ECHO = Rule(turns=(says("{prompt}"),))


def system(exchange: Exchange) -> str:
    messages: list[dict[str, Any]] = exchange.body["messages"]
    return "\n".join(str(each["content"]) for each in messages if each["role"] in ("system", "developer"))


def sent(api: Api, model_server: ModelServer, prompt: str = "hello", **fields: Any) -> Exchange:
    """The first request of a run of a workflow with these fields."""
    model_server.journal.clear()
    api.run(api.workflow(**fields), prompt)
    return model_server.journal.exchanges[0]


def test_the_agents_words_and_the_models_name_are_sent(api: Api, model_server: ModelServer) -> None:
    exchange = sent(api, model_server, agent_id=api.agent(system_prompt="You are a gardener."), model="gpt-x")
    assert system(exchange).startswith("You are a gardener.")
    assert exchange.model == "gpt-x"
    assert exchange.body["messages"][-1] == {"role": "user", "content": "hello"}


def test_caveman_asks_for_few_words(api: Api, model_server: ModelServer) -> None:
    assert "caveman" not in system(sent(api, model_server))
    assert "caveman" in system(sent(api, model_server, caveman=True))


def test_the_output_format_is_asked_for(api: Api, model_server: ModelServer) -> None:
    assert "JSON" in system(sent(api, model_server))
    assert "Markdown" in system(sent(api, model_server, output_format="markdown"))


def test_the_reasoning_effort_is_sent_and_a_prompts_own_wins(api: Api, model_server: ModelServer) -> None:
    """To models that reason: the others' endpoints refuse it."""
    assert "reasoning_effort" not in sent(api, model_server, model="o3").body
    assert sent(api, model_server, model="o3", reasoning_effort="low").body["reasoning_effort"] == "low"
    model_server.journal.clear()
    api.run(api.workflow(model="o3", reasoning_effort="low"), reasoning_effort="high")
    assert model_server.journal.exchanges[0].body["reasoning_effort"] == "high"


def test_skills_come_by_id_and_by_tag(api: Api, model_server: ModelServer) -> None:
    named = api.skill(name="Triage", instructions="Sort by harm.")
    api.skill(name="Night", instructions="Whisper.", tags=["told-night"])
    api.skill(name="Other", instructions="Never said.", tags=["told-other"])
    told = system(sent(api, model_server, skill_ids=[named], skill_tags=["told-night"]))
    assert "Sort by harm." in told
    assert "Whisper." in told
    assert "Never said." not in told


def test_an_installed_skill_is_told_from_the_next_prompt(api: Api, model_server: ModelServer) -> None:
    workflow_id, skill_id = api.workflow(), api.skill(instructions="Count in dozens.")
    api.run(workflow_id)
    api.call("POST", f"/api/workflows/{workflow_id}/skills/{skill_id}", 200)
    api.run(workflow_id)
    api.call("DELETE", f"/api/workflows/{workflow_id}/skills/{skill_id}", 200)
    api.run(workflow_id)
    told = ["Count in dozens." in system(each) for each in model_server.journal.exchanges]
    assert told == [False, True, False]


def test_tool_results_are_sent_as_tsv_when_asked_for(api: Api, model_server: ModelServer) -> None:
    agent_id = api.agent(tool_definitions=[ROWS])
    model_server.play(tool_loop("rows", {"topic": "rain"}))

    def result(**fields: Any) -> str:
        model_server.journal.clear()
        api.run(api.workflow(agent_id, **fields))
        [message] = [
            each for each in model_server.journal.exchanges[1].body["messages"] if each["role"] == "tool"
        ]
        return message["content"]

    assert result().startswith("[{")
    assert result(tsv_tool_results=True).splitlines()[:2] == ["topic\tcount", "rain\t1"]


def test_a_session_goes_on_unless_it_is_not_to(api: Api, model_server: ModelServer) -> None:
    for infinite, roles in ((True, ["user", "assistant", "user"]), (False, ["user"])):
        model_server.journal.clear()
        workflow_id = api.workflow(infinite_session=infinite)
        api.run(workflow_id, "first")
        api.run(workflow_id, "second")
        last = model_server.journal.exchanges[-1].body["messages"]
        assert [each["role"] for each in last if each["role"] not in ("system", "developer")] == roles


def test_the_turns_bound_how_often_a_model_is_called(api: Api, model_server: ModelServer) -> None:
    agent_id = api.agent(tool_definitions=[ROWS])
    for turns in (1, 3):
        model_server.play(endless_tool_loop("rows", {"topic": "x"}))
        model_server.journal.clear()
        task = api.run(api.workflow(agent_id, max_turns=turns))
        assert task["status"] == "max_turns_reached"
        assert len(model_server.journal.exchanges) == turns


def test_memories_are_kept_told_and_bypassed(api: Api, model_server: ModelServer) -> None:
    """auto_memory asks for what is worth keeping; later runs of the agent are told, unless bypass_memory."""
    fact = "The user's cat is called Ada."
    model_server.play(
        Rule(turns=(gives({"memories": [fact]}),), system="worth remembering"),
        Rule(turns=(says("noted"),)),
    )
    agent_id = api.agent()
    plain = api.workflow(agent_id)
    api.run(plain, "nothing to keep")
    assert len(model_server.journal.exchanges) == 1
    api.run(api.workflow(agent_id, auto_memory=True), "my cat is Ada")
    assert len(model_server.journal.exchanges) == 3

    def told(workflow_id: str) -> bool:
        model_server.journal.clear()
        api.run(workflow_id, "what do you know?")
        return fact in system(model_server.journal.exchanges[0])

    def is_told(_: dict[str, Any]) -> bool:
        return told(plain)

    poll(api.client, f"/api/agents/{agent_id}", is_told)
    assert not told(api.workflow(agent_id, bypass_memory=True))
    assert not told(api.workflow(api.agent()))


def test_an_output_guardrail_informs_and_does_not_fail(api: Api, model_server: ModelServer) -> None:
    """Section 3.8: the event, and the run completes."""
    rules = {"forbidden_patterns": ["secret"], "pii_detection": True}
    workflow_id = api.workflow(guardrail_ids=[api.guardrail("output", name="Discreet", **rules)])
    task = api.run(workflow_id, "the SECRET is ada@example.com")
    assert task["status"] == "completed"
    frames = api.run_frames(workflow_id)
    [told] = [frame.data for frame in frames if frame.type == "output_guardrail_violation"]
    assert told == {
        "violations": [
            "Guardrail 'Discreet': output matches forbidden pattern 'secret'.",
            "Guardrail 'Discreet': output appears to contain PII (email address).",
        ]
    }
    assert [frame.log for frame in frames].count("output_guardrail_violation") == 1


def test_a_guardrail_may_be_judged_by_a_model(api: Api, model_server: ModelServer) -> None:
    model_server.play(
        Rule(turns=(gives({"allowed": False, "reason": "It is rude."}),), system="Be polite"),
        ECHO,
    )
    guardrail_id = api.guardrail("prompt", name="Polite", instructions="Be polite")
    task = api.run(api.workflow(guardrail_ids=[guardrail_id]), "you fool")
    assert task["status"] == "failed"
    assert task["logs"][-1]["detail"] == "Guardrail 'Polite': It is rude."
    assert len(model_server.journal.exchanges) == 1


def test_a_models_plan_is_shown_as_progress(api: Api, model_server: ModelServer) -> None:
    """Sections 3.8 and 3.13."""
    todos = [
        {"id": 1, "title": "look", "status": "completed"},
        {"id": 2, "title": "tell", "status": "in-progress"},
    ]
    model_server.play(tool_loop("update_todos", {"todos": todos}, "done"))
    workflow_id = api.workflow()
    task = api.run(workflow_id)
    [progress] = [frame.data for frame in api.run_frames(workflow_id) if frame.type == "progress"]
    assert progress["todos"] == todos
    assert progress["percent_complete"] == 0.5
    assert api.call("GET", f"/api/tasks/{task['id']}/progress", 200) == progress == task["progress"]
