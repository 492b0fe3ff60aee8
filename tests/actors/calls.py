"""Calls of the sample functions, as a host makes them."""

from __future__ import annotations

from typing import Any

from actors.step_call import StepCall
from runtime.ids import ExecutionId, NodeId

STEPS = "tests.actors.sample_steps"
VALUES = "tests.actors.sample_values"


def call(function: str, arguments: dict[str, Any] | None = None, **others: Any) -> StepCall:
    """``function``: ``module:name``, or the name of one of `STEPS`; ``others``: fields of the call."""
    fields: dict[str, Any] = {
        "execution_id": ExecutionId("e1"),
        "node_id": NodeId("n1"),
        "attempt": 1,
        "key": "e1:n1:1",
        "function": function if ":" in function else f"{STEPS}:{function}",
        "arguments": arguments or {},
    }
    return StepCall(**(fields | others))
