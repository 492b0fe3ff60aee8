"""The agent runs that are measured: what the model answers, and the flow that asks it."""

from typing import Any

RUN_SECONDS = 2.0
"""How long the model takes over both answers of a run: the least a run can take."""

DELTAS = 20
"""Of both answers together."""

SENT = "{sent_ns} "
"""A delta is the moment of its sending, so that whoever gets it knows how long it was on its way."""

TOOL: dict[str, Any] = {"kind": "python", "function": "bench.steps:pass_on"}

AGENT_RUN: dict[str, Any] = {
    "heliograph": 1,
    "id": "agent-bench",
    "nodes": [{"id": "agent", "kind": "agent", "prompt": "{{ inputs.prompt }}", "tools": [TOOL]}],
}


def _half(**more: Any) -> dict[str, Any]:
    pieces = [SENT] * (DELTAS // 2)
    return {"type": "reply", "pieces": pieces, "over_seconds": RUN_SECONDS / 2, **more}


_CALL = {"name": "pass_on", "arguments": {"value": "x"}}

QUICK = "quick"
"""A prompt that is answered at once, without a tool."""

SCRIPT: list[dict[str, Any]] = [
    {"prompt": QUICK, "turns": [{"type": "reply", "text": "An answer of five words."}]},
    {"turns": [_half(calls=[_CALL]), _half()]},
]
"""Half of the deltas and the tool call in the first answer, the other half in the second."""
