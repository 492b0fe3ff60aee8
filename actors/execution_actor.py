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
from collections.abc import Coroutine
from typing import Any, Protocol

import msgspec

from actors.messages import Reply
from actors.step_call import StepOutcome
from actors.writer import Committed
from runtime import commands, events, scheduling
from runtime.commands import Command
from runtime.errors import DomainError, InvalidTransition, InvariantViolated
from runtime.event_log import Append, Chain, Recorded
from runtime.events import BlobRef, Event, Json, StepError
from runtime.execution import decide
from runtime.ids import SECOND, Micros, NodeId
from runtime.plan import Action, Output, Plan, StartChild, Step, Wait
from runtime.state import ExecutionState, NodeState

BURST_STEPS_MAX = 64
"""Pure nodes run in one go before other executions of the host get their turn."""

ERROR_MESSAGE_CHARS_MAX = 2_000

GRACE_SECONDS = 10.0
"""How long running nodes get to stop after an accepted cancellation (gateway rule G7)."""


class Shell(Protocol):
    """What an actor needs from the host it lives in."""

    @property
    def owner(self) -> str: ...
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
    def cancel_child(self, child_id: str) -> None: ...
    def child_id(self, parent: ExecutionState, node_id: NodeId, attempt: int) -> str: ...
    async def perform(
        self, actor: "ExecutionActor", step: Step, attempt: int, action: Action
    ) -> StepOutcome: ...


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
        self._loaded: dict[str, Json] = {}
        self._candidates: dict[NodeId, None] | None = None
        self._advancing = False
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

        Raises: InvalidTransition when the execution's state does not allow it.
        """
        previous = self.state.status
        self._decide(command)
        if isinstance(command, commands.RequestCancel):
            self._stop_tasks(confirm=True)
        elif isinstance(command, commands.Resume):
            self._restart_orphans()
        self.advance()
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
        if self.state.owner != self._shell.owner:
            self._decide(commands.TakeOver(at=self._shell.now(), owner=self._shell.owner))
        if self.state.cancel_requested_at is not None and not self.state.is_closed:
            for node in self.state.nodes.values():
                if node.status == "waiting" and node.child_id:
                    self._shell.cancel_child(node.child_id)
            self._decide(commands.ConfirmCancelled(at=self._shell.now()))
        else:
            self._restart_orphans()
        self.wake()

    def _restart_orphans(self) -> None:
        """Begin what the log says is running although no task of ours runs it."""
        if self.state.input_ref is not None and self.state.input_ref.sha256 not in self._loaded:
            self._load_then_advance(NodeId(""), (self.state.input_ref,))
            return
        for node_id, node in self.state.nodes.items():
            if node_id in self._tasks or not scheduling.is_open_for_nodes(self.state):
                continue
            if node.status == "running":
                self._begin(node_id)
            elif node.status == "waiting" and node.child_id:
                self._spawn(node_id, self._await_child(node_id, node))

    def wake(self) -> None:
        """Something may be due by now: the deadline, a timer, a retry."""
        now = self._shell.now()
        if scheduling.is_overdue(self.state, now):
            self._decide(commands.TimeOut(at=now))
        if scheduling.is_open_for_nodes(self.state):
            for node_id in scheduling.due_timers(self.state, now):
                self._decide(commands.FireTimer(at=now, node_id=node_id, draw=self._shell.draw()))
        self._candidates = None
        self.advance()

    @property
    def is_busy(self) -> bool:
        """Holds tasks or events that are not committed; it can't leave memory now."""
        return bool(self._tasks or self._decided) or not (self._committed is None or self._committed.done())

    def stop(self) -> None:
        """Forget everything without recording it (passivated, fenced, or the host ends)."""
        self.is_stopped = True
        self._decided.clear()
        self._stop_tasks(confirm=False)
        self._shell.wake_later(self, None)

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
                self._stop_tasks(confirm=False)
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
        try:
            self._advance()
        except DomainError:
            raise
        except Exception as error:  # noqa: BLE001 - our bug: the actor dies and recovers from the log
            self._shell.crashed(self, error)
            return
        finally:
            self._advancing = False
        self._flush()

    def _advance(self) -> None:
        if not scheduling.is_open_for_nodes(self.state):
            return
        if self.state.input_ref is not None and self.state.input_ref.sha256 not in self._loaded:
            self._load_then_advance(NodeId(""), (self.state.input_ref,))
            return
        for _ in range(BURST_STEPS_MAX):
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
            asyncio.get_running_loop().call_soon(self.advance)
        if scheduling.is_finished(self.state) and NodeId("") not in self._tasks:
            self._finish()

    def _begin(self, node_id: NodeId) -> None:
        """Start one attempt of a node: its condition, its pure part, and what that asks for."""
        step = self.plan.steps[node_id]
        missing = self._missing(step.reads)
        if missing:
            self._load_then_advance(node_id, missing)
            return
        now = self._shell.now()
        node = self.state.nodes.get(node_id)
        attempt = 1 if node is None else node.attempt + (node.status == "retrying")
        scope = self.scope(step, attempt)
        try:
            if node is None and step.condition is not None and not step.condition(scope):
                self._decide(commands.SkipNode(at=now, node_id=node_id, reason="condition"))
                return
            self._decide(commands.StartNode(at=now, node_id=node_id, where=self._shell.owner))
            action = step.act(scope)
        except InvalidTransition:
            raise
        except Exception as error:  # noqa: BLE001 - templates and expressions may raise anything
            if node is None and node_id not in self.state.nodes:
                self._decide(commands.StartNode(at=now, node_id=node_id, where=self._shell.owner))
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
                    self._spawn(node_id, self._store_output(node_id, attempt, action))
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
                        child_flow=action.flow_id,
                        child_input=action.input,
                    )
                )
                self._spawn(node_id, self._await_child(node_id, self.state.nodes[node_id]))
            case _:
                self._spawn(node_id, self._perform(step, attempt, action))

    def _finish(self) -> None:
        missing = self._missing(self.plan.output_reads)
        if missing:
            self._load_then_advance(NodeId(""), missing)
            return
        now = self._shell.now()
        try:
            output = self.plan.output(self._scope_of(self.plan.output_reads, {}))
        except Exception as error:  # noqa: BLE001 - expressions may raise anything
            self._decide(commands.Fail(at=now, error=step_error(error)))
            return
        if is_surely_small(output):
            self._decide(commands.Complete(at=now, output=output))
        else:
            self._spawn(NodeId(""), self._complete_large(output))

    # --- what nodes can see -------------------------------------------------------------------------------

    def scope(self, step: Step, attempt: int) -> dict[str, Any]:
        """The scope of one attempt (see ``plan.Scope``); referenced large outputs must be loaded."""
        execution = {
            "id": self.state.execution_id,
            "flow": self.state.flow_id,
            "attempt": attempt,
            "key": self.idempotency_key(step.node_id, attempt),
        }
        return self._scope_of(step.reads, execution)

    def _scope_of(self, reads: tuple[NodeId, ...], execution: dict[str, Any]) -> dict[str, Any]:
        ref = self.state.input_ref
        return {
            "inputs": self._with_files(self.state.input if ref is None else self._loaded[ref.sha256]),
            "nodes": {node_id: self._output(node_id) for node_id in reads},
            "execution": execution or {"id": self.state.execution_id, "flow": self.state.flow_id},
        }

    def _with_files(self, inputs: Json) -> Json:
        if not self.state.files:
            return inputs
        return {**inputs, "$files": msgspec.to_builtins(self.state.files)}

    def _output(self, node_id: NodeId) -> Json:
        node = self.state.nodes.get(node_id)
        if node is None:
            return None
        return node.output if node.output_ref is None else self._loaded[node.output_ref.sha256]

    def draw(self) -> float:
        """A random number in [0, 1) from the host."""
        return self._shell.draw()

    def idempotency_key(self, node_id: NodeId, attempt: int) -> str:
        return f"{self.state.execution_id}:{node_id}:{attempt}"

    def _missing(self, reads: tuple[NodeId, ...]) -> tuple[BlobRef, ...]:
        refs = (self.state.nodes[n].output_ref for n in reads if n in self.state.nodes)
        return tuple(ref for ref in refs if ref is not None and ref.sha256 not in self._loaded)

    def _load_then_advance(self, node_id: NodeId, refs: tuple[BlobRef, ...]) -> None:
        self._spawn(node_id, self._load(node_id, refs))

    async def _load(self, node_id: NodeId, refs: tuple[BlobRef, ...]) -> None:
        try:
            for ref in refs:
                self._loaded[ref.sha256] = await self._shell.load(ref)
        except (DomainError, OSError, ValueError) as error:
            self._decide(commands.Fail(at=self._shell.now(), error=step_error(error)))
        finally:
            self._tasks.pop(node_id, None)
        self._restart_orphans()  # due_nodes does not name attempts that a recovery makes again
        self._candidates = None

    # --- tasks ------------------------------------------------------------------------------------------

    def _spawn(self, node_id: NodeId, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(self._guard(node_id, work))
        self._tasks[node_id] = task

    async def _guard(self, node_id: NodeId, work: Coroutine[Any, Any, None]) -> None:
        me = asyncio.current_task()
        try:
            await work
        except asyncio.CancelledError:
            return
        except DomainError:
            return  # fenced or closed meanwhile: `_on_committed` deals with it
        except Exception as error:  # noqa: BLE001 - our bug: the actor dies and recovers from the log
            self._shell.crashed(self, error)
            return
        finally:
            if self._tasks.get(node_id) is me:
                del self._tasks[node_id]
        if not self.is_stopped:
            self.advance()
            self._shell.changed(self)

    async def _perform(self, step: Step, attempt: int, action: Action) -> None:
        # The attempt's NodeStarted, and with it every input of the step, is durable before any effect.
        self._flush()
        await self.durable()
        outcome = await self._shell.perform(self, step, attempt, action)
        if outcome.error is None and outcome.output_ref is None and not is_surely_small(outcome.output):
            ref = await self._shell.store_if_large(outcome.output)
            if ref is not None:
                outcome = msgspec.structs.replace(outcome, output=None, output_ref=ref)
        self._record(step.node_id, attempt, outcome)

    async def _store_output(self, node_id: NodeId, attempt: int, output: Output) -> None:
        ref = await self._shell.store_if_large(output.value)
        self._decide(
            commands.RecordCompleted(
                at=self._shell.now(),
                node_id=node_id,
                attempt=attempt,
                output=None if ref else output.value,
                output_ref=ref,
                skips=output.skips,
            )
        )

    async def _complete_large(self, output: Json) -> None:
        ref = await self._shell.store_if_large(output)
        self._decide(commands.Complete(at=self._shell.now(), output=None if ref else output, output_ref=ref))

    async def _await_child(self, node_id: NodeId, node: NodeState) -> None:
        self._flush()
        await self.durable()
        outcome = await self._shell.run_child(self.state, node_id, node)
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

    def record_progress(
        self, node_id: NodeId, attempt: int, total: int, items: tuple[events.ItemOutcome, ...]
    ) -> None:
        """Record a batch of finished map items."""
        if self.is_stopped:
            return
        self._decide(
            commands.RecordProgress(
                at=self._shell.now(), node_id=node_id, attempt=attempt, total=total, items=items
            )
        )
        self._flush()

    def _record(self, node_id: NodeId, attempt: int, outcome: StepOutcome) -> None:
        now = self._shell.now()
        if outcome.error is None:
            self._decide(
                commands.RecordCompleted(
                    at=now,
                    node_id=node_id,
                    attempt=attempt,
                    output=outcome.output,
                    output_ref=outcome.output_ref,
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

    def _stop_tasks(self, *, confirm: bool) -> None:
        """Cancel what runs. ``confirm``: record the cancellation once all has stopped."""
        tasks = [task for task in self._tasks.values() if task is not _current_task()]
        for task in tasks:
            task.cancel()
        if confirm and not self.state.is_closed:
            confirmation = asyncio.get_running_loop().create_task(self._confirm_cancelled(tasks))
            self._tasks[NodeId("#cancel")] = confirmation

    async def _confirm_cancelled(self, tasks: list[asyncio.Task[None]]) -> None:
        if tasks:
            # Workers are killed after the grace period; the wait is bounded even if one can't be.
            await asyncio.wait(tasks, timeout=GRACE_SECONDS + 5)
        self._tasks.pop(NodeId("#cancel"), None)
        if not self.is_stopped and not self.state.is_closed:
            self._decide(commands.ConfirmCancelled(at=self._shell.now()))
            self._flush()


def _current_task() -> "asyncio.Task[Any] | None":
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def is_surely_small(value: Json) -> bool:
    """Cheap test that spares encoding a value only to learn that it is far below the claim-check bound."""
    if isinstance(value, str):
        return len(value) < 4_096
    return value is None or isinstance(value, bool | int | float)


def step_error(error: BaseException) -> StepError:
    message = str(error) or type(error).__name__
    return StepError(type=type(error).__name__, message=message[:ERROR_MESSAGE_CHARS_MAX])
