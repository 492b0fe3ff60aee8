"""Models by name, and what their calls cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from actors.agents.errors import ModelNotConfigured
from actors.agents.home import AgentSettings
from actors.agents.models import Models
from actors.agents.prices import read_table

USED = RequestUsage(input_tokens=1_000_000, cache_read_tokens=400_000, output_tokens=100_000)


def test_cached_tokens_have_their_own_price() -> None:
    usage = read_table().usage("gpt-4.1", USED)
    assert usage.cost_known
    assert usage.cost == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 0.1 * 8)
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens) == (1_000_000, 400_000, 100_000)


@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("gpt-4.1-2025-04-14", 1_047_576),
        ("openai:gpt-4o-mini", 128_000),
        ("anthropic:claude-sonnet-4-5", 200_000),
        ("openai/gpt-5", 400_000),
        ("gpt-4.15", 128_000),
        ("somebody-s-own", 128_000),
    ],
)
def test_a_name_s_longest_row_counts(name: str, context: int) -> None:
    assert read_table().context_tokens(name) == context


def test_without_a_row_a_cost_is_0_and_unknown() -> None:
    usage = read_table().usage("somebody-s-own", USED)
    assert (usage.cost, usage.cost_known, usage.output_tokens) == (0.0, False, 100_000)


def test_tokens_nobody_told_make_the_cost_unknown() -> None:
    assert not read_table().usage("gpt-4.1", RequestUsage(unmeasured_requests=1)).cost_known


def test_an_operator_s_file_adds_and_replaces_rows(tmp_path: Path) -> None:
    own = tmp_path / "models.yaml"
    own.write_text("mine: {context_tokens: 5, input: 1, output: 2}\ngpt-4.1: {input: 0, output: 0}\n")
    table = read_table(str(own))
    assert table.context_tokens("mine") == 5
    assert table.usage("gpt-4.1", USED).cost == 0
    assert table.usage("gpt-4o", USED).cost > 0


@pytest.mark.parametrize("text", ["a: {price: 3}", "a: [1]", "{", "a: {input: x}"])
def test_a_faulty_file_is_named(tmp_path: Path, text: str) -> None:
    own = tmp_path / "models.yaml"
    own.write_text(text)
    with pytest.raises(ValueError, match=r"models\.yaml: "):
        read_table(str(own))


def test_a_local_server_s_names_may_hold_colons() -> None:
    models = Models(AgentSettings(model_url="http://127.0.0.1:9/v1"))
    assert models.named("qwen2.5:7b").name == "qwen2.5:7b"
    assert models.named("openai:gpt-4o").name == "gpt-4o"
    assert models.named("offline").name == "offline"


def test_the_offline_default_answers_for_every_name() -> None:
    models = Models(AgentSettings(model="offline", model_url="http://127.0.0.1:9/v1"))
    assert models.named("gpt-4o").name == "offline"


def test_no_default_and_no_name_is_not_configured() -> None:
    with pytest.raises(ModelNotConfigured):
        Models(AgentSettings()).named("")


def test_a_tool_is_sent_as_the_library_would_send_it_the_second_time_too() -> None:
    number = {"title": "N", "type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    optional = {"type": "object", "properties": {"n": {"type": "integer", "default": 1}}}
    tools = [
        ToolDefinition(name="add", description="adds", parameters_json_schema=number),
        ToolDefinition(name="loose", parameters_json_schema=number, strict=False),
        ToolDefinition(name="count", parameters_json_schema=optional),
    ]
    asked = ModelRequestParameters(function_tools=tools, output_tools=tools[:1])
    ours = Models(AgentSettings(model="m", model_url="http://127.0.0.1:1/v1")).named("m").model
    library = OpenAIChatModel("m", provider=OpenAICompatibleProvider("p", base_url="http://127.0.0.1:1/v1"))
    expected = library.customize_request_parameters(asked)
    assert [tool.strict for tool in expected.function_tools] == [True, False, False]
    assert [ours.customize_request_parameters(asked) for _ in range(2)] == [expected, expected]
