"""Nodes: attempts, outcomes, retries, waits, signals, timers, children, map items."""

import pytest
from msgspec.structs import replace

from runtime import commands, events
from runtime.errors import Diverged, InvalidTransition
from runtime.events import ItemOutcome, StepError
from runtime.evolution import evolve
from runtime.execution import fold
from runtime.ids import SECOND
from runtime.plan import RetryPolicy
from runtime.scheduling import wake_at
from tests.runtime.scenario import T0, Scenario, kinds, node, plan_of

A = node("a")
CHAIN = plan_of({"a": (), "b": ("a",)})
RETRYING = plan_of(
    {"a": (), "b": ("a",)},
    retry={"a": RetryPolicy(attempts=3, backoff_seconds=10.0, jitter=0.0)},
)
BOOM = StepError(type="ValueError", message="boom")


def failed(scenario: Scenario, attempt: int = 1, error: StepError = BOOM) -> list[str]:
    return kinds(scenario.when(commands.RecordFailed, node_id=A, attempt=attempt, error=error, draw=0.5))


def waiting_for_signal(**fields: object) -> Scenario:
    scenario = Scenario(CHAIN).started("a")
    scenario.when(commands.RecordWaiting, node_id=A, attempt=1, signal="go", **fields)
    return scenario


def signalled(scenario: Scenario, signal_id: str = "s1", name: str = "go", payload: object = 1) -> list[str]:
    return kinds(scenario.when(commands.Signal, signal_id=signal_id, name=name, payload=payload))


# --- outcomes ---------------------------------------------------------------------------------------


def test_a_node_starts_with_attempt_one_and_where_it_runs() -> None:
    (started,) = Scenario(CHAIN).when(commands.StartNode, node_id=A, where="worker-3")
    assert isinstance(started, events.NodeStarted)
    assert (started.attempt, started.where) == (1, "worker-3")


def test_a_running_node_started_again_repeats_its_attempt_without_a_record() -> None:
    scenario = Scenario(CHAIN).started("a")
    scenario.when(commands.TakeOver, owner="host-2")
    assert scenario.when(commands.StartNode, node_id=A) == []
    assert scenario.node("a").attempt == 1


def test_a_completed_node_keeps_its_output_and_never_starts_again() -> None:
    scenario = Scenario(CHAIN).started("a")
    scenario.when(commands.RecordCompleted, node_id=A, attempt=1, output={"n": 1})
    assert scenario.node("a").output == {"n": 1}
    with pytest.raises(InvalidTransition, match="completed"):
        scenario.when(commands.StartNode, node_id=A)


def test_a_repeated_outcome_is_recorded_once() -> None:
    scenario = Scenario(CHAIN).completed("a")
    assert scenario.when(commands.RecordCompleted, node_id=A, attempt=1, output="other") == []
    assert failed(scenario) == []


def test_an_outcome_of_a_node_that_never_started_is_dropped() -> None:
    assert Scenario(CHAIN).when(commands.RecordCompleted, node_id=A, attempt=1) == []


def test_a_late_outcome_of_an_old_attempt_is_dropped() -> None:
    scenario = Scenario(RETRYING).started("a")
    failed(scenario)
    scenario.after(10).started("a")
    assert scenario.node("a").attempt == 2
    assert scenario.when(commands.RecordCompleted, node_id=A, attempt=1, output="late") == []
    assert failed(scenario, attempt=1) == []
    assert kinds(scenario.when(commands.RecordCompleted, node_id=A, attempt=2)) == ["node_completed"]


def test_an_outcome_that_comes_while_the_next_attempt_is_awaited_is_dropped() -> None:
    scenario = Scenario(RETRYING).started("a")
    failed(scenario)
    assert scenario.when(commands.RecordCompleted, node_id=A, attempt=1) == []
    assert scenario.node("a").status == "retrying"


def test_a_skip_of_a_node_that_started_is_refused() -> None:
    with pytest.raises(InvalidTransition, match="running"):
        Scenario(CHAIN).started("a").when(commands.SkipNode, node_id=A, reason="condition")


def test_a_skipped_node_counts_as_ended() -> None:
    scenario = Scenario(CHAIN)
    scenario.when(commands.SkipNode, node_id=A, reason="condition")
    assert (scenario.state.completed_nodes, scenario.state.progress) == (1, 50.0)


# --- failures and retries -----------------------------------------------------------------------------


def test_a_final_failure_fails_the_execution_and_names_the_node() -> None:
    scenario = Scenario(CHAIN).started("a")
    assert failed(scenario) == ["node_failed", "failed"]
    assert (scenario.state.error, scenario.state.failed_node) == (BOOM, "a")


def test_a_failure_with_attempts_left_is_retried_after_the_back_off() -> None:
    scenario = Scenario(RETRYING).started("a")
    assert failed(scenario) == ["node_failed"]
    state = scenario.node("a")
    assert (state.status, state.wake_at) == ("retrying", T0 + 10 * SECOND)
    assert (scenario.state.status, scenario.state.retry_count) == ("waiting", 1)
    scenario.after(10).started("a")
    failed(scenario, attempt=2)
    assert scenario.node("a").wake_at == T0 + 30 * SECOND, "the back-off doubles"
    assert scenario.state.retry_count == 2
    scenario.after(20).started("a")
    assert failed(scenario, attempt=3) == ["node_failed", "failed"]
    assert scenario.state.retry_count == 2, "the last failure is no retry"


def test_a_retried_node_that_succeeds_counts_once() -> None:
    scenario = Scenario(RETRYING).started("a")
    failed(scenario)
    scenario.after(10).completed("a")
    assert scenario.state.completed_nodes == 1
    assert scenario.node("a").error is None
    assert scenario.node("a").started_at == T0, "a node started with its first attempt"


def test_an_error_outside_the_retried_types_is_final() -> None:
    plan = plan_of({"a": ()}, retry={"a": RetryPolicy(attempts=5, on=("TimeoutError",))})
    scenario = Scenario(plan).started("a")
    assert failed(scenario) == ["node_failed", "failed"]


def test_the_jitter_spreads_the_back_off_on_both_sides() -> None:
    policy = RetryPolicy(attempts=2, backoff_seconds=10.0, jitter=0.2)
    assert policy.retry_at(T0, 1, "E", 0.0) == T0 + 8 * SECOND
    assert policy.retry_at(T0, 1, "E", 0.5) == T0 + 10 * SECOND
    assert policy.retry_at(T0, 2, "E", 0.5) is None


def test_the_back_off_has_a_ceiling_however_many_attempts() -> None:
    policy = RetryPolicy(attempts=10_000, backoff_factor=10.0, backoff_max_seconds=60.0, jitter=0.0)
    assert policy.retry_at(T0, 9_000, "E", 0.5) == T0 + 60 * SECOND


# --- signals --------------------------------------------------------------------------------------------


def test_a_signal_completes_the_node_that_waits_for_it() -> None:
    scenario = waiting_for_signal()
    assert scenario.state.status == "waiting"
    assert signalled(scenario, payload={"ok": True}) == ["signal_received", "node_completed"]
    assert scenario.node("a").output == {"ok": True}
    assert scenario.state.signals == ()


def test_a_signal_that_comes_early_is_kept_for_the_node() -> None:
    scenario = Scenario(CHAIN)
    assert signalled(scenario, payload="early") == ["signal_received"]
    scenario.started("a")
    recorded = scenario.when(commands.RecordWaiting, node_id=A, attempt=1, signal="go")
    assert kinds(recorded) == ["node_waiting", "node_completed"]
    assert scenario.node("a").output == "early"
    assert scenario.state.signals == ()


def test_early_signals_of_one_name_are_taken_in_order_of_arrival() -> None:
    scenario = Scenario(CHAIN)
    signalled(scenario, "s1", payload=1)
    signalled(scenario, "s2", name="other", payload=2)
    signalled(scenario, "s3", payload=3)
    for name, expected in (("a", 1), ("b", 3)):
        scenario.started(name)
        scenario.when(commands.RecordWaiting, node_id=node(name), attempt=1, signal="go")
        assert scenario.node(name).output == expected
    assert [left.name for left in scenario.state.signals] == ["other"]


def test_a_signal_of_another_name_does_not_wake_the_node() -> None:
    scenario = waiting_for_signal()
    assert signalled(scenario, name="stop") == ["signal_received"]
    assert scenario.node("a").status == "waiting"


def test_a_repeated_signal_is_recorded_once() -> None:
    scenario = waiting_for_signal()
    signalled(scenario)
    assert signalled(scenario) == []


def test_a_repeat_of_an_accepted_signal_after_the_end_is_no_error() -> None:
    scenario = waiting_for_signal()
    signalled(scenario)
    scenario.completed("b").when(commands.Complete)
    assert signalled(scenario) == []


def test_one_signal_wakes_one_node() -> None:
    scenario = Scenario(plan_of({"a": (), "b": ()})).started("a", "b")
    for name in ("a", "b"):
        scenario.when(commands.RecordWaiting, node_id=node(name), attempt=1, signal="go")
    signalled(scenario)
    assert (scenario.node("a").status, scenario.node("b").status) == ("completed", "waiting")


def test_a_signal_beyond_the_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.execution.SIGNALS_MAX", 1)
    scenario = Scenario(CHAIN)
    signalled(scenario, "s1")
    with pytest.raises(InvalidTransition, match="signals"):
        signalled(scenario, "s2")


def test_a_signal_reaches_a_paused_execution() -> None:
    scenario = waiting_for_signal()
    scenario.when(commands.Pause)
    assert signalled(scenario) == ["signal_received", "node_completed"]
    assert scenario.state.status == "paused"


# --- timers ---------------------------------------------------------------------------------------------


def test_a_due_timer_completes_its_node() -> None:
    scenario = Scenario(CHAIN).started("a")
    scenario.when(commands.RecordWaiting, node_id=A, attempt=1, until=T0 + 5 * SECOND)
    scenario.after(5)
    assert kinds(scenario.when(commands.FireTimer, node_id=A)) == ["timer_fired", "node_completed"]
    assert scenario.when(commands.FireTimer, node_id=A) == []


def test_a_timer_that_is_not_due_changes_nothing() -> None:
    scenario = Scenario(CHAIN).started("a")
    scenario.when(commands.RecordWaiting, node_id=A, attempt=1, until=T0 + 5 * SECOND)
    assert scenario.after(4).when(commands.FireTimer, node_id=A) == []


def test_a_wait_without_timer_never_fires() -> None:
    assert waiting_for_signal().after(10_000).when(commands.FireTimer, node_id=A) == []


def test_a_signal_that_does_not_come_in_time_fails_the_node() -> None:
    scenario = waiting_for_signal(until=T0 + 5 * SECOND).after(5)
    assert kinds(scenario.when(commands.FireTimer, node_id=A)) == ["timer_fired", "node_failed", "failed"]
    assert scenario.state.error is not None
    assert scenario.state.error.type == "SignalTimeout"


def test_a_signal_that_does_not_come_in_time_may_be_done_without() -> None:
    scenario = waiting_for_signal(until=T0 + 5 * SECOND, on_timeout="continue").after(5)
    assert kinds(scenario.when(commands.FireTimer, node_id=A)) == ["timer_fired", "node_completed"]
    assert scenario.node("a").output is None


def test_a_timer_after_the_signal_changes_nothing() -> None:
    scenario = waiting_for_signal(until=T0 + 5 * SECOND)
    signalled(scenario)
    assert scenario.after(5).when(commands.FireTimer, node_id=A) == []
    assert wake_at(scenario.state) is None


def test_a_timer_after_an_accepted_cancel_changes_nothing() -> None:
    scenario = Scenario(plan_of({"a": (), "b": ()})).started("a", "b")
    scenario.when(commands.RecordWaiting, node_id=A, attempt=1, until=T0 + SECOND)
    scenario.when(commands.RequestCancel)
    assert scenario.after(2).when(commands.FireTimer, node_id=A) == []


# --- children -------------------------------------------------------------------------------------------


def with_child(plan: str = "") -> Scenario:
    scenario = Scenario(RETRYING if plan == "retrying" else CHAIN).started("a")
    scenario.when(commands.RecordWaiting, node_id=A, attempt=1, child_id="child-1", child_flow="f")
    return scenario


def test_a_node_that_waits_for_a_child_counts_as_active() -> None:
    scenario = with_child()
    assert (scenario.state.active_nodes, scenario.state.waiting_nodes) == (1, 0)
    assert scenario.state.status == "running"


def test_the_childs_end_completes_the_node_once() -> None:
    scenario = with_child()
    end = {"node_id": A, "child_id": "child-1", "output": 7}
    assert kinds(scenario.when(commands.RecordChildEnd, **end)) == ["node_completed"]
    assert scenario.node("a").output == 7
    assert scenario.when(commands.RecordChildEnd, **end) == []


def test_the_end_of_another_child_changes_nothing() -> None:
    scenario = with_child()
    assert scenario.when(commands.RecordChildEnd, node_id=A, child_id="child-0") == []


def test_the_childs_failure_fails_the_node() -> None:
    scenario = with_child()
    recorded = scenario.when(commands.RecordChildEnd, node_id=A, child_id="child-1", error=BOOM)
    assert kinds(recorded) == ["node_failed", "failed"]


def test_the_childs_failure_is_retried_with_a_new_child() -> None:
    scenario = with_child("retrying")
    recorded = scenario.when(commands.RecordChildEnd, node_id=A, child_id="child-1", error=BOOM)
    assert kinds(recorded) == ["node_failed"]
    scenario.after(10).started("a")
    scenario.when(commands.RecordWaiting, node_id=A, attempt=2, child_id="child-2", child_flow="f")
    assert scenario.when(commands.RecordChildEnd, node_id=A, child_id="child-1", output=1) == []
    assert scenario.node("a").status == "waiting"


# --- map items ------------------------------------------------------------------------------------------


def test_map_items_are_recorded_once_each() -> None:
    scenario = Scenario(CHAIN).started("a")
    items = (ItemOutcome(index=0, output=1), ItemOutcome(index=1, error=BOOM))
    (progressed,) = scenario.when(commands.RecordProgress, node_id=A, attempt=1, total=3, items=items)
    assert isinstance(progressed, events.NodeProgressed)
    assert progressed.items == items
    assert scenario.when(commands.RecordProgress, node_id=A, attempt=1, total=3, items=items) == []


def test_a_recorded_item_success_stands_and_a_failure_may_be_mended() -> None:
    scenario = Scenario(CHAIN).started("a")
    first = (ItemOutcome(index=0, output=1), ItemOutcome(index=1, error=BOOM))
    scenario.when(commands.RecordProgress, node_id=A, attempt=1, total=2, items=first)
    later = (ItemOutcome(index=0, error=BOOM), ItemOutcome(index=1, output=2))
    (progressed,) = scenario.when(commands.RecordProgress, node_id=A, attempt=1, total=2, items=later)
    assert isinstance(progressed, events.NodeProgressed)
    assert [item.index for item in progressed.items] == [1]
    assert [item.output for item in scenario.node("a").outcomes.values()] == [1, 2]


def test_one_report_with_an_item_twice_records_it_once() -> None:
    scenario = Scenario(CHAIN).started("a")
    items = (ItemOutcome(index=0, output=1), ItemOutcome(index=0, error=BOOM))
    scenario.when(commands.RecordProgress, node_id=A, attempt=1, total=1, items=items)
    assert scenario.node("a").outcomes[0].output == 1


def test_recorded_items_survive_a_retry_of_the_map() -> None:
    scenario = Scenario(RETRYING).started("a")
    scenario.when(
        commands.RecordProgress, node_id=A, attempt=1, total=2, items=(ItemOutcome(index=0, output=1),)
    )
    failed(scenario)
    scenario.after(10).started("a")
    assert dict(scenario.node("a").outcomes) == {0: ItemOutcome(index=0, output=1)}


# --- progress (executions contract 3.2) -------------------------------------------------------------------


def test_progress_is_the_share_of_ended_nodes_and_full_only_when_completed() -> None:
    scenario = Scenario(plan_of({"a": (), "b": ("a",), "c": ("b",), "d": ("c",)}))
    seen = [scenario.state.progress]
    for name in ("a", "b", "c", "d"):
        scenario.completed(name)
        seen.append(scenario.state.progress)
    assert seen == [0.0, 25.0, 50.0, 75.0, 75.0]
    scenario.when(commands.Complete)
    assert scenario.state.progress == 100.0


def test_progress_has_two_decimals() -> None:
    scenario = Scenario(plan_of({"a": (), "b": (), "c": ()})).completed("a")
    assert scenario.state.progress == 33.33


def test_progress_of_a_very_wide_plan_does_not_round_up_to_full() -> None:
    scenario = Scenario(CHAIN).started("a")
    before_last = replace(scenario.state, total_nodes=30_000, completed_nodes=29_998)
    completed = events.NodeCompleted(
        originator_id=before_last.execution_id,
        originator_version=before_last.version + 1,
        at=T0,
        node_id="a",
    )
    assert evolve(before_last, completed).progress == 99.99


def test_the_current_node_is_the_latest_started_unfinished_one() -> None:
    scenario = Scenario(plan_of({"a": (), "b": (), "c": ()})).started("a", "b")
    assert scenario.state.current_node == "b"
    scenario.when(commands.RecordCompleted, node_id=node("b"), attempt=1)
    assert scenario.state.current_node == "a"
    scenario.when(commands.RecordCompleted, node_id=A, attempt=1)
    assert scenario.state.current_node is None


# --- histories nobody can have written ----------------------------------------------------------------------


def test_an_empty_history_has_no_state() -> None:
    assert fold([]) is None


def test_a_history_that_does_not_begin_with_queued_diverges() -> None:
    with pytest.raises(Diverged, match="begins with"):
        fold(Scenario(CHAIN).log[1:])


def test_a_gap_in_the_versions_diverges() -> None:
    log = Scenario(CHAIN).completed("a").log
    with pytest.raises(Diverged, match="can't follow"):
        fold([*log[:2], *log[3:]])


def test_an_event_after_the_end_diverges() -> None:
    scenario = Scenario(CHAIN)
    scenario.when(commands.RequestCancel)
    after = events.Paused(
        originator_id=scenario.state.execution_id, originator_version=scenario.state.version + 1, at=T0
    )
    with pytest.raises(Diverged, match="cancelled"):
        evolve(scenario.state, after)


def test_an_outcome_of_a_node_that_never_started_diverges() -> None:
    scenario = Scenario(CHAIN)
    ghost = events.NodeCompleted(
        originator_id=scenario.state.execution_id,
        originator_version=scenario.state.version + 1,
        at=T0,
        node_id="ghost",
    )
    with pytest.raises(Diverged, match="never started"):
        evolve(scenario.state, ghost)


def test_an_event_of_another_kind_of_stream_diverges() -> None:
    scenario = Scenario(CHAIN)
    strange = events.FlowDisabled(
        originator_id=scenario.state.execution_id, originator_version=scenario.state.version + 1, at=T0
    )
    with pytest.raises(Diverged, match="no event of a running execution"):
        evolve(scenario.state, strange)
