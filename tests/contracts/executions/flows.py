"""The flows the executions contract's scenarios run."""

from __future__ import annotations

from typing import Any

from tests.contracts.live_server import flow

_NEVER_IN_A_TEST = 600


def template(node_id: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"id": node_id, "kind": "template", "template": text, **fields}


def sleep(node_id: str, seconds: float, **fields: Any) -> dict[str, Any]:
    return {"id": node_id, "kind": "sleep", "seconds": seconds, **fields}


GREETING = flow(
    "greeting",
    template("hello", "Hello {{ inputs.query }}"),
    template("shout", "{{ nodes.hello }}!"),
    output={"answer": "${nodes.shout}"},
)

STRICT = flow(
    "strict",
    template("echo", "{{ inputs.query }}"),
    inputs={"type": "object", "required": ["query"], "properties": {"query": {"type": "string"}}},
)

CHAIN = flow(
    "chain",
    sleep("one", 0.4),
    sleep("two", 0.4, needs=["one"]),
    sleep("three", 0.4, needs=["two"]),
    sleep("four", 0.4, needs=["three"]),
)

FLAKY = flow(
    "flaky",
    template(
        "flaky",
        "{{ 1 // 0 if execution.attempt < 3 else 'third time' }}",
        retry={"attempts": 3, "backoff_seconds": 0.05, "jitter": 0},
    ),
    template("after", "{{ nodes.flaky }}"),
)

BROKEN = flow("broken", template("fine", "ok"), template("bad", "{{ nodes.fine }}{{ 1 // 0 }}"))

LATE = flow("late", sleep("rest", _NEVER_IN_A_TEST), timeout_seconds=0.5)

ENDLESS = flow("endless", sleep("rest", _NEVER_IN_A_TEST))

PAUSE = flow("pause", sleep("rest", 2.0))

BULKY = flow(
    "bulky", *(template(f"n{number}", "{{ 'x' * 200000 }}") for number in range(48)), output={"done": True}
)

HELD = flow(
    "held",
    {
        "id": "hold",
        "kind": "python",
        "function": "tests.contracts.executions.held:wait_for_file",
        "with": {"path": "${inputs.path}"},
    },
)

TALK = flow("talk", {"id": "answer", "kind": "chat_model", "prompt": "{{ inputs.q }}", "model": "offline"})
"""Text from a model; the library's own stand-in, so no endpoint is needed."""

ALL = (GREETING, STRICT, CHAIN, FLAKY, BROKEN, LATE, ENDLESS, PAUSE, BULKY, HELD, TALK)
