"""What the models of these scenarios answer: plans for analyses, words for everything else.

A task says by a word in its content which plan it gets (``[plan:NAME]``) and how its answers come
(``[hang:GATE]``: not before it is released, ``[midway:GATE]``: after two words, ``[fail]``, ``[say:WORDS]``,
``[call]``: once every tool first).
"""

from __future__ import annotations

import re
from typing import Any

from tests.model_server import Answer, Asked, Fault, Reply, ToolUse
from tests.model_server.script import content_text

PLANNER = "You plan how a task is carried out"

PLANS: dict[str, list[dict[str, Any]]] = {
    "answer": [{"mcp": "assistant", "action": "answer", "input": {"instruction": "Do it: ${inputs.input}"}}],
    "two": [
        {"mcp": "assistant", "action": "answer", "input": {"instruction": "Collect."}},
        {"mcp": "assistant", "action": "answer", "input": {"instruction": "Use ${nodes.step_1}."}},
    ],
    "flows": [
        {"mcp": "flows", "action": "external-shout", "input": {"text": "${inputs.input}"}},
        {"mcp": "flows", "action": "external-shout", "input": {"text": "again ${nodes.step_1}"}},
    ],
    "rest": [{"mcp": "flows", "action": "external-rest", "input": {}}],
    "broken": [
        {"mcp": "flows", "action": "external-shout", "input": {"text": "fine"}},
        {"mcp": "flows", "action": "external-broken", "input": {}},
    ],
    "tools": [{"mcp": "tools", "action": "add", "input": {"a": 2, "b": 3}}],
    "locked": [{"mcp": "locked", "action": "needs_token", "input": {}}],
    "impossible": [{"mcp": "flows", "action": "external-shout", "input": {"text": "${nodes.step_9}"}}],
    "corrected": [{"mcp": "assistant", "action": "answer", "input": {"instruction": "${nodes.step_4}"}}],
}


def plan(asked: Asked) -> Answer | None:
    if PLANNER not in asked.system:
        return None
    named = re.search(r"\[plan:(\w+)\]", asked.prompt)
    name = named[1] if named else "answer"
    if name == "corrected" and "What is wrong with it" in asked.prompt:
        name = "answer"
    return Reply(value={"steps": PLANS[name]})


def answer(asked: Asked) -> Answer | None:
    prompt = asked.prompt
    if "[fail]" in prompt:
        return Fault(status=400, message="no such thing")
    if "[call]" in prompt and asked.turn == 0:
        return Reply(text="Let me see.", calls=tuple(ToolUse(name, {"text": "hi"}) for name in asked.tools))
    said = re.search(r"\[say:([^\]]*)\]", prompt)
    words = said[1] if said else f"Answered: {' / '.join(_of_user(asked))}"
    return Reply(text=words, **_timing(prompt))


def _timing(prompt: str) -> dict[str, Any]:
    gate = re.search(r"\[hang:([\w-]+)\]", prompt)
    if gate:
        return {"hang": gate[1]}
    midway = re.search(r"\[midway:([\w-]+)\]", prompt)
    return {"hang": midway[1], "hang_after": 2} if midway else {}


def _of_user(asked: Asked) -> list[str]:
    return [content_text(message) for message in asked.messages if message["role"] == "user"]


SCRIPT = (plan, answer)
