"""What the counters tell of agents' calls, by model and by tool, and how /metrics shows it."""

from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from gateway.log_metrics import LogMetrics
from projections import call_counts, counters, tracked
from projections.check import verify_read_models
from projections.runner import PROJECTIONS, Runner
from projections.store import ReadStore
from runtime import commands
from runtime.commands import Usage
from runtime.event_log import EventLog
from runtime.events import StepError
from runtime.ids import NodeId
from tests.projections.writing import Writer


def agent(log: EventLog, number: int) -> Writer:
    return Writer(log, number).do(commands.Admit).start("a")


def a_run_of_each_kind(log: EventLog) -> None:
    """One that works after a refusal and a crash, one whose model never answers, one cut off by its node."""
    priced = Usage(
        model="small",
        input_tokens=10,
        output_tokens=4,
        cache_read_tokens=2,
        cost=0.000_000_25,
        cost_known=True,
    )
    run = agent(log, 1).ask("model-1", "small").retry("model-1", "RateLimited").ask("model-1", "small")
    run.answer("model-1", "assistant", usage=priced, duration_ms=700.0)
    run.ask("tool-c1", "weather", "tool").ask("tool-c1", "weather", "tool")
    run.answer("tool-c1", "tool", name="weather", duration_ms=30.0)
    run.ask("tool-c2", "weather", "tool").answer("tool-c2", "tool", name="weather", is_error=True)
    run.ask("model-2", "small").answer("model-2", "assistant", usage=priced, duration_ms=61_000.0)
    run.ask("model-3", "big").answer("model-3", "assistant", usage=Usage(model="big", input_tokens=1))

    gone = agent(log, 2).ask("model-1", "small").retry("model-1", "Surprise")
    error = StepError(type="ModelConnectionError", message="no answer")
    gone.do(commands.RecordFailed, node_id=NodeId("a"), attempt=1, error=error, draw=0.5)

    late = agent(log, 3)
    error = StepError(type="TimeoutError", message="a function's, for no model was asked")
    late.do(commands.RecordFailed, node_id=NodeId("a"), attempt=1, error=error, draw=0.5)


def shown(store: ReadStore) -> dict[tuple[Any, ...], int]:
    counted = call_counts.capped(counters.counts(store))
    return {(name, *labels.values()): value for name, labels, value in counted}


def test_calls_tokens_cost_and_failures_are_counted_by_model(log: EventLog, store: ReadStore) -> None:
    a_run_of_each_kind(log)
    Runner(log, store).catch_up()
    found = shown(store)
    assert (found["model_calls_total", "small"], found["model_calls_total", "big"]) == (2, 1)
    assert [found["model_unpriced_calls_total", model] for model in ("small", "big")] == [0, 1]
    assert found["model_cost_nanos", "small"] == 500
    tokens = {
        key[1]: value for key, value in found.items() if key[0] == "model_tokens_total" and "big" not in key
    }
    assert tokens == {"input": 20, "output": 8, "cache_read": 4, "cache_write": 0}
    assert found["model_retries_total", "small"] == 3, "refused, cut off by a crash, and a surprise"
    errors = {key[1:]: value for key, value in found.items() if key[0] == "model_errors_total"}
    assert errors == {
        ("RateLimited", "small"): 1,
        ("ModelConnectionError", "small"): 1,
        ("other", "small"): 1,
    }


def test_tool_calls_are_counted_by_outcome_and_a_crash_is_no_failure(log: EventLog, store: ReadStore) -> None:
    a_run_of_each_kind(log)
    Runner(log, store).catch_up()
    found = shown(store)
    assert found["tool_calls_total", "ok", "weather"] == 1
    assert found["tool_calls_total", "error", "weather"] == 1
    assert found["tool_retries_total", "weather"] == 1


def test_latency_is_a_histogram_by_model_and_by_tool(log: EventLog, store: ReadStore) -> None:
    a_run_of_each_kind(log)
    Runner(log, store).catch_up()
    counted = call_counts.capped(counters.counts(store))
    big, small = call_counts.durations(counted, "model")
    assert (big.name, small.name, small.sum_seconds) == ("big", "small", 61.7)
    assert [dict(small.buckets)[bound] for bound in ("0.5", "1.0", "60.0", "120.0", "+Inf")] == [
        0,
        1,
        1,
        2,
        2,
    ]
    (weather,) = call_counts.durations(counted, "tool")
    assert (dict(weather.buckets)["0.01"], weather.sum_seconds) == (1, 0.03)


def test_models_beyond_the_first_are_shown_as_one(
    log: EventLog, store: ReadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_counts, "SHOWN_MAX", 2)
    run = agent(log, 1)
    for number, model in enumerate(("zebra", "yak", "ant", "bee", "ant")):
        usage = Usage(model=model)
        run.ask(f"model-{number}", model).answer(f"model-{number}", "assistant", usage=usage)
    Runner(log, store).catch_up()
    found = shown(store)
    calls = {key[1]: value for key, value in found.items() if key[0] == "model_calls_total"}
    assert calls == {"zebra": 1, "yak": 1, "other": 3}, "by when they came, so that no count ever falls"


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_counts_do_not_depend_on_how_the_log_was_cut(
    log: EventLog, store: ReadStore, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    a_run_of_each_kind(log)
    monkeypatch.setattr(tracked, "BATCH_EVENTS_MAX", size)
    Runner(log, store).catch_up()
    monkeypatch.setattr(tracked, "BATCH_EVENTS_MAX", 1_000)
    assert list(verify_read_models(log, store, PROJECTIONS)) == []


def test_flows_of_single_resources_count_as_one_flow(log: EventLog, store: ReadStore) -> None:
    origin = counters.Origin("acme", "task-0199a000-0000-7000-8000-000000000001", "1", "EXTERNAL", 0)
    assert origin.flow == "task-*"
    assert origin._replace(flow_id="agent-0199a00000007000800000000000000a").flow == "agent-*"
    assert origin._replace(flow_id="task-list").flow == "task-list"


def test_metrics_show_calls_cost_and_latency(log: EventLog, store: ReadStore) -> None:
    a_run_of_each_kind(log)
    runner = Runner(log, store)
    runner.catch_up()
    registry = CollectorRegistry()
    registry.register(LogMetrics(store, runner))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"heliograph_{name}", labels)

    assert value("model_calls_total", model="small") == 2
    assert value("model_cost_dollars_total", model="small") == 0.000_000_5
    assert value("model_errors_total", model="small", error="RateLimited") == 1
    assert value("model_seconds_bucket", model="small", le="1.0") == 1
    assert value("model_seconds_count", model="small") == 2
    assert value("tool_calls_total", tool="weather", outcome="error") == 1
    assert value("tool_seconds_sum", tool="weather") == 0.03
    assert value("executions_total", flow="test-flow", source="CHATBOT", status="queued", tenant="acme") == 3
    assert value("model_first_seen_total", model="small") is None
