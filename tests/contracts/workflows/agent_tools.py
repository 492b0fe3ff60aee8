"""Python functions that the agents of these scenarios use."""

from __future__ import annotations

from typing import Any

ROWS = {"kind": "python", "function": "tests.contracts.workflows.agent_tools:rows", "name": "rows"}
"""The tool definition of `rows`."""


def rows(topic: str) -> list[dict[str, Any]]:
    """A small table about a topic."""
    return [{"topic": topic, "count": 1}, {"topic": topic, "count": 2}]
