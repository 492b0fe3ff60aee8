"""The agent runs that are measured: what the model answers, and the flow that asks it."""

from typing import Any

ANSWERS = 2
ANSWER_SECONDS = 2.0
ANSWER_DELTAS = 20

RUN_SECONDS = ANSWERS * ANSWER_SECONDS
"""How long the model takes over the answers of a run: the least a run can take."""

DELTAS = ANSWERS * ANSWER_DELTAS

SENT = "{sent_ns} "
"""A delta is the moment of its sending, so that whoever gets it knows how long it was on its way."""

SYSTEM_PROMPT = "You are measured."

TOOL: dict[str, Any] = {"kind": "python", "function": "bench.steps:pass_on"}

AGENT_RUN: dict[str, Any] = {
    "heliograph": 1,
    "id": "agent-bench",
    "nodes": [{"id": "agent", "kind": "agent", "prompt": "{{ inputs.prompt }}", "tools": [TOOL]}],
}


def _answer(**more: Any) -> dict[str, Any]:
    return {"type": "reply", "pieces": [SENT] * ANSWER_DELTAS, "over_seconds": ANSWER_SECONDS, **more}


_CALL = {"name": "pass_on", "arguments": {"value": "x"}}

QUICK = "quick"
"""A prompt that is answered at once, without a tool."""

SCRIPT: list[dict[str, Any]] = [
    {"prompt": QUICK, "turns": [{"type": "reply", "text": "An answer of five words."}]},
    {"turns": [_answer(calls=[_CALL]), _answer()]},
]
"""The first answer ends with the tool call, the second ends the run."""
