"""Spans of agents' calls, as a collector on loopback receives them."""

from __future__ import annotations

from collections.abc import Generator
from types import SimpleNamespace
from typing import cast

import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")

from actors.agents import tracing
from actors.step_journal import StepJournal
from runtime.commands import Usage
from tests.trace_collector import Collector, attributes_of, collecting

EXECUTION = "0199a000-0000-7000-8000-00000000beef"


def journal_of(execution_id: str = EXECUTION) -> StepJournal:
    """As much of one as a span looks at."""
    execution = SimpleNamespace(execution_id=execution_id)
    return cast("StepJournal", SimpleNamespace(execution=execution, node_id="agent", attempt=1))


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Generator[Collector]:
    with collecting() as (url, collector):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        spans = tracing.open_spans()
        monkeypatch.setattr(tracing, "_shared", lambda: spans)
        yield collector
        spans.close()


def test_a_model_call_is_told_by_the_conventions(collector: Collector) -> None:
    with tracing.model_span(journal_of(), "model-1", "small", "openai") as span:
        span.used(Usage(model="small-2026", input_tokens=7, output_tokens=3, cache_read_tokens=2))
    tracing.flush_spans()
    assert [span.name for span in collector.spans] == ["chat small"]
    assert attributes_of(collector.spans[0]) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "small",
        "gen_ai.response.model": "small-2026",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "gen_ai.usage.cache_creation.input_tokens": 0,
        "heliograph.execution.id": EXECUTION,
        "heliograph.node.id": "agent",
        "heliograph.node.attempt": 1,
        "heliograph.step": "model-1",
    }
    assert collector.services == {"heliograph"}


def test_a_tool_call_that_fails_says_so_without_its_message(collector: Collector) -> None:
    with tracing.tool_span(journal_of(), "tool-c1", "weather", "c1") as span:
        span.failed("ToolError")
    with (
        pytest.raises(ValueError, match="the user's words"),
        tracing.tool_span(journal_of(), "tool-c2", "weather", "c2"),
    ):
        raise ValueError("the user's words")
    tracing.flush_spans()
    assert [span.name for span in collector.spans] == ["execute_tool weather"] * 2
    assert [attributes_of(collector.spans[n])["error.type"] for n in (0, 1)] == ["ToolError", "ValueError"]
    assert [attributes_of(collector.spans[n])["gen_ai.tool.call.id"] for n in (0, 1)] == ["c1", "c2"]
    assert all(span.status.code == span.status.STATUS_CODE_ERROR for span in collector.spans)
    assert b"the user's words" not in b"".join(span.SerializeToString() for span in collector.spans)


def test_the_spans_of_an_execution_share_its_trace_in_every_process(collector: Collector) -> None:
    elsewhere = tracing.open_spans()
    # The second: another execution's call, begun by a task that came out of this one's.
    with (
        tracing.model_span(journal_of(), "model-1", "small", "openai"),
        tracing.model_span(journal_of("another"), "model-1", "small", "openai"),
    ):
        pass
    with elsewhere.around(journal_of(), "model-2", "chat", "small", {}):
        pass
    tracing.flush_spans()
    elsewhere.close()
    traces = {
        span.trace_id.hex()
        for span in collector.spans
        if attributes_of(span)["heliograph.execution.id"] == EXECUTION
    }
    assert traces == {EXECUTION.replace("-", "")}
    assert len(collector.spans) == 3
    assert all(not span.parent_span_id for span in collector.spans)


def test_without_the_usual_variables_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    spans = tracing.open_spans()
    with spans.around(journal_of(), "model-1", "chat", "small", {}) as span:
        span.used(Usage(model="small"))
        span.failed("Whatever")
    spans.flush()
    assert spans.is_off


def test_an_exporter_that_can_not_be_had_costs_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    assert tracing.open_spans().is_off
