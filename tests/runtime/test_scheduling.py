"""Which nodes are due, when to wake, when an execution is finished, idle or overdue."""

from runtime import commands
from runtime.events import StepError
from runtime.ids import SECOND, NodeId
from runtime.plan import RetryPolicy
from runtime.scheduling import (
    NOTHING,
    Due,
    due_nodes,
    due_timers,
    is_finished,
    is_idle,
    is_overdue,
    wake_at,
)
from tests.runtime.scenario import T0, Scenario, node, plan_of

DIAMOND = plan_of({"a": (), "left": ("a",), "right": ("a",), "join": ("left", "right")})


def starts(scenario: Scenario) -> list[str]:
    return list(due_nodes(scenario.state, scenario.plan, scenario.now).start)


def skips(scenario: Scenario) -> list[tuple[NodeId, str]]:
    return list(due_nodes(scenario.state, scenario.plan, scenario.now).skip)


def complete(scenario: Scenario, name: str, *skipped: str) -> Scenario:
    scenario.started(name)
    scenario.when(
        commands.RecordCompleted,
        node_id=node(name),
        attempt=1,
        skips=tuple(node(skip) for skip in skipped),
    )
    return scenario


def test_roots_are_due_in_graph_order_once_admitted() -> None:
    plan = plan_of({"z": (), "a": (), "m": ("z",)})
    assert starts(Scenario(plan)) == ["z", "a"]
    assert starts(Scenario(plan, admitted=False)) == []


def test_a_join_waits_for_all_it_needs() -> None:
    scenario = complete(complete(Scenario(DIAMOND), "a"), "left")
    assert starts(scenario) == ["right"]
    assert starts(complete(scenario, "right")) == ["join"]


def test_a_started_node_is_not_due_again() -> None:
    scenario = complete(Scenario(DIAMOND), "a").started("left")
    assert starts(scenario) == ["right"]


def test_a_node_a_branch_decided_against_is_skipped() -> None:
    scenario = complete(Scenario(DIAMOND), "a", "right")
    assert starts(scenario) == ["left"]
    assert skips(scenario) == [(node("right"), "branch")]


def test_a_join_with_one_completed_predecessor_runs() -> None:
    scenario = complete(complete(Scenario(DIAMOND), "a", "right"), "left")
    scenario.when(commands.SkipNode, node_id=node("right"), reason="branch")
    assert starts(scenario) == ["join"]


def test_a_node_whose_predecessors_were_all_skipped_is_skipped_too() -> None:
    scenario = complete(Scenario(DIAMOND), "a", "left", "right")
    for name in ("left", "right"):
        scenario.when(commands.SkipNode, node_id=node(name), reason="branch")
    assert skips(scenario) == [(node("join"), "predecessors")]
    assert starts(scenario) == []


def test_a_skipped_node_waits_for_its_other_predecessors_first() -> None:
    plan = plan_of({"slow": (), "choice": (), "option": ("slow", "choice")})
    scenario = complete(Scenario(plan).started("slow"), "choice", "option")
    assert due_nodes(scenario.state, plan, scenario.now) == NOTHING
    scenario.when(commands.RecordCompleted, node_id=node("slow"), attempt=1)
    assert skips(scenario) == [(node("option"), "branch")]


def test_looking_only_at_the_dependents_finds_what_looking_everywhere_finds() -> None:
    def dependents_due(name: str) -> Due:
        return due_nodes(scenario.state, DIAMOND, T0, among=DIAMOND.steps[node(name)].dependents)

    scenario = complete(Scenario(DIAMOND), "a")
    assert dependents_due("a") == due_nodes(scenario.state, DIAMOND, T0)
    complete(scenario, "left")
    assert dependents_due("left") == NOTHING


def test_nothing_is_due_while_paused_or_cancelling() -> None:
    paused = complete(Scenario(DIAMOND), "a")
    paused.when(commands.Pause)
    assert starts(paused) == []
    cancelling = complete(Scenario(DIAMOND), "a").started("left")
    cancelling.when(commands.RequestCancel)
    assert starts(cancelling) == []


def test_what_came_due_during_a_pause_is_due_after_it() -> None:
    scenario = Scenario(DIAMOND).started("a")
    scenario.when(commands.Pause)
    scenario.when(commands.RecordCompleted, node_id=node("a"), attempt=1)
    scenario.when(commands.Resume)
    assert starts(scenario) == ["left", "right"]


def test_a_retry_is_due_when_its_back_off_is_over() -> None:
    plan = plan_of({"a": ()}, retry={"a": RetryPolicy(attempts=2, backoff_seconds=10.0, jitter=0.0)})
    scenario = Scenario(plan).started("a")
    error = StepError(type="E", message="m")
    scenario.when(commands.RecordFailed, node_id=node("a"), attempt=1, error=error, draw=0.5)
    assert wake_at(scenario.state) == T0 + 10 * SECOND
    assert starts(scenario.after(9)) == []
    assert starts(scenario.after(1)) == ["a"]
    assert due_timers(scenario.state, scenario.now) == (), "a back-off is no timer of a waiting node"


def test_the_earliest_timer_or_deadline_wakes() -> None:
    scenario = Scenario(plan_of({"a": (), "b": ()}), timeout_seconds=60.0).started("a", "b")
    assert wake_at(scenario.state) == T0 + 60 * SECOND
    for name, seconds in (("a", 20), ("b", 10)):
        until = T0 + seconds * SECOND
        scenario.when(commands.RecordWaiting, node_id=node(name), attempt=1, until=until)
    assert wake_at(scenario.state) == T0 + 10 * SECOND
    assert due_timers(scenario.state, T0) == ()
    scenario.after(20)
    assert due_timers(scenario.state, scenario.now) == (node("a"), node("b"))


def test_a_paused_execution_wakes_for_its_deadline_only() -> None:
    scenario = Scenario(plan_of({"a": ()}), timeout_seconds=60.0).started("a")
    scenario.when(commands.RecordWaiting, node_id=node("a"), attempt=1, until=T0 + SECOND)
    scenario.when(commands.Pause)
    assert wake_at(scenario.state) == T0 + 60 * SECOND
    scenario.when(commands.Resume)
    assert wake_at(scenario.state) == T0 + SECOND


def test_a_cancelling_execution_does_not_wake_for_its_deadline() -> None:
    scenario = Scenario(plan_of({"a": ()}), timeout_seconds=5.0).started("a")
    scenario.when(commands.RequestCancel)
    assert wake_at(scenario.state) is None
    assert not is_overdue(scenario.after(6).state, scenario.now)


def test_an_ended_execution_never_wakes() -> None:
    scenario = Scenario(plan_of({"a": ()}), timeout_seconds=5.0).started("a")
    scenario.when(commands.TimeOut)
    assert wake_at(scenario.state) is None
    assert not is_overdue(scenario.after(6).state, scenario.now)


def test_an_execution_is_overdue_from_its_deadline_on() -> None:
    scenario = Scenario(plan_of({"a": ()}), admitted=False, timeout_seconds=5.0)
    assert not is_overdue(scenario.after(4).state, scenario.now)
    assert is_overdue(scenario.after(1).state, scenario.now)


def test_an_execution_is_finished_when_every_node_ended() -> None:
    scenario = complete(Scenario(plan_of({"a": (), "b": ("a",)})), "a")
    assert not is_finished(scenario.state)
    scenario.when(commands.SkipNode, node_id=node("b"), reason="condition")
    assert is_finished(scenario.state)
    scenario.when(commands.Complete)
    assert not is_finished(scenario.state), "it is closed"


def test_a_paused_execution_is_not_finished_before_it_resumes() -> None:
    scenario = complete(Scenario(plan_of({"a": ()})), "a")
    scenario.when(commands.Pause)
    assert not is_finished(scenario.state)
    scenario.when(commands.Resume)
    assert is_finished(scenario.state)


def test_an_execution_is_idle_only_while_nothing_runs_and_something_is_awaited() -> None:
    scenario = Scenario(plan_of({"a": (), "b": ()}))
    assert not is_idle(scenario.state), "its nodes are due"
    scenario.started("a", "b")
    scenario.when(commands.RecordWaiting, node_id=node("a"), attempt=1, signal="go")
    assert not is_idle(scenario.state), "b runs"
    scenario.when(commands.RecordWaiting, node_id=node("b"), attempt=1, child_id="child", child_flow="f")
    assert not is_idle(scenario.state), "a lost notice of the child's end must not strand it"
    scenario.when(commands.RecordChildEnd, node_id=node("b"), child_id="child")
    assert is_idle(scenario.state)
    scenario.when(commands.RequestCancel)
    assert not is_idle(scenario.state)
