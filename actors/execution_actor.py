"""One execution as an actor: an identity, an event stream, one message at a time.

    recovering --resume--> running <--> idle (waits for a timer or a message) --> passivated
                              |
                              +--> closed (terminal event committed)        any --conflict--> fenced

Handling a message never awaits, so messages can't interleave and need no queue of their own: decide,
evolve, hand the events to the writer, start what became due. Pure nodes run on the spot. Everything with
an effect runs as a task that first waits until all events so far are durable; its outcome comes back as
a message. ``advance`` is the only place that starts nodes.

After a crash the log says which attempts have no outcome: ``resume`` makes exactly those again, under the
same idempotency key. A fenced actor (somebody else wrote its stream) stops and records nothing more.

A plain class, tested without Ray; ``host`` gives it a place to live.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Protocol

import msgspec

from actors.children import children_of
from actors.messages import Reply
from actors.scope import ScopeBuilder
from actors.step_call import StepOutcome
from actors.step_values import is_surely_small, step_error
from actors.writer import Committed
from runtime import commands, events, scheduling
from runtime.commands import Command
from runtime.errors import DomainError, InvariantViolated, Refused, Unavailable
from runtime.event_log import Append, Chain, Recorded
from runtime.events import BlobRef, Event, Json, StepError
from runtime.execution import decide
from runtime.ids import SECOND, Micros, NodeId
from runtime.plan import Action, Output, Plan, StartChild, Step, Wait
from runtime.state import ExecutionState, NodeState

BURST_STEPS_MAX = 64
"""Pure nodes run in one go before other executions of the host get their turn."""

STOP_SECONDS_MAX = 15.0
"""How long running nodes get to stop after an accepted cancellation (gateway rule G7), killing included."""


FLOW = NodeId("#flow")
CANCELLATION = NodeId("#cancellation")
"""Keys of the tasks that belong to no node: no node can have such an id."""


class Shell(Protocol):
    """What an actor needs from the host it lives in."""

    @property
    def owner(self) -> str: ...
    @property
    def is_leaving(self) -> bool: ...
    def now(self) -> Micros: ...
    def draw(self) -> float: ...
    def append(self, append: Append) -> Committed: ...
    def wake_later(self, actor: "ExecutionActor", at: Micros | None) -> None: ...
    def changed(self, actor: "ExecutionActor") -> None: ...
    def fenced(self, actor: "ExecutionActor") -> None: ...
    def crashed(self, actor: "ExecutionActor", error: BaseException) -> None: ...
    async def load(self, ref: BlobRef) -> Json: ...
    async def store_if_large(self, value: Json) -> BlobRef | None: ...
    async def run_child(self, parent: ExecutionState, node_id: NodeId, node: NodeState) -> StepOutcome: ...
    def cancel_children(self, child_ids: Iterable[str], after: Committed) -> None: ...
    def child_id(self, parent: ExecutionState, node_id: NodeId, attempt: int) -> str: ...
    def delta(self, execution_id: str, node_id: NodeId, step: str, offset: int, text: str) -> None: ...
    async def perform(
        self, actor: "ExecutionActor", step: Step, attempt: int, action: Action
    ) -> StepOutcome | None: ...


class ExecutionActor:
    """Owns one execution's stream while it lives in this host."""

    def __init__(self, shell: Shell, plan: Plan, state: ExecutionState, chain: Chain) -> None:
        self._shell = shell
        self.plan = plan
        self.state = state
        self._chain = chain
        self._decided: list[Event] = []
        self._committed: Committed | None = None
        self._tasks: dict[NodeId, asyncio.Task[None]] = {}
        self._scopes = ScopeBuilder()
        self._candidates: dict[NodeId, None] | None = None
        self._advancing = False
        self._continues = False
        self._orphans_wait = False
        self._children_stopped = False
        self.is_stopped = False

    # --- messages -----------------------------------------------------------------------------------

    @classmethod
    def start(
        cls, shell: Shell, plan: Plan, state: ExecutionState, first: tuple[Event, ...]
    ) -> "ExecutionActor":
        """A new execution; nothing of it is durable until ``durable()`` returned."""
        actor = cls(shell, plan, state, Chain())
        actor._decided.extend(first)
        actor._flush()
        return actor

    def receive(self, command: Command) -> Reply:
        """Handle one message; what it caused is handed to the writer but not durable yet.

        Raises: InvalidTransition when the execution's state does not allow it; Unavailable when a fault of
        ours made the actor forget it.
        """
        previous, was_cancelling = self.state.status, self.state.cancel_requested_at is not None
        self._guarded(lambda: self._decide(command))
        if isinstance(command, commands.RequestCancel) and not was_cancelling:
            self._stop_nodes()
        elif isinstance(command, commands.Resume):
            self._guarded(self._restart_orphans)
        self.advance()
        if self.is_stopped:
            raise Unavailable("the execution is being recovered; send it again")
        return Reply(previous_status=previous, version=self.state.version)

    async def durable(self) -> None:
        """Wait until every event so far is committed.

        Raises: Conflict when another owner wrote this stream.
        """
        if self._committed is not None and not self._committed.done():
            await asyncio.shield(self._committed)
        elif self._committed is not None:
            self._committed.result()

    def resume(self) -> None:
        """Go on after a recovery or an activation: make again every attempt without an outcome."""
        self._guarded(self._resume)
        self.wake()

    def _resume(self) -> None:
        if self.state.owner != self._shell.owner:
            self._decide(commands.TakeOver(at=self._shell.now(), owner=self._shell.owner))
        if self.state.cancel_requested_at is not None and not self.state.is_closed:
            self._decide(commands.ConfirmCancelled(at=self._shell.now()))
        else:
            self._restart_orphans()

    def _restart_orphans(self) -> None:
        """Begin what the log says is running although no task of ours runs it."""
        if self._awaits_input():
            return
        for node_id, node in self.state.nodes.items():
            if node_id in self._tasks or not scheduling.is_open_for_nodes(self.state):
                continue
            if node.status == "running":
                self._begin(node_id)
            elif node.status == "waiting" and node.child_id:
                self._spawn(node_id, self._await_child, node_id, node)

    def wake(self) -> None:
        """Something may be due by now: the deadline, a timer, a retry."""
        self._guarded(self._fire_timers)
        self.advance()
        if not self.is_stopped:
            # A timer may run a little before the clock says so: what is not due yet is waited for again.
            self._shell.wake_later(self, scheduling.wake_at(self.state))

    def _fire_timers(self) -> None:
        now = self._shell.now()
        if scheduling.is_overdue(self.state, now):
            self._decide(commands.TimeOut(at=now))
        if scheduling.is_open_for_nodes(self.state):
            for node_id in scheduling.due_timers(self.state, now):
                self._decide(commands.FireTimer(at=now, node_id=node_id, draw=self._shell.draw()))
        self._candidates = None

    @property
    def is_durable(self) -> bool:
        """Everything decided so far is committed."""
        return not self._decided and (self._committed is None or self._committed.done())

    @property
    def is_busy(self) -> bool:
        """It can't leave memory now: something runs, is to be started, or is not committed yet."""
        return bool(self._tasks) or self._continues or not self.is_durable

    def stop(self) -> None:
        """Forget everything without recording it (passivated, fenced, or the host ends)."""
        self.is_stopped = True
        self._decided.clear()
        self._cancel_tasks()
        self._shell.wake_later(self, None)

    def _guarded(self, part: Callable[[], None]) -> None:
        """Do ``part``; after a fault of ours the actor dies and recovers from the log."""
        try:
            part()
        except Refused:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is our bug
            self._shell.crashed(self, error)

    # --- deciding and recording -----------------------------------------------------------------------

    def _decide(self, command: Command) -> None:
        decision = decide(self.state, self.plan, command)
        self.state = decision.state
        self._decided.extend(decision.events)
        if self._candidates is not None:
            for event in decision.events:
                if isinstance(event, events.NodeCompleted | events.NodeSkipped):
                    for dependent in self.plan.steps[NodeId(event.node_id)].dependents:
                        self._candidates[dependent] = None
                elif isinstance(event, events.Started | events.Resumed):
                    self._candidates = None
                    return

    def _flush(self) -> None:
        if self._decided and not self.is_stopped:
            append = Append(self.state.execution_id, tuple(self._decided), self.state, self._chain)
            self._decided.clear()
            self._committed = self._shell.append(append)
            self._committed.add_done_callback(self._on_committed)
            if self.state.is_closed:
                self._cancel_tasks()
            if self.state.is_closed or self.state.cancel_requested_at is not None:
                self._stop_children(self._committed)
            self._shell.wake_later(self, scheduling.wake_at(self.state))

    def _on_committed(self, committed: "asyncio.Future[tuple[Recorded, ...]]") -> None:
        if self.is_stopped:
            return
        error = committed.exception()
        if isinstance(error, InvariantViolated):
            self._shell.crashed(self, error)
        elif error is not None:
            self._shell.fenced(self)
        elif committed is self._committed:
            self._shell.changed(self)

    # --- starting nodes ---------------------------------------------------------------------------------

    def advance(self) -> None:
        """Start everything that may start, run pure nodes, and end the execution when all ended."""
        if self._advancing or self.is_stopped:
            return
        self._advancing = True
        self._continues = False
        try:
            self._advance()
        except Exception as error:  # noqa: BLE001 - our bug: the actor dies and recovers from the log
            self._shell.crashed(self, error)
            return
        finally:
            self._advancing = False
        self._flush()

    def _advance(self) -> None:
        if not scheduling.is_open_for_nodes(self.state) or self._awaits_input():
            return
        for _ in range(BURST_STEPS_MAX):
            if self._shell.is_leaving:
                break  # whoever takes it over begins the next nodes
            now = self._shell.now()
            among, self._candidates = self._candidates, {}
            due = scheduling.due_nodes(self.state, self.plan, now, among)
            if due is scheduling.NOTHING:
                break
            for node_id, reason in due.skip:
                self._decide(commands.SkipNode(at=now, node_id=node_id, reason=reason))
            for node_id in due.start:
                # A node that failed for good a moment ago closed the execution.
                if node_id not in self._tasks and scheduling.is_open_for_nodes(self.state):
                    self._begin(node_id)
        else:
            self._continues = True
            asyncio.get_running_loop().call_soon(self.advance)
        if scheduling.is_finished(self.state) and FLOW not in self._tasks:
            self._finish()

    def _awaits_input(self) -> bool:
        """Whether a large input must be loaded first; begins to load it."""
        missing = self._scopes.missing(self.state, ())
        if missing and FLOW not in self._tasks:
            self._spawn(FLOW, self._load, missing)
        return bool(missing)

    def _begin(self, node_id: NodeId) -> None:
        """Start one attempt of a node: its condition, its pure part, and what that asks for."""
        step = self.plan.steps[node_id]
        missing = self._scopes.missing(self.state, step.reads, step.streams)
        if missing:
            self._spawn(node_id, self._load, missing)
            return
        now = self._shell.now()
        node = self.state.nodes.get(node_id)
        attempt = 1 if node is None else node.attempt + (node.status == "retrying")
        scope = self.scope(step, attempt)
        try:
            is_wanted = node is not None or step.condition is None or step.condition(scope)
        except Exception as error:  # noqa: BLE001 - expressions may raise anything
            self._decide(commands.StartNode(at=now, node_id=node_id, where=self._shell.owner))
            self._record(node_id, attempt, StepOutcome(error=step_error(error)))
            return
        if not is_wanted:
            self._decide(commands.SkipNode(at=now, node_id=node_id, reason="condition"))
            return
        self._decide(commands.StartNode(at=now, node_id=node_id, where=self._shell.owner))
        try:
            action = step.act(scope)
        except Exception as error:  # noqa: BLE001 - templates and expressions may raise anything
            self._record(node_id, attempt, StepOutcome(error=step_error(error)))
            return
        self._act(step, attempt, action, now)

    def _act(self, step: Step, attempt: int, action: Action, now: Micros) -> None:
        node_id = step.node_id
        match action:
            case Output():
                if is_surely_small(action.value):
                    self._decide(
                        commands.RecordCompleted(
                            at=now,
                            node_id=node_id,
                            attempt=attempt,
                            output=action.value,
                            skips=action.skips,
                        )
                    )
                else:
                    self._spawn(node_id, self._store_output, node_id, attempt, action)
            case Wait():
                until = action.until
                if action.delay_seconds is not None:
                    until = Micros(now + int(action.delay_seconds * SECOND))
                self._decide(
                    commands.RecordWaiting(
                        at=now,
                        node_id=node_id,
                        attempt=attempt,
                        until=until,
                        signal=action.signal,
                        on_timeout=action.on_timeout,
                    )
                )
            case StartChild():
                self._decide(
                    commands.RecordWaiting(
                        at=now,
                        node_id=node_id,
                        attempt=attempt,
                        child_id=self._shell.child_id(self.state, node_id, attempt),
                        child_flow=action.flow,
                        child_input=action.input,
                    )
                )
                self._spawn(node_id, self._await_child, node_id, self.state.nodes[node_id])
            case _:
                self._spawn(node_id, self._perform, step, attempt, action)

    def _finish(self) -> None:
        missing = self._scopes.missing(self.state, self.plan.output_reads)
        if missing:
            self._spawn(FLOW, self._load, missing)
            return
        now = self._shell.now()
        try:
            output = self.plan.output(self._scopes.build(self.state, self.plan.output_reads, {}))
        except Exception as error:  # noqa: BLE001 - expressions may raise anything
            self._decide(commands.Fail(at=now, error=step_error(error)))
            return
        if is_surely_small(output):
            self._decide(commands.Complete(at=now, output=output))
        else:
            self._spawn(FLOW, self._complete_large, output)

    # --- what nodes can see -------------------------------------------------------------------------------

    def scope(self, step: Step, attempt: int) -> dict[str, Any]:
        """The scope of one attempt (see ``plan.Scope``); referenced large outputs must be loaded."""
        key = self.idempotency_key(step.node_id, attempt)
        about = {"attempt": attempt, "key": key}
        return self._scopes.build(self.state, step.reads, about, step.streams)

    def draw(self) -> float:
        """A random number in [0, 1) from the host."""
        return self._shell.draw()

    def idempotency_key(self, node_id: NodeId, attempt: int) -> str:
        return f"{self.state.execution_id}:{node_id}:{attempt}"

    async def _load(self, refs: tuple[BlobRef, ...]) -> None:
        """Bring large values into memory; what needed them is due again afterwards."""
        try:
            for ref in refs:
                self._scopes.keep(ref, await self._shell.load(ref))
        except (DomainError, ValueError) as error:
            self._fail(error)
            return
        reading = [self.plan.steps[node_id].reads for node_id in self._tasks if node_id in self.plan.steps]
        read = [self.state.nodes.get(node_id) for names in reading for node_id in names]
        outputs = [node.output_ref for node in read if node is not None]
        self._scopes.drop_unread((*refs, *outputs, self.state.input_ref))
        # due_nodes does not name the attempts that a recovery makes again.
        self._orphans_wait = True
        self._candidates = None

    # --- tasks ------------------------------------------------------------------------------------------

    def _spawn(
        self, node_id: NodeId, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any
    ) -> None:
        task = asyncio.get_running_loop().create_task(self._guard(node_id, work, arguments))
        self._tasks[node_id] = task
        # A task that is cancelled before its first step never enters its own clean-up.
        task.add_done_callback(lambda done: self._forget(node_id, done))

    def _forget(self, node_id: NodeId, task: "asyncio.Task[Any] | None") -> None:
        if self._tasks.get(node_id) is task:
            del self._tasks[node_id]

    async def _guard(
        self, node_id: NodeId, work: Callable[..., Coroutine[Any, Any, None]], arguments: tuple[Any, ...]
    ) -> None:
        try:
            await work(*arguments)
        except asyncio.CancelledError:
            return
        except DomainError:
            return  # fenced, or closed meanwhile: `_on_committed` deals with it
        except Exception as error:  # noqa: BLE001 - our bug: the actor dies and recovers from the log
            self._shell.crashed(self, error)
            return
        finally:
            self._forget(node_id, asyncio.current_task())
        if not self.is_stopped:
            if self._orphans_wait:
                self._orphans_wait = False
                self._guarded(self._restart_orphans)
            self.advance()
            self._shell.changed(self)

    async def _perform(self, step: Step, attempt: int, action: Action) -> None:
        # The attempt's NodeStarted, and with it every input of the step, is durable before any effect.
        self._flush()
        await self.durable()
        outcome = await self._shell.perform(self, step, attempt, action)
        if outcome is None:
            return  # stopped half way by a pause: the resume begins the attempt again
        if outcome.error is None and outcome.output_ref is None:
            outcome = await self._with_claim_check(outcome)
        self._record(step.node_id, attempt, outcome)

    async def _with_claim_check(self, outcome: StepOutcome) -> StepOutcome:
        """``outcome`` with a large output put aside; failed when it can't be stored."""
        if is_surely_small(outcome.output):
            return outcome
        try:
            ref = await self._shell.store_if_large(outcome.output)
        except (DomainError, TypeError, ValueError) as error:
            return msgspec.structs.replace(outcome, output=None, error=step_error(error))
        return outcome if ref is None else msgspec.structs.replace(outcome, output=None, output_ref=ref)

    async def _store_output(self, node_id: NodeId, attempt: int, output: Output) -> None:
        outcome = await self._with_claim_check(StepOutcome(output=output.value))
        self._record(node_id, attempt, outcome, output.skips)

    async def _complete_large(self, output: Json) -> None:
        outcome = await self._with_claim_check(StepOutcome(output=output))
        now = self._shell.now()
        if outcome.error is not None:
            self._decide(commands.Fail(at=now, error=outcome.error))
        else:
            self._decide(commands.Complete(at=now, output=outcome.output, output_ref=outcome.output_ref))

    def _fail(self, error: BaseException) -> None:
        """End the execution with a fault that belongs to no node."""
        if not self.state.is_closed and self.state.cancel_requested_at is None:
            self._decide(commands.Fail(at=self._shell.now(), error=step_error(error)))

    async def _await_child(self, node_id: NodeId, node: NodeState) -> None:
        self._flush()
        await self.durable()
        seconds = self.plan.steps[node_id].timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                outcome = await self._shell.run_child(self.state, node_id, node)
        except TimeoutError:
            message = f"child execution {node.child_id} took longer than {seconds} s"
            outcome = StepOutcome(error=StepError(type="TimeoutError", message=message))
        self._decide(
            commands.RecordChildEnd(
                at=self._shell.now(),
                node_id=node_id,
                child_id=node.child_id,
                output=outcome.output,
                output_ref=outcome.output_ref,
                error=outcome.error,
                draw=self._shell.draw(),
            )
        )
        if outcome.error is not None and outcome.error.type == "TimeoutError":
            self.cancel_children((node.child_id,))

    def cancel_children(self, child_ids: Iterable[str]) -> None:
        """Cancel these executions once everything decided so far is durable."""
        self._flush()
        if self._committed is not None:
            self._shell.cancel_children(child_ids, self._committed)

    def record_step(self, command: commands.StepNews) -> None:
        """Record what a running node did; not durable yet.

        Raises: Unavailable when the actor was stopped: nothing is recorded any more.
        """
        if self.is_stopped:
            raise Unavailable("the execution left this host")
        self._decide(command)
        self._flush()

    def delta(self, node_id: NodeId, step: str, offset: int, text: str) -> None:
        if not self.is_stopped:
            self._shell.delta(self.state.execution_id, node_id, step, offset, text)

    def now(self) -> Micros:
        return self._shell.now()

    def _record(
        self, node_id: NodeId, attempt: int, outcome: StepOutcome, skips: tuple[NodeId, ...] = ()
    ) -> None:
        now = self._shell.now()
        if outcome.error is None:
            self._decide(
                commands.RecordCompleted(
                    at=now,
                    node_id=node_id,
                    attempt=attempt,
                    output=outcome.output,
                    output_ref=outcome.output_ref,
                    skips=skips,
                    logs=outcome.logs,
                    where=outcome.where,
                )
            )
        else:
            self._decide(
                commands.RecordFailed(
                    at=now,
                    node_id=node_id,
                    attempt=attempt,
                    error=outcome.error,
                    draw=self._shell.draw(),
                    logs=outcome.logs,
                    where=outcome.where,
                )
            )

    def _cancel_tasks(self) -> list["asyncio.Task[None]"]:
        current = _current_task()
        tasks = [task for task in self._tasks.values() if task is not current]
        for task in tasks:
            task.cancel()
        return tasks

    def _stop_nodes(self) -> None:
        """After an accepted cancellation: stop what runs, then confirm."""
        tasks = self._cancel_tasks()
        if not self.state.is_closed:
            self._spawn(CANCELLATION, self._confirm_cancelled, tasks)

    async def _confirm_cancelled(self, tasks: list["asyncio.Task[None]"]) -> None:
        if tasks:
            # Workers are killed after the grace period; the wait is bounded even if one can't be.
            await asyncio.wait(tasks, timeout=STOP_SECONDS_MAX)
        if not self.is_stopped and not self.state.is_closed:
            self._decide(commands.ConfirmCancelled(at=self._shell.now()))

    def _stop_children(self, after: Committed) -> None:
        if self._children_stopped:
            return
        self._children_stopped = True
        children = children_of(self.state, self.plan)
        if children:
            self._shell.cancel_children(children, after)


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
