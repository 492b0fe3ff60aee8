"""Whatever happens to an execution, in whatever order: the promises about its history hold.

The machine plays the shell: it starts what is due, reports outcomes (also late, repeated and of given-up
attempts), crashes and folds the log again. A failure prints the steps that lead to it; ``--hypothesis-seed``
repeats a run.
"""

from collections.abc import Iterable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from runtime import codec, commands, events
from runtime.commands import Command
from runtime.errors import InvalidTransition
from runtime.event_log import Recorded
from runtime.events import TERMINAL_EVENTS, ChunkResult, Event, ItemOutcome, StepError
from runtime.execution import decide, fold, start
from runtime.ids import SECOND, Micros, NodeId, Position
from runtime.plan import Plan, RetryPolicy
from runtime.scheduling import NOTHING, due_nodes, due_timers, is_finished, is_overdue, wake_at
from runtime.state import ExecutionState
from runtime.verification import verify
from tests.runtime.scenario import EXECUTION, T0, plan_of

SIGNALS = ("go", "stop")
STEPS = ("model-1", "tool-a", "model-2")
ERROR = StepError(type="ValueError", message="boom")
END_STEPS_MAX = 2_000
"""Steps within which every execution can be brought to its end."""


def _items(chunks: Iterable[ChunkResult]) -> list[int]:
    return [item for chunk in chunks for item in range(chunk.first, chunk.first + chunk.items)]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A DAG of 1-6 nodes; each needs some of those before it; some are retried; some have a deadline."""
    size = draw(st.integers(1, 6))
    names = [f"n{index}" for index in range(size)]
    graph = {
        name: tuple(draw(st.sets(st.sampled_from(names[:index]), max_size=3))) if index else ()
        for index, name in enumerate(names)
    }
    graph = {name: tuple(sorted(needs)) for name, needs in graph.items()}
    retry = {
        name: RetryPolicy(attempts=draw(st.sampled_from([1, 2, 3, 5])), backoff_seconds=2.0) for name in names
    }
    return plan_of(graph, retry=retry, timeout_seconds=draw(st.sampled_from([None, None, 30.0])))


class Histories(RuleBasedStateMachine):
    plan: Plan
    state: ExecutionState
    now: Micros

    @initialize(plan=plans(), admitted=st.sampled_from([True, True, True, False]))
    def begin(self, plan: Plan, admitted: bool) -> None:
        self.plan = plan
        self.now = T0
        self.log: list[Event] = []
        self.stored: list[tuple[str, bytes]] = []
        self.tickets: list[tuple[NodeId, int]] = []
        self.children: list[tuple[NodeId, str]] = []
        self.steps: dict[tuple[NodeId, str], _Step] = {}
        command = commands.StartExecution(
            at=T0,
            execution_id=EXECUTION,
            tenant="acme",
            flow_id=plan.flow_id,
            flow_version=plan.flow_version,
            source="CHATBOT",
            owner="host-1",
            input={"x": [1, "two", None]},
        )
        first = start(command, plan)
        self.state = first.state
        self._record(first.events)
        if admitted:
            self._do(commands.Admit)
            for node_id in due_nodes(self.state, plan, self.now).start:
                self._start(node_id)

    # --- the shell -----------------------------------------------------------------------------------

    def _record(self, recorded: tuple[Event, ...]) -> None:
        for event in recorded:
            self._check(event)
            prev = codec.stored_hash(*self.stored[-1]) if self.stored else ""
            self.log.append(event)
            self.stored.append((event.TOPIC, codec.encode(event, prev)))
            if isinstance(event, events.NodeCompleted):
                # Its output stands for them: nobody asks for its calls again.
                self.steps = {key: step for key, step in self.steps.items() if key[0] != event.node_id}

    def _check(self, event: Event) -> None:
        """What the events before it allow, read from the log alone."""
        assert event.originator_version == len(self.log) + 1
        assert not self.log or event.at >= self.log[-1].at
        assert not any(isinstance(before, TERMINAL_EVENTS) for before in self.log), "an event after the end"
        cancelling = any(isinstance(before, events.CancellationRequested) for before in self.log)
        if cancelling:
            assert not isinstance(event, events.NodeStarted | events.NodeCompleted | events.NodeFailed)
            assert not isinstance(event, events.Completed | events.Failed | events.TimedOut)
        if isinstance(event, events.NodeStarted):
            ended = {e.node_id: e.TOPIC for e in self.log if isinstance(e, _ENDED)}
            needs = self.plan.steps[NodeId(event.node_id)].needs
            assert all(need in ended for need in needs), "a node starts after all it needs"
            assert not needs or any(ended[need] == events.NodeCompleted.TOPIC for need in needs)
            assert event.node_id not in ended, "an ended node starts again"
        if isinstance(event, events.NodeCompleted | events.NodeFailed):
            attempt = (event.node_id, event.attempt)
            assert attempt not in {(e.node_id, e.attempt) for e in self.log if isinstance(e, _OUTCOMES)}
            assert attempt in {(e.node_id, e.attempt) for e in self.log if isinstance(e, events.NodeStarted)}

    def _do(self, kind: type[Command], /, **fields: Any) -> tuple[Event, ...] | None:
        """The events the command caused; None when it was refused, which changes nothing."""
        before = self.state
        try:
            decision = decide(before, self.plan, kind(at=self.now, **fields))
        except InvalidTransition:
            assert self.state is before
            return None
        assert not (before.is_closed and decision.events)
        self._record(decision.events)
        self.state = decision.state
        assert self.state.progress >= before.progress
        return decision.events

    # --- what the shell does by itself -----------------------------------------------------------------

    @rule(seconds=st.sampled_from([-5, 0, 1, 3, 40]))
    def time_passes(self, seconds: int) -> None:
        self.now = Micros(self.now + seconds * SECOND)

    @precondition(lambda self: self._due())
    @rule(conditions=st.lists(st.sampled_from([True, True, True, None, False]), min_size=6, max_size=6))
    def start_or_skip_due_nodes(self, conditions: list[bool | None]) -> None:
        """None: not yet, another pass starts it."""
        due = due_nodes(self.state, self.plan, self.now)
        for node_id, reason in due.skip:
            assert self._do(commands.SkipNode, node_id=node_id, reason=reason)
        for node_id, condition in zip(due.start, conditions, strict=False):
            if condition is False and node_id not in self.state.nodes:
                assert self._do(commands.SkipNode, node_id=node_id, reason="condition")
            elif condition is not None:
                self._start(node_id)

    def _due(self) -> bool:
        return due_nodes(self.state, self.plan, self.now) != NOTHING

    def _start(self, node_id: NodeId) -> None:
        started = self._do(commands.StartNode, node_id=node_id)
        assert started
        self.tickets.append((node_id, self.state.nodes[node_id].attempt))

    @precondition(lambda self: bool(due_timers(self.state, self.now)))
    @rule()
    def fire_due_timers(self) -> None:
        for node_id in due_timers(self.state, self.now):
            self._do(commands.FireTimer, node_id=node_id)

    @rule()
    def fire_every_timer_too_early_or_too_late(self) -> None:
        for node_id in self.plan.steps:
            self._do(commands.FireTimer, node_id=node_id)

    @precondition(lambda self: is_overdue(self.state, self.now))
    @rule()
    def time_out_when_overdue(self) -> None:
        if is_overdue(self.state, self.now):
            assert self._do(commands.TimeOut)

    @precondition(lambda self: is_finished(self.state))
    @rule()
    def complete(self) -> None:
        assert self._do(commands.Complete, output={"n": 1})

    @precondition(lambda self: not self.state.is_closed or len(self.log) % 3 == 0)
    @rule(owner=st.sampled_from(["host-1", "host-2"]), take_over=st.booleans())
    def crash_and_recover(self, owner: str, take_over: bool) -> None:
        """The process dies; another folds the log. What was not recorded never happened."""
        decoded = [codec.decode(topic, data) for topic, data in self.stored]
        folded = fold(decoded)
        assert folded is not None
        self.state = folded
        if take_over:
            self._do(commands.TakeOver, owner=owner)
            for node_id, node in self.state.nodes.items():
                if node.status == "running":
                    assert not self._do(commands.StartNode, node_id=node_id)

    # --- what workers report, also late and twice ----------------------------------------------------------

    def _ticket(self, data: st.DataObject) -> tuple[NodeId, int]:
        """Mostly the attempt that runs; sometimes any that was ever made."""
        running = [t for t in self.tickets if _runs(self.state, *t)]
        late = data.draw(st.booleans())
        return data.draw(st.sampled_from(self.tickets if late or not running else running))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def an_attempt_succeeds(self, data: st.DataObject) -> None:
        node_id, attempt = self._ticket(data)
        dependents = self.plan.steps[node_id].dependents
        skips = data.draw(st.sets(st.sampled_from(dependents), max_size=1)) if dependents else set[NodeId]()
        self._do(
            commands.RecordCompleted, node_id=node_id, attempt=attempt, output={"a": 1}, skips=tuple(skips)
        )

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), draw=st.floats(0, 0.999))
    def an_attempt_fails(self, data: st.DataObject, draw: float) -> None:
        node_id, attempt = self._ticket(data)
        self._do(commands.RecordFailed, node_id=node_id, attempt=attempt, error=ERROR, draw=draw)

    @precondition(lambda self: self.tickets)
    @rule(
        data=st.data(),
        seconds=st.sampled_from([None, 0, 2, 20]),
        signal=st.sampled_from(["", *SIGNALS]),
        on_timeout=st.sampled_from(["fail", "continue"]),
    )
    def an_attempt_waits(
        self, data: st.DataObject, seconds: int | None, signal: str, on_timeout: str
    ) -> None:
        node_id, attempt = self._ticket(data)
        until = None if seconds is None else Micros(self.now + seconds * SECOND)
        if until is None and not signal:
            until = self.now  # a wait for nothing at all is not in the vocabulary
        self._do(
            commands.RecordWaiting,
            node_id=node_id,
            attempt=attempt,
            until=until,
            signal=signal,
            on_timeout=on_timeout,
        )

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def an_attempt_waits_for_a_child(self, data: st.DataObject) -> None:
        node_id, attempt = self._ticket(data)
        child = f"child-{len(self.children)}"
        if self._do(commands.RecordWaiting, node_id=node_id, attempt=attempt, child_id=child, child_flow="f"):
            self.children.append((node_id, child))

    @precondition(lambda self: self.children)
    @rule(data=st.data(), error=st.sampled_from([None, ERROR]))
    def a_child_ends(self, data: st.DataObject, error: StepError | None) -> None:
        node_id, child = data.draw(st.sampled_from(self.children))
        self._do(commands.RecordChildEnd, node_id=node_id, child_id=child, error=error, output=[1])

    @precondition(lambda self: self.tickets)
    @rule(
        data=st.data(), indexes=st.lists(st.integers(0, 3), max_size=4), error=st.sampled_from([None, ERROR])
    )
    def an_attempt_reports_items(
        self, data: st.DataObject, indexes: list[int], error: StepError | None
    ) -> None:
        node_id, attempt = self._ticket(data)
        node = self.state.nodes[node_id]
        known = {index for index, item in node.outcomes.items() if item.error is None}
        items = tuple(ItemOutcome(index=index, output=index, error=error) for index in indexes)
        for event in (
            self._do(commands.RecordProgress, node_id=node_id, attempt=attempt, total=4, items=items) or ()
        ):
            if isinstance(event, events.NodeProgressed):
                recorded = [item.index for item in event.items]
                assert len(recorded) == len(set(recorded))
                assert not known & set(recorded), "a recorded success stands"

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), runs=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=3))
    def an_attempt_reports_chunks(self, data: st.DataObject, runs: list[tuple[int, int]]) -> None:
        """Also of items that are recorded already."""
        node_id, attempt = self._ticket(data)
        before = self.state.nodes[node_id].chunks
        known = _items(before.recorded) if before else []
        done = tuple(ChunkResult(first=first, items=items) for first, items in runs)
        fields = {"attempt": attempt, "source": "s", "total": 12, "chunks": done}
        for event in self._do(commands.RecordChunks, node_id=node_id, **fields) or ():
            if isinstance(event, events.ChunksRecorded):
                items = _items(event.chunks)
                assert len({*known, *items}) == len(known) + len(items), "an item is recorded once"
                assert event.done == len(known) + len(items)

    # --- the calls of an agent node ------------------------------------------------------------------------

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), step=st.sampled_from(STEPS), twice=st.booleans())
    def a_call_begins(self, data: st.DataObject, step: str, twice: bool) -> None:
        """Also after a crash, when its answer was not recorded, or when it was."""
        node_id, attempt = self._ticket(data)
        for _ in range(2 if twice else 1):
            known = self.steps.get((node_id, step))
            told = self._told(
                commands.BeginStep, node_id=node_id, attempt=attempt, step=step, kind="model", name="m"
            )
            if not self._takes_steps(node_id, attempt) or (known is not None and known.answer is not None):
                assert told == [], "an answered call is not made again"
            elif known is None:
                [started] = told
                assert isinstance(started, events.StepStarted)
                self.steps[node_id, step] = _Step()
            else:
                [retried] = told
                assert isinstance(retried, events.StepRetried)
                assert (retried.tries, retried.error.type) == (known.tries, "Interrupted")
                known.tries += 1

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), step=st.sampled_from(STEPS))
    def a_call_fails_and_is_retried(self, data: st.DataObject, step: str) -> None:
        node_id, attempt = self._ticket(data)
        known = self.steps.get((node_id, step))
        told = self._told(
            commands.RetryStep, node_id=node_id, attempt=attempt, step=step, error=ERROR, retry_at=self.now
        )
        if known is None or known.answer is not None or not self._takes_steps(node_id, attempt):
            assert told == []
            return
        [retried] = told
        assert isinstance(retried, events.StepRetried)
        assert retried.tries == known.tries
        known.tries += 1

    @precondition(lambda self: self.steps)
    @rule(data=st.data(), tokens=st.integers(0, 9), priced=st.booleans(), late=st.booleans())
    def a_call_is_answered(self, data: st.DataObject, tokens: int, priced: bool, late: bool) -> None:
        node_id, step = data.draw(st.sampled_from(sorted(self.steps)))
        attempt = self.state.nodes[node_id].attempt - (1 if late else 0)
        known = self.steps[node_id, step]
        content = f"answer {len(self.log)}"
        told = self._told(
            commands.EndStep,
            node_id=node_id,
            attempt=attempt,
            step=step,
            role="assistant",
            content=content,
            usage=commands.Usage(model="m", input_tokens=tokens, cost=tokens / 8, cost_known=priced),
        )
        if known.answer is not None or not self._takes_steps(node_id, attempt):
            assert told == [], "the first answer stands"
            return
        answer, usage = told
        assert isinstance(answer, events.MessageRecorded)
        assert isinstance(usage, events.UsageRecorded)
        known.answer = content

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def a_node_tells_more(self, data: st.DataObject) -> None:
        node_id, attempt = self._ticket(data)
        told = self._told(commands.LogNode, node_id=node_id, attempt=attempt, event="todos", detail=[1])
        assert len(told) == self._takes_steps(node_id, attempt)

    def _told(self, kind: type[Command], /, **fields: Any) -> list[Event]:
        return list(self._do(kind, **fields) or ())

    def _takes_steps(self, node_id: NodeId, attempt: int) -> bool:
        state = self.state
        is_open = not state.is_closed and state.cancel_requested_at is None
        return is_open and _runs(state, node_id, attempt)

    # --- what people ask ----------------------------------------------------------------------------------

    @rule(number=st.integers(0, 4), name=st.sampled_from(SIGNALS))
    def signal(self, number: int, name: str) -> None:
        signal_id = f"s{number}"
        known = signal_id in self.state.signal_ids
        recorded = self._do(commands.Signal, signal_id=signal_id, name=name, payload={"number": number})
        assert not known or recorded == ()

    # Ends are asked for rarely, or most histories would be short.
    @rule(
        ask=st.sampled_from(["pause", "resume", "admit", "confirm", "cancel", "fail"]),
        luck=st.integers(0, 5),
    )
    def somebody_asks(self, ask: str, luck: int) -> None:
        state = self.state
        if ask in ("cancel", "fail") and luck != 3:
            return
        is_open = not state.is_closed and state.cancel_requested_at is None
        match ask:
            case "pause":
                assert (self._do(commands.Pause) is not None) == is_open
            case "resume":
                assert bool(self._do(commands.Resume)) == (is_open and state.paused)
            case "admit":
                assert bool(self._do(commands.Admit)) == (is_open and state.started_at is None)
            case "cancel":
                assert bool(self._do(commands.RequestCancel, by="key-1")) == is_open
            case "fail":
                assert bool(self._do(commands.Fail, error=ERROR)) == is_open
            case _:
                confirmed = bool(self._do(commands.ConfirmCancelled))
                assert confirmed == (not state.is_closed and state.cancel_requested_at is not None)

    # --- what always holds ----------------------------------------------------------------------------------

    @invariant()
    def replay_gives_the_live_state(self) -> None:
        assert fold(self.log) == self.state

    @invariant()
    def replay_of_the_stored_bytes_gives_the_live_state(self) -> None:
        assert fold(codec.decode(topic, data) for topic, data in self.stored) == self.state

    @invariant()
    def counters_equal_a_recount(self) -> None:
        state = self.state
        nodes = list(state.nodes.values())
        done = sum(node.status in ("completed", "skipped") for node in nodes)
        assert state.completed_nodes == done
        assert (state.progress == 100.0) == (state.status == "completed")
        if state.is_closed:
            assert (state.active_nodes, state.waiting_nodes, state.current_node) == (0, 0, None)
            return
        children = sum(node.status == "waiting" and bool(node.child_id) for node in nodes)
        assert state.active_nodes == sum(node.status == "running" for node in nodes) + children
        waiting = sum(node.status in ("waiting", "retrying") for node in nodes)
        assert state.waiting_nodes == waiting - children
        unfinished = {
            n for n, node in state.nodes.items() if node.status in ("running", "waiting", "retrying")
        }
        assert (state.current_node in unfinished) if unfinished else state.current_node is None

    @invariant()
    def only_what_waits_has_a_timer_and_no_signal_is_left_for_it(self) -> None:
        kept = {received.name for received in self.state.signals}
        for node in self.state.nodes.values():
            assert node.wake_at is None or node.status in ("waiting", "retrying")
            assert node.status != "waiting" or node.signal not in kept

    @invariant()
    def the_calls_are_those_that_were_made_and_answered_once(self) -> None:
        found = {
            (node_id, name): (step.tries, None if step.answer is None else step.answer.content)
            for node_id, node in self.state.nodes.items()
            for name, step in node.steps.items()
        }
        assert found == {key: (step.tries, step.answer) for key, step in self.steps.items()}
        answers = [(e.node_id, e.step) for e in self.log if isinstance(e, events.MessageRecorded)]
        assert len(answers) == len(set(answers)), "an answered call was answered again"

    @invariant()
    def usage_adds_up(self) -> None:
        used = [event for event in self.log if isinstance(event, events.UsageRecorded)]
        state = self.state
        assert state.model_calls == len(used)
        assert state.input_tokens == sum(event.input_tokens for event in used)
        assert state.cost == sum(event.cost for event in used)
        assert state.cost_known == all(event.cost_known for event in used)

    @invariant()
    def an_open_execution_is_never_stranded(self) -> None:
        state = self.state
        if state.is_closed or state.started_at is None or state.paused:
            return  # at its end, or awaiting an admission or a resume
        due = due_nodes(state, self.plan, self.now)
        assert (
            due.start
            or due.skip
            or is_finished(state)
            or wake_at(state) is not None
            or any(
                node.status == "running" or (node.status == "waiting" and (node.signal or node.child_id))
                for node in state.nodes.values()
            )
        )
        assert state.cancel_requested_at is None or state.active_nodes > 0

    def teardown(self) -> None:
        """However it stands, ordinary work brings it to one end, and that is the log's last event."""
        if not hasattr(self, "log"):
            return
        for _ in range(END_STEPS_MAX):
            if self.state.is_closed:
                break
            self._work_on()
        assert self.state.is_closed
        assert isinstance(self.log[-1], TERMINAL_EVENTS)
        assert verify(self._recorded(), settled=True).violations == []

    def _recorded(self) -> list[Recorded]:
        return [
            Recorded(Position(version), EXECUTION, version, topic, data)
            for version, (topic, data) in enumerate(self.stored, start=1)
        ]

    def _work_on(self) -> None:
        if self.state.paused and self.state.cancel_requested_at is None:
            self._do(commands.Resume)
        self._do(commands.Admit)
        self._do(commands.ConfirmCancelled)
        if is_overdue(self.state, self.now):
            self.time_out_when_overdue()
            return
        due = due_nodes(self.state, self.plan, self.now)
        for node_id, reason in due.skip:
            self._do(commands.SkipNode, node_id=node_id, reason=reason)
        for node_id in due.start:
            self._start(node_id)
        for node_id, node in tuple(self.state.nodes.items()):
            self._do(commands.RecordCompleted, node_id=node_id, attempt=node.attempt)
            self._do(commands.RecordChildEnd, node_id=node_id, child_id=node.child_id)
            if node.status == "waiting" and node.signal:
                signal_id = f"end-{len(self.log)}"
                self._do(commands.Signal, signal_id=signal_id, name=node.signal)
        self.fire_due_timers()
        if is_finished(self.state):
            self.complete()
        self.now = max(self.now, wake_at(self.state) or self.now)


class _Step:
    """The model's own memory of one call."""

    def __init__(self) -> None:
        self.tries = 1
        self.answer: str | None = None


def _runs(state: ExecutionState, node_id: NodeId, attempt: int) -> bool:
    node = state.nodes[node_id]
    return node.status == "running" and node.attempt == attempt


_ENDED = events.NodeCompleted | events.NodeSkipped
_OUTCOMES = events.NodeCompleted | events.NodeFailed

TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
