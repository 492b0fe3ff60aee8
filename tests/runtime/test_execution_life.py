"""The whole execution: queue, admission, pause, cancel, deadline, ends."""

import pytest

from runtime import commands, events
from runtime.commands import Command
from runtime.errors import InvalidTransition
from runtime.events import StepError
from runtime.execution import contract_status, start
from runtime.ids import SECOND
from runtime.state import TERMINAL
from tests.runtime.scenario import EXECUTION, T0, Scenario, kinds, node, plan_of

CHAIN = plan_of({"a": (), "b": ("a",)})
BOOM = StepError(type="ValueError", message="boom")

ENDS: dict[str, tuple[type[Command], dict[str, object]]] = {
    "completed": (commands.Complete, {}),
    "failed": (commands.Fail, {"error": BOOM}),
    "timed_out": (commands.TimeOut, {}),
    "cancelled": (commands.RequestCancel, {}),
}


def ended(status: str) -> Scenario:
    scenario = Scenario(CHAIN).completed("a", "b")
    kind, fields = ENDS[status]
    scenario.when(kind, **fields)
    assert scenario.state.status == status
    return scenario


def test_a_start_is_queued_as_version_one_with_what_was_asked() -> None:
    scenario = Scenario(CHAIN, admitted=False, input={"x": 1}, correlation_id="story", request_key="k")
    (queued,) = scenario.log
    assert isinstance(queued, events.Queued)
    assert (queued.originator_id, queued.originator_version, queued.at) == (EXECUTION, 1, T0)
    assert (queued.input, queued.corr, queued.request_key) == ({"x": 1}, "story", "k")
    assert (queued.total_nodes, queued.owner) == (2, "host-1")
    assert scenario.state.status == "queued"
    assert scenario.state.progress == 0.0


def test_the_timeout_of_the_request_wins_over_the_flows() -> None:
    plan = plan_of({"a": ()}, timeout_seconds=60.0)
    assert Scenario(plan, timeout_seconds=5.0).state.deadline_at == T0 + 5 * SECOND
    assert Scenario(plan).state.deadline_at == T0 + 60 * SECOND
    assert Scenario(CHAIN).state.deadline_at is None


def test_admission_records_the_start_once() -> None:
    scenario = Scenario(CHAIN, admitted=False).after(2)
    assert kinds(scenario.when(commands.Admit)) == ["started"]
    assert scenario.state.started_at == T0 + 2 * SECOND
    assert scenario.when(commands.Admit) == []


def test_no_node_starts_before_admission_is_recorded_as_running() -> None:
    scenario = Scenario(CHAIN, admitted=False)
    with pytest.raises(InvalidTransition):
        scenario.when(commands.StartNode, node_id=node("a"))


def test_completion_carries_the_output_and_full_progress() -> None:
    scenario = Scenario(CHAIN).completed("a", "b").after(1)
    (completed,) = scenario.when(commands.Complete, output={"answer": 42})
    assert isinstance(completed, events.Completed)
    state = scenario.state
    assert (state.status, state.progress, state.output) == ("completed", 100.0, {"answer": 42})
    assert state.ended_at == T0 + SECOND
    assert state.current_node is None


def test_completion_with_an_open_node_is_refused() -> None:
    scenario = Scenario(CHAIN).completed("a").started("b")
    with pytest.raises(InvalidTransition, match="not all nodes"):
        scenario.when(commands.Complete)


def test_a_failure_of_the_flow_names_no_node() -> None:
    scenario = ended("failed")
    assert (scenario.state.error, scenario.state.failed_node) == (BOOM, "")
    assert scenario.state.progress < 100.0


def test_a_time_out_says_so() -> None:
    scenario = Scenario(CHAIN, timeout_seconds=5.0).started("a").after(5)
    (timed_out,) = scenario.when(commands.TimeOut)
    assert isinstance(timed_out, events.TimedOut)
    assert timed_out.timeout_seconds == 5.0
    assert scenario.state.error is not None
    assert scenario.state.error.message.startswith("Execution timed out")
    assert scenario.state.active_nodes == 0


@pytest.mark.parametrize("status", sorted(TERMINAL))
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (commands.RequestCancel, {}),
        (commands.ConfirmCancelled, {}),
        (commands.Pause, {}),
        (commands.Resume, {}),
        (commands.Admit, {}),
        (commands.TakeOver, {"owner": "host-2"}),
        (commands.Complete, {}),
        (commands.Fail, {"error": BOOM}),
        (commands.TimeOut, {}),
        (commands.StartNode, {"node_id": "a"}),
        (commands.SkipNode, {"node_id": "a", "reason": "condition"}),
        (commands.Signal, {"signal_id": "s1", "name": "go"}),
    ],
)
def test_after_the_end_a_command_is_refused(
    status: str, kind: type[Command], fields: dict[str, object]
) -> None:
    scenario = ended(status)
    with pytest.raises(InvalidTransition):
        scenario.when(kind, **fields)


@pytest.mark.parametrize("status", sorted(TERMINAL))
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (commands.RecordCompleted, {"attempt": 1}),
        (commands.RecordFailed, {"attempt": 1, "error": BOOM, "draw": 0.5}),
        (commands.RecordWaiting, {"attempt": 1}),
        (commands.RecordProgress, {"attempt": 1, "total": 3, "items": ()}),
        (commands.FireTimer, {}),
        (commands.RecordChildEnd, {"child_id": "c"}),
        (commands.BeginStep, {"attempt": 1, "step": "late", "kind": "model", "name": "m"}),
        (commands.RetryStep, {"attempt": 1, "step": "late", "error": BOOM, "retry_at": 1}),
        (commands.EndStep, {"attempt": 1, "step": "late", "role": "assistant", "content": "late"}),
        (commands.LogNode, {"attempt": 1, "event": "late"}),
    ],
)
def test_after_the_end_an_outcome_changes_nothing(
    status: str, kind: type[Command], fields: dict[str, object]
) -> None:
    scenario = ended(status)
    assert scenario.when(kind, node_id=node("a"), **fields) == []


# --- cancel -----------------------------------------------------------------------------------------


def test_cancel_while_queued_ends_at_once() -> None:
    scenario = Scenario(CHAIN, admitted=False)
    requested, cancelled = scenario.when(commands.RequestCancel, reason="changed my mind")
    assert isinstance(requested, events.CancellationRequested)
    assert (requested.previous_status, requested.reason) == ("queued", "changed my mind")
    assert isinstance(cancelled, events.Cancelled)
    assert scenario.state.started_at is None


def test_cancel_while_a_node_runs_waits_for_the_confirmation() -> None:
    scenario = Scenario(CHAIN).started("a")
    assert kinds(scenario.when(commands.RequestCancel)) == ["cancellation_requested"]
    assert scenario.state.status == "cancelling"
    assert contract_status(scenario.state.status) == "cancelled"
    accepted_at = scenario.now
    scenario.after(7)
    assert kinds(scenario.when(commands.ConfirmCancelled)) == ["cancelled"]
    assert scenario.state.ended_at == accepted_at, "a cancelled execution ended when the cancel was accepted"


def test_cancel_while_only_a_timer_runs_ends_at_once() -> None:
    scenario = Scenario(CHAIN).started("a")
    scenario.when(commands.RecordWaiting, node_id=node("a"), attempt=1, until=T0 + 60 * SECOND)
    assert kinds(scenario.when(commands.RequestCancel)) == ["cancellation_requested", "cancelled"]


def test_cancel_while_a_child_runs_waits_for_the_confirmation() -> None:
    scenario = Scenario(CHAIN).started("a")
    scenario.when(commands.RecordWaiting, node_id=node("a"), attempt=1, child_id="child", child_flow="f")
    assert kinds(scenario.when(commands.RequestCancel)) == ["cancellation_requested"]
    assert scenario.when(commands.RecordChildEnd, node_id=node("a"), child_id="child") == []
    assert kinds(scenario.when(commands.ConfirmCancelled)) == ["cancelled"]


def test_a_second_cancel_is_refused() -> None:
    scenario = Scenario(CHAIN).started("a")
    scenario.when(commands.RequestCancel)
    with pytest.raises(InvalidTransition, match="already accepted"):
        scenario.when(commands.RequestCancel)


def test_a_confirmation_without_a_request_is_refused() -> None:
    with pytest.raises(InvalidTransition, match="no cancellation"):
        Scenario(CHAIN).started("a").when(commands.ConfirmCancelled)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (commands.Complete, {}),
        (commands.Fail, {"error": BOOM}),
        (commands.TimeOut, {}),
        (commands.Pause, {}),
        (commands.Resume, {}),
        (commands.StartNode, {"node_id": "b"}),
        (commands.SkipNode, {"node_id": "b", "reason": "branch"}),
        (commands.Signal, {"signal_id": "s1", "name": "go"}),
    ],
)
def test_after_an_accepted_cancel_only_the_cancelled_end_is_left(
    kind: type[Command], fields: dict[str, object]
) -> None:
    scenario = Scenario(plan_of({"a": (), "b": ()})).started("a")
    scenario.when(commands.RequestCancel)
    with pytest.raises(InvalidTransition):
        scenario.when(kind, **fields)


def test_an_outcome_after_an_accepted_cancel_is_dropped() -> None:
    scenario = Scenario(CHAIN).started("a")
    scenario.when(commands.RequestCancel)
    assert scenario.when(commands.RecordCompleted, node_id=node("a"), attempt=1, output=1) == []
    assert scenario.node("a").status == "running"


def test_a_cancelled_paused_execution_is_cancelled() -> None:
    scenario = Scenario(CHAIN)
    scenario.when(commands.Pause)
    requested, _ = scenario.when(commands.RequestCancel)
    assert isinstance(requested, events.CancellationRequested)
    assert requested.previous_status == "paused"
    assert scenario.state.status == "cancelled"


# --- pause and resume ---------------------------------------------------------------------------------


def test_pause_is_recorded_once_and_stops_new_nodes() -> None:
    scenario = Scenario(CHAIN)
    assert kinds(scenario.when(commands.Pause)) == ["paused"]
    assert scenario.when(commands.Pause) == []
    with pytest.raises(InvalidTransition, match="paused"):
        scenario.when(commands.StartNode, node_id=node("a"))


def test_a_node_that_runs_during_a_pause_may_end() -> None:
    scenario = Scenario(CHAIN).started("a")
    scenario.when(commands.Pause)
    assert kinds(scenario.when(commands.RecordCompleted, node_id=node("a"), attempt=1)) == ["node_completed"]
    assert scenario.state.status == "paused"


def test_resume_of_what_is_not_paused_is_refused() -> None:
    with pytest.raises(InvalidTransition, match="not paused"):
        Scenario(CHAIN).when(commands.Resume)


def test_resume_goes_back_to_what_the_execution_does() -> None:
    queued = Scenario(CHAIN, admitted=False)
    queued.when(commands.Pause)
    queued.when(commands.Resume)
    assert queued.state.status == "queued"

    running = Scenario(CHAIN).started("a")
    running.when(commands.Pause)
    running.when(commands.Resume)
    assert running.state.status == "running"

    waiting = Scenario(CHAIN).started("a")
    waiting.when(commands.RecordWaiting, node_id=node("a"), attempt=1, signal="go")
    waiting.when(commands.Pause)
    waiting.when(commands.Resume)
    assert waiting.state.status == "waiting"


def test_admission_during_a_pause_leaves_it_paused() -> None:
    scenario = Scenario(CHAIN, admitted=False)
    scenario.when(commands.Pause)
    assert kinds(scenario.when(commands.Admit)) == ["started"]
    assert scenario.state.status == "paused"
    scenario.when(commands.Resume)
    assert scenario.state.status == "running"


# --- ownership, causation, bounds -----------------------------------------------------------------------


def test_a_take_over_records_the_new_owner() -> None:
    scenario = Scenario(CHAIN).started("a")
    (recovered,) = scenario.when(commands.TakeOver, owner="host-2")
    assert isinstance(recovered, events.Recovered)
    assert scenario.state.owner == "host-2"
    assert scenario.state.status == "running"


def test_versions_are_contiguous_and_time_never_goes_back() -> None:
    scenario = Scenario(CHAIN).after(5).started("a").after(-60)
    scenario.completed("b")
    assert [event.originator_version for event in scenario.log] == list(range(1, len(scenario.log) + 1))
    times = [event.at for event in scenario.log]
    assert times == sorted(times)


def test_an_outcome_names_the_start_of_its_attempt_as_its_cause() -> None:
    scenario = Scenario(plan_of({"a": (), "b": ()}), correlation_id="story").started("a", "b")
    (completed,) = scenario.when(commands.RecordCompleted, node_id=node("a"), attempt=1)
    assert completed.cause == f"v{scenario.node('a').started_version}"
    assert completed.corr == "story"


def test_a_requests_own_cause_and_key_are_kept() -> None:
    (paused,) = Scenario(CHAIN).when(commands.Pause, by="key-7", cause="request-9")
    assert (paused.by, paused.cause) == ("key-7", "request-9")


def test_an_unknown_command_is_refused() -> None:
    with pytest.raises(InvalidTransition, match="StartExecution"):
        Scenario(CHAIN).decision(
            commands.StartExecution(
                at=T0, execution_id="x", tenant="t", flow_id="f", flow_version="v", source="s"
            )
        )


def test_at_the_bound_of_events_the_execution_fails_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.execution.EVENTS_MAX", 5)
    scenario = Scenario(CHAIN).started("a")
    scenario.when(commands.Pause)
    recorded = scenario.when(commands.Resume)
    assert kinds(recorded) == ["resumed", "failed"]
    assert scenario.state.error is not None
    assert scenario.state.error.type == "TooManyEvents"


def test_at_the_bound_of_events_an_accepted_cancel_still_ends_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtime.execution.EVENTS_MAX", 4)
    scenario = Scenario(CHAIN).started("a")
    assert kinds(scenario.when(commands.RequestCancel)) == ["cancellation_requested", "cancelled"]
    assert scenario.state.status == "cancelled"


def test_an_end_at_the_bound_of_events_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = Scenario(plan_of({"a": ()})).completed("a")
    monkeypatch.setattr("runtime.execution.EVENTS_MAX", scenario.state.version + 1)
    assert kinds(scenario.when(commands.Complete)) == ["completed"]


def test_a_start_needs_no_state() -> None:
    command = commands.StartExecution(
        at=T0, execution_id="x", tenant="t", flow_id="f", flow_version="v", source="s", owner="h"
    )
    decision = start(command, CHAIN)
    assert decision.state.version == 1
    assert decision.state.placement == "pooled"
