"""docs/agents.md is true: its examples are what the code takes, its names are the code's."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
import yaml

from actors.agents.prices import read_table
from gateway.dialects.workflows.companion_bodies import CreateAgent
from projections import call_counts
from runtime.agent_spec import AgentSpec, ToolSpec
from runtime.flow import parse_flow
from runtime.graph import compile_flow
from tests.sandbox import REPOSITORY, Sandbox

TEXT = (REPOSITORY / "docs" / "agents.md").read_text()
PRICES, TOOLS, FLOW = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def test_the_flow_compiles() -> None:
    assert list(compile_flow(parse_flow(FLOW)).steps) == ["kind", "answer"]


def test_the_tools_are_tools_of_flows_and_of_agents() -> None:
    tools: list[dict[str, Any]] = yaml.safe_load(TOOLS)
    kinds = {str(tool["kind"]) for tool in tools}
    assert len(msgspec.convert(tools, list[ToolSpec])) == len(tools)
    assert CreateAgent(name="x", tool_definitions=tools).tool_definitions == tools
    assert {f"| `{kind}` |" in TEXT for kind in kinds} == {True}
    assert kinds == {"flow", "python", "http", "mcp"}


def test_the_prices_are_read(sandbox: Sandbox) -> None:
    file = sandbox.root / "prices.yaml"
    file.write_text(PRICES)
    try:
        table = read_table(str(file))
    finally:
        file.unlink()
    row = table.row("my-model-2026")
    assert row is not None
    assert (row.input, row.cache_write) == (0.5, 0.6)


@pytest.mark.parametrize("name", ["max_turns", "caveman", "tsv_tool_results", "output_schema", "temperature"])
def test_the_fields_of_a_run_are_the_specifications(name: str) -> None:
    assert name in {field.name for field in msgspec.structs.fields(AgentSpec)}
    assert f"`{name}`" in TEXT


def test_the_metrics_are_those_that_are_shown() -> None:
    counters = set(re.findall(r"heliograph_(\w+_total)", TEXT))
    histograms = set(re.findall(r"heliograph_(\w+_seconds)", TEXT))
    assert counters == {"model_calls_total", "tool_calls_total"}
    assert histograms == {"model_seconds", "tool_seconds"}
    for metric in (*counters, *histograms):
        assert metric in (call_counts.__doc__ or "")
    assert f"The first {call_counts.SHOWN_MAX} models" in TEXT
