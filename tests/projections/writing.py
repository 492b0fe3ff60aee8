"""Executions written to a real log by the code that hosts run, with every kind of end."""

from typing import Any

from runtime import commands
from runtime.commands import Command
from runtime.event_log import Append, Chain, EventLog
from runtime.events import StepError
from runtime.execution import decide, start
from runtime.ids import SECOND, Micros, NodeId
from runtime.plan import Plan, RetryPolicy
from tests.runtime.scenario import T0, plan_of

BOOM = StepError(type="ValueError", message="boom \x00 text")
PLAN = plan_of({"a": (), "b": ("a",)}, retry={"a": RetryPolicy(attempts=2, backoff_seconds=1.0, jitter=0.0)})


def execution_id(number: int) -> str:
    return f"0199a000-0000-7000-8000-{number:012d}"


class Writer:
    """One execution's only writer: decides, appends, goes on."""

    def __init__(self, log: EventLog, number: int, plan: Plan = PLAN, at: Micros = T0) -> None:
        self.log = log
        self.plan = plan
        self.now = at
        self.id = execution_id(number)
        self.chain = Chain()
        command = commands.StartExecution(
            at=at,
            execution_id=self.id,
            tenant="acme",
            flow_id=plan.flow_id,
            flow_version=plan.flow_version,
            source="CHATBOT",
            owner="host-1",
        )
        first = start(command, plan)
        self.state = first.state
        self._append(first.events)

    def do(self, command: type[Command], /, **fields: Any) -> "Writer":
        decision = decide(self.state, self.plan, command(at=self.now, **fields))
        self.state = decision.state
        self._append(decision.events)
        return self

    def after(self, seconds: float) -> "Writer":
        self.now = Micros(self.now + int(seconds * SECOND))
        return self

    def start(self, name: str) -> "Writer":
        return self.do(commands.StartNode, node_id=NodeId(name), where="worker-1")

    def run(self, name: str) -> "Writer":
        self.start(name)
        attempt = self.state.nodes[NodeId(name)].attempt
        return self.after(0.2).do(commands.RecordCompleted, node_id=NodeId(name), attempt=attempt)

    def fail(self, name: str, attempt: int) -> "Writer":
        return self.do(commands.RecordFailed, node_id=NodeId(name), attempt=attempt, error=BOOM, draw=0.5)

    def ask(self, step: str, name: str, kind: str = "model", node: str = "a") -> "Writer":
        """A call of an agent node begins, or begins again."""
        return self.do(commands.BeginStep, **self._at(node), step=step, kind=kind, name=name)

    def retry(self, step: str, error: str, node: str = "a") -> "Writer":
        failure = StepError(type=error, message="no")
        return self.do(
            commands.RetryStep, **self._at(node), step=step, error=failure, retry_at=self.now + SECOND
        )

    def answer(self, step: str, role: str, node: str = "a", **fields: Any) -> "Writer":
        return self.do(commands.EndStep, **self._at(node), step=step, role=role, **fields)

    def _at(self, node: str) -> dict[str, Any]:
        return {"node_id": NodeId(node), "attempt": self.state.nodes[NodeId(node)].attempt}

    def _append(self, events: Any) -> None:
        (outcome,) = self.log.append([Append(self.id, events, self.state, self.chain)])
        assert isinstance(outcome, tuple), outcome


def completed(log: EventLog, number: int) -> Writer:
    writer = Writer(log, number).do(commands.Admit)
    return writer.run("a").run("b").do(commands.Complete, output={"n": number})


def retried(log: EventLog, number: int) -> Writer:
    writer = Writer(log, number).do(commands.Admit).start("a").fail("a", 1)
    return writer.after(1).run("a").run("b").do(commands.Complete)


def failed(log: EventLog, number: int) -> Writer:
    writer = Writer(log, number).do(commands.Admit).start("a").fail("a", 1)
    return writer.after(1).start("a").fail("a", 2)


def cancelled(log: EventLog, number: int) -> Writer:
    writer = Writer(log, number).do(commands.Admit).start("a").do(commands.RequestCancel)
    return writer.after(3).do(commands.ConfirmCancelled)


def skipped(log: EventLog, number: int) -> Writer:
    writer = Writer(log, number).do(commands.Admit).run("a")
    return writer.do(commands.SkipNode, node_id=NodeId("b"), reason="condition").do(commands.Complete)


def running(log: EventLog, number: int) -> Writer:
    return Writer(log, number).do(commands.Admit).start("a")


KINDS = (completed, retried, failed, cancelled, skipped, running)


def write_some(log: EventLog, first: int, count: int) -> None:
    """``count`` executions of every kind in turn, numbered from ``first``."""
    for number in range(first, first + count):
        KINDS[number % len(KINDS)](log, number)
