"""Given events, when command, then events: one execution of a small plan, and a clock by hand."""

from collections.abc import Iterable, Mapping
from typing import Any

from runtime import commands
from runtime.commands import Command
from runtime.events import Event
from runtime.execution import Decision, decide, fold, start
from runtime.ids import SECOND, FlowId, FlowVersion, Micros, NodeId
from runtime.plan import Output, Plan, RetryPolicy, Scope, Step
from runtime.state import ExecutionState, NodeState

T0 = Micros(1_790_000_000 * SECOND)
EXECUTION = "0199a000-0000-7000-8000-000000000001"
NO_RETRY = RetryPolicy()


def node(name: str) -> NodeId:
    return NodeId(name)


def nothing(scope: Scope) -> Output:
    """The act of a step that these tests never perform."""
    return Output(None)


def plan_of(
    graph: Mapping[str, Iterable[str]],
    *,
    retry: Mapping[str, RetryPolicy] | None = None,
    timeout_seconds: float | None = None,
) -> Plan:
    """A plan whose nodes need those named; ``graph`` stands in graph order."""
    needs = {node(name): tuple(node(need) for need in names) for name, names in graph.items()}
    steps = {
        node_id: Step(
            node_id=node_id,
            name=node_id,
            kind="test",
            act=nothing,
            needs=before,
            dependents=tuple(other for other, theirs in needs.items() if node_id in theirs),
            retry=(retry or {}).get(node_id, NO_RETRY),
        )
        for node_id, before in needs.items()
    }
    return Plan(
        flow_id=FlowId("test-flow"),
        flow_version=FlowVersion("0123456789abcdef"),
        name="test",
        steps=steps,
        output=lambda scope: None,
        timeout_seconds=timeout_seconds,
    )


class Scenario:
    """One execution: its log so far, the state after it, and the time."""

    def __init__(self, plan: Plan, *, admitted: bool = True, **fields: Any) -> None:
        self.plan = plan
        self.now = T0
        command = commands.StartExecution(
            at=T0,
            execution_id=EXECUTION,
            tenant="acme",
            flow_id=plan.flow_id,
            flow_version=plan.flow_version,
            source="CHATBOT",
            owner="host-1",
            **fields,
        )
        first = start(command, plan)
        self.log: list[Event] = list(first.events)
        self.state: ExecutionState = first.state
        if admitted:
            self.when(commands.Admit)

    def after(self, seconds: float) -> "Scenario":
        self.now = Micros(self.now + int(seconds * SECOND))
        return self

    def decision(self, command: Command) -> Decision:
        """What would be decided; nothing is recorded."""
        return decide(self.state, self.plan, command)

    def when(self, kind: type[Command], /, **fields: Any) -> list[Event]:
        """The events the command caused, recorded; the replayed log gives the same state."""
        decision = self.decision(kind(at=self.now, **fields))
        self.log += decision.events
        self.state = decision.state
        replayed = fold(self.log)
        assert replayed == self.state, "replay differs from the live state"
        return list(decision.events)

    def started(self, *names: str) -> "Scenario":
        for name in names:
            self.when(commands.StartNode, node_id=node(name))
        return self

    def completed(self, *names: str) -> "Scenario":
        """Start and complete each node in turn."""
        for name in names:
            self.started(name)
            self.when(commands.RecordCompleted, node_id=node(name), attempt=self.node(name).attempt)
        return self

    def node(self, name: str) -> NodeState:
        return self.state.nodes[node(name)]


def kinds(recorded: Iterable[Event]) -> list[str]:
    """The stored names without their prefix, e.g. ``node_started``."""
    return [event.TOPIC.removeprefix("execution.") for event in recorded]
