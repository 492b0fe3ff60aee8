"""The flows that are measured."""

from typing import Any

from bench.agent_flows import AGENT_RUN

THREE_TEMPLATES: dict[str, Any] = {
    "heliograph": 1,
    "id": "three-templates",
    "nodes": [
        {"id": "a", "kind": "template", "template": "hello {{ inputs.name }}"},
        {"id": "b", "kind": "template", "template": "{{ nodes.a }}, again"},
        {"id": "c", "kind": "template", "template": "{{ nodes.b }}, and again"},
    ],
}

THREE_FUNCTIONS: dict[str, Any] = {
    "heliograph": 1,
    "id": "three-functions",
    "nodes": [
        {
            "id": "a",
            "kind": "python",
            "function": "bench.steps:pass_on",
            "with": {"value": "${inputs.name}"},
        },
        {"id": "b", "kind": "python", "function": "bench.steps:pass_on", "with": {"value": "${nodes.a}"}},
        {"id": "c", "kind": "python", "function": "bench.steps:pass_on", "with": {"value": "${nodes.b}"}},
    ],
}

WAIT_THEN_TEMPLATE: dict[str, Any] = {
    "heliograph": 1,
    "id": "wait-then-template",
    "nodes": [
        {"id": "wait", "kind": "wait_for_signal", "signal": "go"},
        {"id": "a", "kind": "template", "template": "went on with {{ nodes.wait }}"},
    ],
}

FAN_OUT_NODES = 10

WAIT_THEN_CHAIN: dict[str, Any] = {
    "heliograph": 1,
    "id": "wait-then-chain",
    "nodes": [
        {"id": "n0", "kind": "wait_for_signal", "signal": "go"},
        *(
            {"id": f"n{number}", "kind": "template", "template": f"{{{{ nodes.n{number - 1} }}}}."}
            for number in range(1, FAN_OUT_NODES)
        ),
    ],
}

SLEEP_THEN_FUNCTION: dict[str, Any] = {
    "heliograph": 1,
    "id": "sleep-then-function",
    "nodes": [
        {"id": "a", "kind": "template", "template": "hello {{ inputs.name }}"},
        {"id": "sleep", "kind": "sleep", "seconds": 6, "needs": ["a"]},
        {
            "id": "b",
            "kind": "python",
            "function": "bench.steps:pass_on",
            "with": {"value": "${nodes.a}"},
            "needs": ["sleep"],
        },
    ],
}

WIDE: dict[str, Any] = {
    "heliograph": 1,
    "id": "wide",
    "nodes": [
        {
            "id": "each",
            "kind": "map",
            "source": "${inputs.source}",
            "each": {
                "kind": "python",
                "function": "bench.steps:toil",
                "with": {"item": "${item}", "rounds": "${inputs.rounds}"},
            },
        },
    ],
}

PUBLISHED = (
    THREE_TEMPLATES,
    THREE_FUNCTIONS,
    WAIT_THEN_TEMPLATE,
    WAIT_THEN_CHAIN,
    SLEEP_THEN_FUNCTION,
    WIDE,
    AGENT_RUN,
)
"""What every measured installation has."""
