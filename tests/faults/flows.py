"""The flow of the workload, with every kind of node that leaves a trace of its own in the log."""

from __future__ import annotations

from typing import Any

from tests.contracts.live_server import flow

SIGNAL = "go"

PART = flow(
    "part",
    {"id": "rest", "kind": "sleep", "seconds": 0.05},
    {"id": "said", "kind": "template", "template": "part of {{ inputs.whole }}", "needs": ["rest"]},
    output="${nodes.said}",
)

WHOLE = flow(
    "whole",
    {"id": "hello", "kind": "template", "template": "Hello {{ inputs.name }}"},
    {
        "id": "length",
        "kind": "python",
        "function": "tests.faults.steps:measure",
        "with": {"text": "${nodes.hello}"},
        # A worker that is killed takes its step's attempt along.
        "retry": {"attempts": 20, "backoff_seconds": 0.1, "backoff_factor": 1},
    },
    {"id": "rest", "kind": "sleep", "seconds": 0.1, "needs": ["length"]},
    {
        "id": "words",
        "kind": "map",
        "over": "inputs.words",
        "concurrency": 2,
        "needs": ["hello"],
        "each": {
            "kind": "python",
            "function": "tests.faults.steps:shout",
            "with": {"word": "${item}"},
            "retry": {"attempts": 20, "backoff_seconds": 0.1, "backoff_factor": 1},
        },
    },
    {"id": "part", "kind": "flow", "flow": "part", "input": {"whole": "${nodes.hello}"}},
    {
        "id": "verdict",
        "kind": "wait_for_signal",
        "signal": SIGNAL,
        "timeout_seconds": 600,
        "needs": ["rest", "words", "part"],
    },
    {"id": "end", "kind": "template", "template": "{{ nodes.hello }}, {{ nodes.verdict.by }}"},
    output={
        "said": "${nodes.end}",
        "length": "${nodes.length}",
        "words": "${nodes.words.results}",
        "part": "${nodes.part}",
    },
)

ALL = (PART, WHOLE)

WORDS = ["one", "two", "three"]


def inputs_of(name: str) -> dict[str, Any]:
    return {"name": name, "words": WORDS}


def output_of(name: str) -> dict[str, Any]:
    """What `WHOLE` gives, however often it was interrupted."""
    return {
        "said": f"Hello {name}, {name}",
        "length": len(f"Hello {name}"),
        "words": [word.upper() for word in WORDS],
        "part": f"part of Hello {name}",
    }
