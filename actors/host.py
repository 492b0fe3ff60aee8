"""The host: one process in which many execution actors live.

    starting --first message--> recovering --(open executions taken over)--> running

    execution:  queued (waits for its queue, a place, its turn) --> admitted --> closed
                                                                      |   ^
                                                                      v   | message, timer
                                              passivated (only its row and its events remain)

The host alone moves these. ``admitted`` executions are bounded (``running_max``); those that wait for a
timer or a signal leave memory and give their place back (see ``admission``). After a crash Ray starts the
process again; its new incarnation takes over what the old one owned, so a late write of the old one
conflicts. A plain class, tested without Ray; ``ExecutionHost`` makes it an actor.
"""

import asyncio
import os
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import ray
import structlog
from ray.actor import exit_actor

from actors import messages
from actors.agent_nodes import AgentNodes
from actors.children import Children, child_id
from actors.egress_transport import VettedClientFactory
from actors.environment_pools import EnvironmentPools
from actors.environments import Environments
from actors.execution_actor import ExecutionActor
from actors.feed import FeedServer
from actors.host_config import HostConfig
from actors.host_vitals import Vitals
from actors.leaving import Leaving
from actors.maps import Maps
from actors.messages import Answer, Message, Refusal, Reply, Send, Start
from actors.performer import Attempt, Performer
from actors.placement_reports import PlacementReports
from actors.plans import Plans
from actors.queue_line import queue_of, ticket_of
from actors.queue_reads import QueueReads, refuse_waiting_for_itself
from actors.recovery import Recovery
from actors.repeats import answer_again, is_repeated_cancel
from actors.revival import Revival, is_due
from actors.source_files import SourceAccess
from actors.step_call import StepOutcome
from actors.structured_logs import configure_host
from actors.wake_ups import WakeUps
from actors.watchers import Watchers
from actors.writer import Committed, GroupCommitWriter
from runtime import commands, execution, scheduling
from runtime.blob_store import BlobStore
from runtime.errors import (
    Conflict,
    Diverged,
    DomainError,
    InvalidTransition,
    InvariantViolated,
    NotFound,
    Overloaded,
    Refused,
    Unavailable,
)
from runtime.event_log import Append, Chain, EventLog
from runtime.events import BlobRef, Json
from runtime.ids import SECOND, FlowId, FlowVersion, HostName, Micros, NodeId, TenantId
from runtime.plan import Action, CallTool, MapOver, Plan, RunAgent, Step, WideMap
from runtime.queue_keys import placed
from runtime.state import ExecutionState, NodeState

log = structlog.get_logger(__name__)

PASSIVATE_AFTER_SECONDS = 1.0
"""An execution that waits longer than this for its timer leaves memory."""

FULL = Overloaded("too many executions are waiting to start", 5)

ACTIVATIONS_MAX = 5
"""Times a message finds its execution leaving memory before it is refused (``Unavailable``)."""


class Host:
    """Lives on one event loop, made by the first message."""

    def __init__(
        self, config: bytes, open_log: Callable[[Mapping[str, str]], EventLog] = EventLog.open
    ) -> None:
        self.config = msgspec.json.decode(config, type=HostConfig)
        if self.config.log_file:
            configure_host(self.config.log_file, self.config.log_level)
        self.incarnation = uuid.uuid4().hex[:8]
        self.owner = f"{self.config.name}/{self.incarnation}"
        self._files_root = Path(self.config.files_root).resolve() if self.config.files_root else None
        self._log = open_log(self.config.log_env)
        self._plans = Plans(self._log)
        self._watchers = Watchers(self.incarnation)
        self._feeds = FeedServer(self._watchers, lambda: self._state in ("leaving", "closed"))
        self._actors: dict[str, ExecutionActor] = {}
        self._activations: dict[str, asyncio.Task[ExecutionActor]] = {}
        self._queue_reads = QueueReads(self._log, HostName(self.config.name), self)
        self._admission = self._queue_reads.admission(
            self.config.running_max, self.config.queued_max, self.config.tenant_running_max
        )
        self._timers: dict[ExecutionActor, asyncio.TimerHandle] = {}
        self._wake_ups = WakeUps(self._log, HostName(self.config.name), self)
        self._recovery = Recovery(self._log, HostName(self.config.name), self._wake_ups, self)
        self._children = Children(self._log, self._plans, self)
        self._revival = Revival(self._log, self._plans, self._recovery, self)
        self._reports = PlacementReports(self._admission)
        self._leaving = Leaving(self._actors, self)
        self._vitals = Vitals(self.config.running_max, self._reports)
        self._background: set[asyncio.Task[None]] = set()
        self._random = random.Random(self.incarnation)
        self._is_started = False
        self._closing: asyncio.Task[None] | None = None
        self._state: Literal["recovering", "running", "leaving", "closed"] = "recovering"

    # --- calls from outside ---------------------------------------------------------------------------

    async def deliver(self, batch: bytes) -> bytes:
        """Handle a batch of messages; answers in the same order, each once it is durable."""
        await self._start()
        # Each is taken up before the first is waited for: one that must be read back holds up nobody.
        answers = [self._handle(message) for message in messages.decode_messages(batch)]
        return messages.encode(
            [answer if isinstance(answer, Answer) else await self._settled(answer) for answer in answers]
        )

    async def feed(self, gateway_id: str) -> bytes:
        """Where this gateway gets the live feed (see ``feed``)."""
        await self._start()
        if self._feeds.is_over(gateway_id):
            await self.close()
            exit_actor()  # of every call that comes now: Ray waits for all that are under way
        return await self._feeds.address()

    async def status(self) -> bytes:
        await self._start()
        state = "draining" if self._leaving.is_on else self._state
        return messages.encode(
            self._vitals.status(state, self.incarnation, len(self._actors), self._admission)
        )

    async def drain(self, seconds: float) -> bytes:
        """Begin to leave (see ``leaving``), or go on; the ids of executions that are still here."""
        await self._start()
        self._leaving.begin(seconds)
        return messages.encode([*self._actors, *self._activations])

    async def close(self) -> None:
        """Write what is decided, forget the rest: the log has all that is needed to go on."""
        if self._is_started:
            self._closing = self._closing or asyncio.create_task(self._close())
            await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._state = "closed"
        for actor in tuple(self._actors.values()):
            actor.stop()
        self._wake_ups.close()
        self._queue_reads.close()
        tasks: list[asyncio.Task[Any]] = [*self._background, *self._activations.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._writer.close)
        await self._agents.close()
        await self._performer.close()
        self._log.close()
        await self._feeds.close()

    # --- life -----------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """Once per process, before the first message: recovery begins, messages need not wait for it."""
        if self._is_started:
            return
        self._is_started = True
        self._writer = GroupCommitWriter(self._log, asyncio.get_running_loop(), self._watchers.publish)
        blobs = BlobStore(self.config.blob_url)
        pool = EnvironmentPools(self.config.worker_pool(os.environ), Environments(blobs))
        self._performer = Performer(
            pool,
            blobs,
            VettedClientFactory(self.config.egress_allow),
            SourceAccess(
                blobs=blobs,
                files_root=self._files_root,
                egress_allow=self.config.egress_allow,
                sources_allow=self.config.sources_allow,
            ),
            self.owner,
        )
        self._maps = Maps(self.config, self, self._performer, pool, blobs, self._reports)
        self._agents = AgentNodes(self._performer, self._children, blobs, self.config.agents, self.owner)
        self.spawn(self._recover())

    async def _recover(self) -> None:
        await self._recovery.take_over(HostName(self.config.name))
        log.info("recovered", host=self.owner, in_memory=len(self._actors), queued=self._admission.queued)
        self._state = "running"
        if self._leaving.is_on:
            return
        self._admission.open()
        self._agents.prepare()
        await self._wake_ups.look()
        await self._recovery.look_at_waiting()

    async def _adopt(self, owner: HostName, held: tuple[str, ...]) -> None:
        if not self._leaving.is_on:
            await self._recovery.take_over(owner, frozenset(held))
            await self._wake_ups.look()

    async def bring_back(self, execution_id: str) -> None:
        """Begin to read an execution back; waits only for a permit to do so."""
        await self._recovery.bring_back(execution_id)

    async def is_due(self, execution_id: str) -> bool:
        """Whether a passivated execution has something to do that no timer or message will bring."""
        return await is_due(self._log, self._plans, execution_id, self.now())

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do ``work`` in the background until it is done or the host closes."""

        async def run() -> None:
            try:
                await work
            except Exception as error:  # nobody waits for it: it must at least be seen
                log.error("background work failed", host=self.owner, exc_info=error)

        task = asyncio.get_running_loop().create_task(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(lambda _: work.close())  # it never began if the host closed at once
        return task

    # --- messages -------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> "Answer | Awaitable[Answer]":
        if self._state == "closed":
            return Refusal("Unavailable", ("the host is shutting down",))
        match message:
            case Start():
                return self._start_execution(message.command)
            case Send():
                return self._send(message)
            case messages.Watch():
                self._watchers.watch(message.gateway_id, message.execution_ids)
                return Reply()
            case messages.Unwatch():
                self._watchers.unwatch(message.gateway_id, message.execution_ids)
                return Reply()
            case messages.Adopt():
                self.spawn(self._adopt(HostName(message.owner), message.held))
                return Reply()

    async def _settled(self, answer: Awaitable[Answer]) -> Answer:
        try:
            return await answer
        except DomainError as error:
            return messages.refusal_of(error)
        except Exception as error:  # our bug must not take the batch's other answers along
            log.error("a message failed", host=self.owner, exc_info=error)
            return Refusal("Unavailable", ("the runtime failed; see the server's log",))

    def _start_execution(self, command: commands.StartExecution) -> "Answer | Awaitable[Answer]":
        actor = self._actors.get(command.execution_id)
        if actor is not None:
            return self._accepted(actor)
        if self._leaving.is_on:
            return Refusal("Conflict", (command.execution_id, 1))  # another host takes it
        if self._is_full(command):
            return messages.refusal_of(FULL)
        plan = self._plans.known(
            TenantId(command.tenant), FlowId(command.flow_id), FlowVersion(command.flow_version)
        )
        if plan is None or command.execution_id in self._activations:
            return asyncio.ensure_future(self._load_plan_and_start(command))
        try:
            return self._accepted(self._begin(command, plan))
        except Refused as error:
            return messages.refusal_of(error)

    def _is_full(self, command: commands.StartExecution) -> bool:
        return self._admission.is_full(TenantId(command.tenant), has_queue=command.queue_key != "")

    async def _load_plan_and_start(self, command: commands.StartExecution) -> Answer:
        plan = await self._plans.plan(
            TenantId(command.tenant), FlowId(command.flow_id), FlowVersion(command.flow_version)
        )
        activation = self._activations.get(command.execution_id)
        if activation is not None:
            await asyncio.wait([activation])
        actor = self._actors.get(command.execution_id)
        if actor is None:
            if not command.parent_id and self._is_full(command):
                return messages.refusal_of(FULL)
            actor = self._begin(command, plan)
        return await self._accepted(actor)

    async def start_child(self, command: commands.StartExecution) -> Answer:
        """Start an execution whose parent lives here; only its own queue can make it wait."""
        return await self._settled(self._load_plan_and_start(command))

    def _begin(self, command: commands.StartExecution, plan: Plan) -> ExecutionActor:
        command = placed(command, plan)
        refuse_waiting_for_itself(command, plan.queue, self.state_of)
        started = execution.start(msgspec.structs.replace(command, owner=self.owner), plan)
        actor = ExecutionActor.start(self, plan, started.state, started.events)
        self._actors[command.execution_id] = actor
        self._enqueue(actor)
        return actor

    async def _accepted(self, actor: ExecutionActor) -> Answer:
        """The answer to a start, once it is durable."""
        try:
            await actor.durable()
        except Conflict:
            return await self._existing(actor.state.execution_id)
        return Reply(previous_status="queued", version=actor.state.version)

    async def _existing(self, execution_id: str) -> Answer:
        """The answer to a start whose id is taken: the request came before, and was accepted."""
        found = await asyncio.to_thread(self._log.read, execution_id, 0, 1)
        if not found:
            return Refusal("Unavailable", ("not accepted; send it again",))
        return Reply(previous_status="queued", version=1)

    def _send(self, message: Send) -> "Answer | Awaitable[Answer]":
        actor = self._actors.get(message.execution_id)
        if actor is None or is_repeated_cancel(actor.state, message.command):
            return asyncio.ensure_future(self._find_and_send(message))
        try:
            reply = actor.receive(message.command)
        except DomainError as error:
            return messages.refusal_of(error)
        return self._once_durable(actor, reply)

    async def deliver_here(self, message: Send) -> Answer:
        """Hand ``message`` to its execution, wherever that lived before."""
        return await self._settled(self._find_and_send(message, is_ours=True))

    async def _once_durable(self, actor: ExecutionActor, reply: Reply) -> Answer:
        try:
            await actor.durable()
        except InvariantViolated:
            return Refusal("Unavailable", ("the runtime failed; see the server's log",))
        return reply

    async def _find_and_send(self, message: Send, *, is_ours: bool = False) -> Answer:
        for _ in range(ACTIVATIONS_MAX):
            try:
                actor = await self._activate(message.execution_id, is_ours=is_ours)
            except InvalidTransition:
                return await answer_again(self._log, self._plans, message)
            if is_repeated_cancel(actor.state, message.command):
                await actor.durable()
                return await answer_again(self._log, self._plans, message)
            if actor.is_stopped:
                continue  # it left memory between its activation and now
            try:
                return await self._once_durable(actor, actor.receive(message.command))
            finally:
                self.changed(actor)
        return Refusal("Unavailable", ("the execution is being recovered; send it again",))

    # --- activation, admission, passivation -------------------------------------------------------------

    async def _activate(self, execution_id: str, *, is_ours: bool = False) -> ExecutionActor:
        """The actor of an open execution, read back from the log if it isn't in memory.

        ``is_ours``: also while the host is leaving, which otherwise takes nothing back.
        Raises: NotFound, InvalidTransition when it has ended, Conflict while leaving, Diverged, Unavailable.
        """
        actor = self._actors.get(execution_id)
        if actor is not None:
            return actor
        activation = self._activations.get(execution_id)
        if activation is None:
            activation = asyncio.get_running_loop().create_task(self._load(execution_id, is_ours))
            self._activations[execution_id] = activation
            activation.add_done_callback(lambda done: self._activated(execution_id, done))
        return await asyncio.shield(activation)

    def _activated(self, execution_id: str, activation: "asyncio.Task[ExecutionActor]") -> None:
        self._activations.pop(execution_id, None)
        if not activation.cancelled():
            activation.exception()  # whoever waited has it; nobody may have

    async def bring_here(self, execution_id: str) -> None:
        """Have this execution in memory if it has anything to do. Raises: as ``_activate``."""
        self.changed(await self._activate(execution_id))

    def is_here(self, execution_id: str) -> bool:
        return execution_id in self._actors or execution_id in self._activations

    def state_of(self, execution_id: str) -> ExecutionState | None:
        """The state of an execution in memory."""
        actor = self._actors.get(execution_id)
        return None if actor is None else actor.state

    async def _load(self, execution_id: str, is_ours: bool) -> ExecutionActor:
        recorded = await asyncio.to_thread(self._log.read, execution_id)
        if not recorded:
            raise NotFound("execution not found")
        state = execution.fold(event.event() for event in recorded)
        if state is None:
            raise Diverged(f"{execution_id}: empty history")
        if state.is_closed:
            raise InvalidTransition(f"the execution is already {state.status}")
        if self._leaving.is_on and not is_ours:
            raise Conflict(execution_id, state.version)
        plan = await self._plans.plan(
            TenantId(state.tenant), FlowId(state.flow_id), FlowVersion(state.flow_version)
        )
        actor = ExecutionActor(self, plan, state, Chain(recorded[-1].hash()))
        self._actors[execution_id] = actor
        if state.started_at is not None:
            self._admission.take_place(ticket_of(state, plan.queue), state.queue_slot)
        actor.resume()
        if state.started_at is None and not (actor.is_stopped or actor.state.is_closed):
            self._enqueue(actor)
        return actor

    def _enqueue(self, actor: ExecutionActor) -> None:
        self._admission.enqueue(ticket_of(actor.state, actor.plan.queue))

    def admit(self, execution_id: str, queue_slot: int | None) -> bool:
        """Let an execution begin; False: it no longer wants to."""
        actor = self._actors.get(execution_id)
        if actor is None or actor.state.is_closed or actor.state.cancel_requested_at is not None:
            return False
        try:
            actor.receive(commands.Admit(at=self.now(), queue_slot=queue_slot))
        except Unavailable:
            log.warning("crashed while being admitted", execution=execution_id)
            return False
        return True

    def _remove(self, actor: ExecutionActor) -> None:
        execution_id = actor.state.execution_id
        if self._actors.get(execution_id) is actor:
            del self._actors[execution_id]
            self._admission.leave(execution_id)
            self._watchers.forget_texts(execution_id)
        timer = self._timers.pop(actor, None)
        if timer is not None:
            timer.cancel()

    # --- the shell of the actors --------------------------------------------------------------------------

    def now(self) -> Micros:
        return Micros(time.time_ns() // 1_000)

    def draw(self) -> float:
        return self._random.random()

    def append(self, append: Append) -> Committed:
        return self._writer.append(append)

    def changed(self, actor: ExecutionActor) -> None:
        """Everything the actor decided so far is durable: it may have ended, or have nothing to do."""
        state = actor.state
        if actor.is_stopped or not actor.is_durable:
            return
        if state.is_closed:
            self._remove(actor)
            self._admission.ended(state.execution_id, queue_of(state))
            self.ended(state.execution_id, state)
            if state.error is not None:
                about = {"execution": state.execution_id, "node": state.failed_node}
                log.warning("execution failed", error=state.error.type, **about)
        elif self._leaving.takes(actor):
            self.give_up(actor)
            self._children.look_at(state.execution_id)
        elif scheduling.is_idle(state) and not actor.is_busy:
            wake_at = scheduling.wake_at(state)
            if wake_at is None or wake_at - self.now() > PASSIVATE_AFTER_SECONDS * SECOND:
                self.give_up(actor)
                if wake_at is not None:
                    self._wake_ups.by(wake_at)

    def give_up(self, actor: ExecutionActor) -> None:
        """Forget it; the log has what is needed to go on, here or elsewhere."""
        actor.stop()
        self._remove(actor)

    def end_intake(self) -> None:
        self._admission.close()
        self._wake_ups.close()

    @property
    def is_leaving(self) -> bool:
        return self._leaving.is_on

    def ended(self, execution_id: str, state: ExecutionState | None = None) -> None:
        """The execution has durably ended, in this state if it is at hand."""
        self._revival.forget(execution_id)
        self._children.look_at(execution_id, state)
        if self.config.dedicated and not self._actors and self._state != "closed":
            # Leaves when its gateway asks for the feed again, which has the end of the stream by then.
            self._state = "leaving"
            self._watchers.wake_all()

    def delta(self, execution_id: str, node_id: NodeId, step: str, offset: int, text: str) -> None:
        self._watchers.delta(messages.Delta(execution_id, node_id, step, offset, text))

    def fenced(self, actor: ExecutionActor) -> None:
        """Somebody else wrote the stream. Forget it, unless the log says that it is still ours."""
        if actor.is_stopped:
            return
        log.warning("fenced", execution=actor.state.execution_id, host=self.owner)
        actor.stop()
        self._remove(actor)
        self._admission.doubt(actor.state.execution_id, queue_of(actor.state))
        self._revival.fenced(actor.state.execution_id)

    def crashed(self, actor: ExecutionActor, error: BaseException) -> None:
        """A fault of ours: drop what was not recorded and go on from the log, a bounded number of times."""
        if actor.is_stopped:
            return
        execution_id = actor.state.execution_id
        log.error("execution actor crashed", execution=execution_id, exc_info=error)
        actor.stop()
        self._remove(actor)
        self._admission.doubt(execution_id, queue_of(actor.state))
        self._revival.crashed(execution_id)

    def wake_later(self, actor: ExecutionActor, at: Micros | None) -> None:
        timer = self._timers.pop(actor, None)
        if timer is not None:
            timer.cancel()
        if at is not None and not actor.is_stopped:
            delay = max(0.001, (at - self.now()) / SECOND)
            self._timers[actor] = asyncio.get_running_loop().call_later(delay, self._wake, actor)

    def _wake(self, actor: ExecutionActor) -> None:
        self._timers.pop(actor, None)
        if not actor.is_stopped:
            actor.wake()

    # --- effects ------------------------------------------------------------------------------------------

    async def perform(
        self, actor: ExecutionActor, step: Step, attempt: int, action: Action
    ) -> StepOutcome | None:
        if isinstance(action, MapOver | WideMap):
            return await self._maps.run(actor, step, attempt, action)
        return await self.perform_item(
            actor,
            action,
            Attempt(
                execution_id=actor.state.execution_id,
                node_id=step.node_id,
                attempt=attempt,
                key=actor.idempotency_key(step.node_id, attempt),
                timeout_seconds=step.timeout_seconds,
                resources=step.resources,
                files=actor.state.files,
            ),
        )

    async def perform_item(self, actor: ExecutionActor, action: Action, attempt: Attempt) -> StepOutcome:
        plan = actor.plan
        if plan.code is not None or plan.resources is not None:
            # A dedicated host holds the flow's resources itself, for whatever names none of its own.
            resources = attempt.resources or (None if self.config.dedicated else plan.resources)
            attempt = msgspec.structs.replace(attempt, code=plan.code, resources=resources)
        if isinstance(action, RunAgent | CallTool):
            return await self._agents.run(actor, action, attempt)
        tell = None
        if attempt.resources is not None:
            tell = self._reports.teller(actor, attempt.node_id, attempt.attempt)
        return await self._performer.perform(action, attempt, tell)

    async def load(self, ref: BlobRef) -> Json:
        return await self._performer.load(ref)

    async def store_if_large(self, value: Json) -> BlobRef | None:
        return await self._performer.store_if_large(value)

    # --- child flows --------------------------------------------------------------------------------------

    def child_id(self, parent: ExecutionState, node_id: NodeId, attempt: int) -> str:
        return child_id(parent.execution_id, node_id, attempt)

    async def run_child(self, parent: ExecutionState, node_id: NodeId, node: NodeState) -> StepOutcome:
        return await self._children.run(parent, node_id, node)

    def cancel_children(self, child_ids: Iterable[str], after: Committed) -> None:
        self._children.cancel(child_ids, after)


ExecutionHost = ray.remote(Host)
