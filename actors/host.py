"""The host: one process in which many execution actors live.

    starting --first message--> recovering --(open executions taken over)--> running

    execution:  queued (waits for a place) --> admitted --> closed
                                                 |   ^
                                                 v   | message, timer
                                              passivated (only its row and its events remain)

The host alone moves these. ``admitted`` executions are bounded (``running_max``); those that wait for a
timer or a signal leave memory and give their place back. After a crash Ray starts the process again; its
new incarnation takes over what the old one owned, so a late write of the old one conflicts.

A plain class, tested without Ray; ``ExecutionHost`` is the one line that makes it an actor.
"""

import asyncio
import hashlib
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable
from pathlib import Path

import msgspec
import ray
import structlog
from ray.actor import exit_actor

from actors import messages
from actors.execution_actor import ExecutionActor
from actors.map_run import MapRun
from actors.messages import Answer, HostStatus, Message, Refusal, Reply, Send, Start
from actors.performer import Attempt, HttpClientFactory, Performer
from actors.plans import Plans
from actors.step_call import StepOutcome
from actors.watchers import Watchers
from actors.worker_pool import PoolSettings, WorkerPool
from actors.writer import Committed, GroupCommitWriter
from runtime import commands, execution, scheduling
from runtime.blob_store import BlobStore
from runtime.errors import (
    Conflict,
    Diverged,
    DomainError,
    InvalidTransition,
    NotFound,
    Overloaded,
    Unavailable,
)
from runtime.event_log import Append, Chain, EventLog
from runtime.events import BlobRef, Json, StepError
from runtime.ids import SECOND, FlowId, FlowVersion, HostName, Micros, NodeId, TenantId
from runtime.plan import Action, MapOver, Plan, Step
from runtime.state import ExecutionState, NodeState

log = structlog.get_logger(__name__)

RECOVERIES_AT_ONCE_MAX = 64
"""Executions being read back at the same time; the others wait for a permit."""

PASSIVATE_AFTER_SECONDS = 1.0
"""An execution that waits longer than this for its timer leaves memory."""

CRASHES_MAX = 3
"""Times an execution is recovered from a fault of ours before it fails with ``InternalError``."""

LEAVE_AFTER_SECONDS = 1.0
"""How long a dedicated host stays after its execution's end, for the feed to be read."""

WAKE_SECONDS_MAX = 60.0
"""The host asks the store for due timers at least this often."""


class HostConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a host needs to know; travels as JSON.

    ``running_max``: executions admitted at once. ``queued_max``: accepted executions that wait for a
    place; beyond it a start is refused (``Overloaded``). ``dedicated``: lives for one execution and ends
    with it.
    """

    name: str
    store: dict[str, str]
    blob_url: str
    running_max: int = 1_000
    queued_max: int = 20_000
    files_root: str = ""
    pool: PoolSettings = PoolSettings()
    dedicated: bool = False


class Host:
    """Lives on one event loop, made by the first message."""

    def __init__(self, config: bytes) -> None:
        self.config = msgspec.json.decode(config, type=HostConfig)
        self.incarnation = uuid.uuid4().hex[:8]
        self.owner = f"{self.config.name}/{self.incarnation}"
        self._files_root = Path(self.config.files_root).resolve() if self.config.files_root else None
        self._log = EventLog.open(self.config.store)
        self._plans = Plans(self._log)
        self._watchers = Watchers(self.incarnation)
        self._actors: dict[str, ExecutionActor] = {}
        self._activations: dict[str, asyncio.Task[ExecutionActor]] = {}
        self._queue: OrderedDict[str, None] = OrderedDict()
        self._admitted: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._ends: dict[str, list[asyncio.Future[ExecutionState]]] = {}
        self._crashes: dict[str, int] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._waker: asyncio.TimerHandle | None = None
        self._waker_at: float = 0.0
        self._random = random.Random(self.incarnation)
        self._started: asyncio.Future[None] | None = None
        self._state: str = "recovering"
        self._has_left = False

    # --- calls from outside ---------------------------------------------------------------------------

    async def deliver(self, batch: bytes) -> bytes:
        """Handle a batch of messages; answers in the same order, each once it is durable."""
        await self._start()
        answers = [self._handle(message) for message in messages.decode_messages(batch)]
        return messages.encode([answer if isinstance(answer, Answer) else await answer for answer in answers])

    async def poll(self, gateway_id: str, wait_seconds: float) -> bytes:
        """The next batch of the live feed for one gateway (see ``watchers``)."""
        await self._start()
        batch = await self._watchers.poll(gateway_id, wait_seconds)
        if self._has_left:
            exit_actor()  # works only inside of a call; Ray does not restart an actor that left by itself
        return messages.encode(batch)

    async def status(self) -> bytes:
        await self._start()
        status = HostStatus(
            incarnation=self.incarnation,
            state="running" if self._state == "running" else "recovering",
            in_memory=len(self._actors),
            queued=len(self._queue),
            admitted=len(self._admitted),
        )
        return messages.encode(status)

    async def close(self) -> None:
        """Write what is decided, forget the rest: the log has all that is needed to go on."""
        if self._started is None:
            return
        for actor in tuple(self._actors.values()):
            actor.stop()
        for task in tuple(self._background):
            task.cancel()
        if self._waker is not None:
            self._waker.cancel()
        await asyncio.to_thread(self._writer.close)
        await self._performer.close()
        self._log.close()

    # --- life -----------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """Once per process, before the first message: recovery begins, messages need not wait for it."""
        if self._started is not None:
            return
        loop = asyncio.get_running_loop()
        self._started = loop.create_future()
        self._started.set_result(None)
        self._writer = GroupCommitWriter(self._log, loop, self._watchers.publish)
        # Workers open and store payloads where the host does.
        limits = msgspec.structs.replace(self.config.pool.limits, blob_url=self.config.blob_url)
        self._performer = Performer(
            WorkerPool(msgspec.structs.replace(self.config.pool, limits=limits)),
            BlobStore(self.config.blob_url),
            HttpClientFactory(),
            self._files_root,
            self.owner,
        )
        self._permits = asyncio.Semaphore(RECOVERIES_AT_ONCE_MAX)
        self._spawn(self._recover(HostName(self.config.name)))

    async def _recover(self, owner: HostName) -> None:
        """Take over every open execution of ``owner``.

        Our own former incarnation's waiting ones are left alone: their rows bear our name, so their
        timers and messages still find us. Another host's are claimed, for theirs would find nobody.
        """
        waiting = owner != self.config.name
        after = ""
        while True:
            page = await asyncio.to_thread(self._log.open_executions, owner, after, waiting=waiting)
            for execution_id in page:
                await self._permits.acquire()
                self._spawn(self._recover_one(execution_id))
            if not page:
                break
            after = page[-1]
        for _ in range(RECOVERIES_AT_ONCE_MAX):
            await self._permits.acquire()
        for _ in range(RECOVERIES_AT_ONCE_MAX):
            self._permits.release()
        if self._state != "running":
            log.info("recovered", host=self.owner, in_memory=len(self._actors), queued=len(self._queue))
        self._state = "running"
        await self._wake_due()

    async def _recover_one(self, execution_id: str) -> None:
        try:
            await self._activate(execution_id)
        except NotFound:
            log.info("not recovered: ended meanwhile", execution=execution_id)
        except (DomainError, OSError) as error:
            log.error(
                "not recovered, trying again on its next message", execution=execution_id, error=str(error)
            )
        finally:
            self._permits.release()

    def _spawn(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except Unavailable as error:
                log.warning("background work gave up", error=str(error))

        task = asyncio.get_running_loop().create_task(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # --- messages -------------------------------------------------------------------------------------

    def _handle(self, message: Message) -> "Answer | Awaitable[Answer]":
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
                self._spawn(self._recover(HostName(message.owner)))
                return Reply()

    def _start_execution(self, command: commands.StartExecution) -> "Answer | Awaitable[Answer]":
        if command.execution_id in self._actors:
            return self._durable(self._actors[command.execution_id], "queued")
        if len(self._queue) >= self.config.queued_max:
            return messages.refusal_of(Overloaded("too many executions are waiting to start", 5))
        plan = self._plans.known(
            TenantId(command.tenant), FlowId(command.flow_id), FlowVersion(command.flow_version)
        )
        if plan is None:
            return self._load_plan_and_start(command)
        return self._durable(self._begin(command, plan), "queued")

    async def _load_plan_and_start(self, command: commands.StartExecution) -> Answer:
        try:
            plan = await self._plans.plan(
                TenantId(command.tenant), FlowId(command.flow_id), FlowVersion(command.flow_version)
            )
        except DomainError as error:
            return messages.refusal_of(error)
        actor = self._actors.get(command.execution_id) or self._begin(command, plan)
        return await self._durable(actor, "queued")

    def _begin(self, command: commands.StartExecution, plan: Plan) -> ExecutionActor:
        started = execution.start(msgspec.structs.replace(command, owner=self.owner), plan)
        actor = ExecutionActor.start(self, plan, started.state, started.events)
        self._actors[command.execution_id] = actor
        self._enqueue(actor)
        return actor

    async def _durable(self, actor: ExecutionActor, previous: str) -> Answer:
        try:
            await actor.durable()
        except Conflict:
            return await self._existing(actor.state.execution_id)
        except DomainError as error:
            return messages.refusal_of(error)
        return Reply(previous_status=previous, version=actor.state.version)

    async def _existing(self, execution_id: str) -> Answer:
        """The answer to a start whose id is taken: the request came before, and was accepted."""
        found = await asyncio.to_thread(self._log.read, execution_id, 0, 1)
        return (
            Reply(previous_status="queued", version=1) if found else Refusal("Unavailable", ("not accepted",))
        )

    async def _send(self, message: Send) -> Answer:
        try:
            actor = self._actors.get(message.execution_id) or await self._activate(message.execution_id)
            reply = actor.receive(message.command)
            await actor.durable()
        except DomainError as error:
            return messages.refusal_of(error)
        return reply

    # --- activation, admission, passivation -------------------------------------------------------------

    async def _activate(self, execution_id: str) -> ExecutionActor:
        """The actor of an open execution, read back from the log if it isn't in memory.

        Raises: NotFound, InvalidTransition when it has ended, Diverged, Unavailable.
        """
        actor = self._actors.get(execution_id)
        if actor is not None:
            return actor
        activation = self._activations.get(execution_id)
        if activation is None:
            activation = asyncio.get_running_loop().create_task(self._load(execution_id))
            self._activations[execution_id] = activation
            activation.add_done_callback(lambda _: self._activations.pop(execution_id, None))
        return await asyncio.shield(activation)

    async def _load(self, execution_id: str) -> ExecutionActor:
        recorded = await asyncio.to_thread(self._log.read, execution_id)
        if not recorded:
            raise NotFound("execution not found")
        state = execution.fold(event.event() for event in recorded)
        if state is None:
            raise Diverged(f"{execution_id}: empty history")
        if state.is_closed:
            raise InvalidTransition(f"the execution is already {state.status}")
        plan = await self._plans.plan(
            TenantId(state.tenant), FlowId(state.flow_id), FlowVersion(state.flow_version)
        )
        actor = ExecutionActor(self, plan, state, Chain(recorded[-1].hash()))
        self._actors[execution_id] = actor
        if state.started_at is None:
            self._take_over_queued(actor)
        else:
            self._admitted.add(execution_id)
            actor.resume()
        return actor

    def _take_over_queued(self, actor: ExecutionActor) -> None:
        actor.resume()
        if not actor.state.is_closed:
            self._enqueue(actor)

    def _enqueue(self, actor: ExecutionActor) -> None:
        self._queue[actor.state.execution_id] = None
        self._admit()

    def _admit(self) -> None:
        while self._queue and len(self._admitted) < self.config.running_max:
            execution_id, _ = self._queue.popitem(last=False)
            actor = self._actors.get(execution_id)
            if actor is None or actor.state.is_closed or actor.state.cancel_requested_at is not None:
                continue
            self._admitted.add(execution_id)
            actor.receive(commands.Admit(at=self.now()))

    def _release(self, execution_id: str) -> None:
        self._queue.pop(execution_id, None)
        if execution_id in self._admitted:
            self._admitted.discard(execution_id)
            if self._queue:
                asyncio.get_running_loop().call_soon(self._admit)

    def _remove(self, actor: ExecutionActor) -> None:
        execution_id = actor.state.execution_id
        if self._actors.get(execution_id) is actor:
            del self._actors[execution_id]
        timer = self._timers.pop(execution_id, None)
        if timer is not None:
            timer.cancel()
        self._release(execution_id)

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
        if state.is_closed:
            self._remove(actor)
            self._crashes.pop(state.execution_id, None)
            for end in self._ends.pop(state.execution_id, ()):
                if not end.done():
                    end.set_result(state)
            if self.config.dedicated and not self._actors:
                self._spawn(self._leave())
        elif scheduling.is_idle(state) and not actor.is_busy:
            wake_at = scheduling.wake_at(state)
            if wake_at is None or wake_at - self.now() > PASSIVATE_AFTER_SECONDS * SECOND:
                self._passivate(actor, wake_at)

    def _passivate(self, actor: ExecutionActor, wake_at: Micros | None) -> None:
        actor.stop()
        self._remove(actor)
        if wake_at is not None:
            self._wake_by(wake_at)

    async def _leave(self) -> None:
        """A dedicated host ends with its execution, after its followers were told of the end."""
        await asyncio.sleep(LEAVE_AFTER_SECONDS)
        if not self._actors:
            self._has_left = True
            self._watchers.wake_all()

    def fenced(self, actor: ExecutionActor) -> None:
        """Somebody else wrote the stream. Forget it, unless the log says that it is still ours."""
        if actor.is_stopped:
            return
        log.warning("fenced", execution=actor.state.execution_id, host=self.owner)
        actor.stop()
        self._remove(actor)
        if actor.state.version > 1:
            self._spawn(self._reclaim(actor.state.execution_id))

    async def _reclaim(self, execution_id: str) -> None:
        recorded = await asyncio.to_thread(self._log.read, execution_id)
        state = execution.fold(event.event() for event in recorded)
        if state is not None and not state.is_closed and state.owner == self.owner:
            await self._activate(execution_id)

    def crashed(self, actor: ExecutionActor, error: BaseException) -> None:
        """A fault of ours: drop what was not recorded and go on from the log, a bounded number of times."""
        execution_id = actor.state.execution_id
        log.error("execution actor crashed", execution=execution_id, exc_info=error)
        actor.stop()
        self._remove(actor)
        crashes = self._crashes[execution_id] = self._crashes.get(execution_id, 0) + 1
        self._spawn(self._revive(execution_id, give_up=crashes >= CRASHES_MAX))

    async def _revive(self, execution_id: str, *, give_up: bool) -> None:
        await asyncio.sleep(self._crashes.get(execution_id, 1) * 0.2)
        if not give_up:
            await self._activate(execution_id)
            return
        recorded = await asyncio.to_thread(self._log.read, execution_id)
        state = execution.fold(event.event() for event in recorded)
        if state is None or state.is_closed:
            return
        plan = await self._plans.plan(
            TenantId(state.tenant), FlowId(state.flow_id), FlowVersion(state.flow_version)
        )
        error = StepError(type="InternalError", message="the runtime failed; see the server's log")
        decision = execution.decide(state, plan, commands.Fail(at=self.now(), error=error))
        append = Append(execution_id, decision.events, decision.state, Chain(recorded[-1].hash()))
        await self.append(append)

    def wake_later(self, actor: ExecutionActor, at: Micros | None) -> None:
        execution_id = actor.state.execution_id
        timer = self._timers.pop(execution_id, None)
        if timer is not None:
            timer.cancel()
        if at is not None and not actor.is_stopped:
            delay = max(0.0, (at - self.now()) / SECOND)
            self._timers[execution_id] = asyncio.get_running_loop().call_later(delay, self._wake, actor)

    def _wake(self, actor: ExecutionActor) -> None:
        self._timers.pop(actor.state.execution_id, None)
        if not actor.is_stopped:
            actor.wake()

    def _wake_by(self, at: Micros) -> None:
        """Make sure that the store is asked for due timers at ``at``."""
        loop = asyncio.get_running_loop()
        due = loop.time() + min(WAKE_SECONDS_MAX, max(0.0, (at - self.now()) / SECOND))
        if self._waker is not None and not self._waker.cancelled():
            if self._waker_at <= due and self._waker_at > loop.time():
                return
            self._waker.cancel()
        self._waker_at = due
        self._waker = loop.call_at(due, lambda: self._spawn(self._wake_due()))

    async def _wake_due(self) -> None:
        """Bring back passivated executions whose timer came due."""
        owner = HostName(self.config.name)
        due = await asyncio.to_thread(self._log.due, owner, self.now(), 1_000)
        for execution_id in due:
            if execution_id not in self._actors:
                await self._permits.acquire()
                self._spawn(self._recover_one(execution_id))
        next_wake = await asyncio.to_thread(self._log.next_wake, owner)
        if next_wake is not None:
            # Not at once again for those that are being activated right now.
            self._wake_by(Micros(max(next_wake, self.now() + SECOND // 10)))

    # --- effects ------------------------------------------------------------------------------------------

    async def perform(self, actor: ExecutionActor, step: Step, attempt: int, action: Action) -> StepOutcome:
        if isinstance(action, MapOver):
            return await MapRun(actor, self._performer, step, attempt, action).run()
        return await self._performer.perform(
            action,
            Attempt(
                execution_id=actor.state.execution_id,
                node_id=step.node_id,
                attempt=attempt,
                key=actor.idempotency_key(step.node_id, attempt),
                timeout_seconds=step.timeout_seconds,
                resources=step.resources or (actor.plan.resources if self.config.dedicated else None),
                files=actor.state.files,
            ),
        )

    async def load(self, ref: BlobRef) -> Json:
        return await self._performer.load(ref)

    async def store_if_large(self, value: Json) -> BlobRef | None:
        return await self._performer.store_if_large(value)

    # --- child flows --------------------------------------------------------------------------------------

    def child_id(self, parent: ExecutionState, node_id: NodeId, attempt: int) -> str:
        """Derived, not drawn: a repeated start after a crash finds the child it started before."""
        name = f"{parent.execution_id}:{node_id}:{attempt}".encode()
        return str(uuid.UUID(bytes=hashlib.sha256(name).digest()[:16], version=8))

    async def run_child(self, parent: ExecutionState, node_id: NodeId, node: NodeState) -> StepOutcome:
        """Start the child (or find it) and wait for its end; cancelling the wait cancels the child."""
        try:
            state = await self._child_end(parent, node_id, node)
        except asyncio.CancelledError:
            self.cancel_child(node.child_id)
            raise
        except DomainError as error:
            return StepOutcome(error=StepError(type="ChildFailed", message=str(error)))
        if state.status == "completed":
            return StepOutcome(output=state.output, output_ref=state.output_ref)
        reason = state.error.message if state.error else state.status
        message = f"child execution {node.child_id} {state.status}: {reason}"
        return StepOutcome(error=StepError(type="ChildFailed", message=message[:2_000]))

    async def _child_end(self, parent: ExecutionState, node_id: NodeId, node: NodeState) -> ExecutionState:
        end: asyncio.Future[ExecutionState] = asyncio.get_running_loop().create_future()
        self._ends.setdefault(node.child_id, []).append(end)
        recorded = await asyncio.to_thread(self._log.read, node.child_id)
        state = execution.fold(event.event() for event in recorded)
        if state is not None and state.is_closed:
            return state
        if state is None:
            tenant, flow_id = TenantId(parent.tenant), FlowId(node.child_flow)
            version = await self._plans.latest(tenant, flow_id)
            answer = await self._load_plan_and_start(
                commands.StartExecution(
                    at=self.now(),
                    by=parent.by,
                    cause=parent.execution_id,
                    execution_id=node.child_id,
                    tenant=parent.tenant,
                    flow_id=flow_id,
                    flow_version=version,
                    source="flow",
                    input=node.child_input,
                    correlation_id=parent.correlation_id or parent.execution_id,
                    parent_id=parent.execution_id,
                    parent_node=node_id,
                )
            )
            if isinstance(answer, Refusal):
                raise messages.error_of(answer)
        else:
            await self._activate(node.child_id)
        return await end

    def cancel_child(self, child_id: str) -> None:
        async def cancel() -> None:
            command = commands.RequestCancel(at=self.now(), reason="the parent ended")
            answer = await self._send(Send(child_id, command))
            if isinstance(answer, Refusal):
                log.info("child not cancelled", execution=child_id, reason=answer.args)

        self._spawn(cancel())


ExecutionHost = ray.remote(Host)
