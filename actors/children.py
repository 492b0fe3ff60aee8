"""Child flows: started once, waited for until their end, wherever they live and whatever crashes.

A child is an execution like any other, with its own stream. Its id is derived from parent, node and
attempt (or item of a map), so a parent that recovers finds the child it started before. The parent learns
the end from this host when the child lives here, and from the log otherwise.
"""

import asyncio
import hashlib
import uuid
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, Protocol

import structlog

from actors import messages
from actors.messages import Answer, Refusal, Send
from actors.patience import until_available
from actors.plans import Plans
from actors.step_call import StepOutcome
from actors.writer import Committed
from runtime import chunks, commands, execution
from runtime.errors import Conflict, DomainError, InvalidTransition, InvariantViolated, Unavailable
from runtime.event_log import EventLog, Recorded
from runtime.events import StepError
from runtime.ids import FlowId, FlowVersion, Micros, NodeId, TenantId
from runtime.plan import Plan
from runtime.state import ExecutionState, NodeState

log = structlog.get_logger(__name__)

RECHECK_SECONDS = 30.0
"""A parent that hears nothing looks into its child's log this often."""

DEPTH_MAX = 20
"""Flows inside flows; a deeper child fails its node, so a flow that runs itself comes to an end."""

CANCEL_TRIES_MAX = 5
CANCELS_AT_ONCE = 32

ITEMS_AHEAD_MAX = 6_000
"""Items of a map that may have begun behind the last recorded one: in flight, or done and held back."""

ITEM_TRIES_MAX = 3
"""Tries of an item whose children are looked for."""


ELSEWHERE_SECONDS = 2.0
"""The same for a child that another host took over: nobody here hears of it."""


class Home(Protocol):
    """What child flows need of their host."""

    owner: str

    def now(self) -> Micros: ...
    def state_of(self, execution_id: str) -> ExecutionState | None: ...
    async def start_child(self, command: commands.StartExecution) -> Answer: ...
    async def bring_here(self, execution_id: str) -> None: ...
    async def deliver_here(self, message: Send) -> Answer: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> object: ...


def child_id(parent_id: str, node_id: NodeId, attempt: int) -> str:
    """Derived, not drawn: a repeated start after a crash finds the child it started before."""
    return _derived(parent_id, f"{parent_id}:{node_id}:{attempt}")


def child_of_item(parent_id: str, node_id: NodeId, index: int, tries: int = 1) -> str:
    """The child that a map's item runs in, at its so-many-th try. Derived, as ``child_id``."""
    return _derived(parent_id, f"{parent_id}:{node_id}:#{index}:{tries}")


def _derived(parent_id: str, name: str) -> str:
    digest = bytearray(hashlib.sha256(name.encode()).digest()[:16])
    # Version 8 (made by our own rule), set by hand: uuid.UUID refuses it before Python 3.14.
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    try:
        parent = uuid.UUID(parent_id)
    except ValueError:
        parent = None
    if parent is not None and parent.bytes[6] >> 4 in (7, 8):
        # The time of the parent: stores keep what began together together (events by id), and a family
        # leaves them as one. A child of a child has it from its parent, whose version is 8.
        digest[:6] = parent.bytes[:6]
    return str(uuid.UUID(bytes=bytes(digest)))


class _News(asyncio.Event):
    """Set when there may be news of a child; ``ended``: its last state, if that came along."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: ExecutionState | None = None


def children_of(state: ExecutionState, plan: Plan) -> list[str]:
    """Executions that may run for this one, whose end nobody will wait for any more.

    Nothing of a map's item is recorded before it ends, so of a map it is all that may have begun, in a
    former life of this execution too; most of them never did.
    """
    nodes = state.nodes.values()
    found = [node.child_id for node in nodes if node.status == "waiting" and node.child_id]
    steps = [step for node in nodes for step in node.steps.values()]
    found += [step.child_id for step in steps if step.child_id and step.answer is None]
    for node_id, node in state.nodes.items():
        each = plan.steps[node_id].each if node_id in plan.steps else None
        if each is None or each.kind != "flow" or node.status not in ("running", "failed"):
            continue
        tries_max = min(each.retry.attempts, ITEM_TRIES_MAX)
        for index in _unrecorded(node):
            for tries in range(1, tries_max + 1):
                found.append(child_of_item(state.execution_id, node_id, index, tries))
    return found


def _unrecorded(node: NodeState) -> Iterator[int]:
    """Items of a map without a recorded outcome, up to where none can have begun."""
    if node.chunks is None:
        end = max(node.outcomes, default=-1) + 1 + ITEMS_AHEAD_MAX
        yield from (index for index in range(end) if index not in node.outcomes)
        return
    for first, end in chunks.gaps(node.chunks.recorded):
        yield from range(first, end if end is not None else first + ITEMS_AHEAD_MAX)


class Children:
    """All child flows whose parents live in one host."""

    def __init__(self, event_log: EventLog, plans: Plans, home: Home) -> None:
        self._log = event_log
        self._plans = plans
        self._home = home
        self._waiting: dict[str, list[_News]] = {}

    def look_at(self, execution_id: str, ended: ExecutionState | None = None) -> None:
        """An execution of this host has durably ended, or leaves it: whoever waits for it looks at its log.

        ``ended``: its state at the end, where that is at hand: then nobody needs to look.
        """
        for news in self._waiting.get(execution_id, ()):
            news.ended = ended
            news.set()

    async def run(self, parent: ExecutionState, node_id: NodeId, node: NodeState) -> StepOutcome:
        """Start the child, or find it, and wait for its end. Raises: CancelledError only."""
        news = _News()
        self._waiting.setdefault(node.child_id, []).append(news)
        try:
            state = await self._end(parent, node_id, node, news)
        except DomainError as error:
            return _failed(f"child flow {node.child_flow}: {error}")
        finally:
            waiting = self._waiting[node.child_id]
            waiting.remove(news)
            if not waiting:
                del self._waiting[node.child_id]
        if state.status == "completed":
            return StepOutcome(output=state.output, output_ref=state.output_ref)
        reason = state.error.message if state.error else state.status
        return _failed(f"child execution {node.child_id} {state.status}: {reason}")

    def cancel(self, child_ids: Iterable[str], after: Committed) -> None:
        """Cancel children once the parent's own end is durable; a fenced parent cancels nobody."""
        self._home.spawn(self._cancel_all(tuple(child_ids), after))

    async def _end(
        self, parent: ExecutionState, node_id: NodeId, node: NodeState, news: "_News"
    ) -> ExecutionState:
        state: ExecutionState | None = None

        def is_ours(child: ExecutionState) -> bool:
            """Whoever has it runs it; one that is lost is adopted by another, and not by its parent."""
            return child.owner.partition("/")[0] == self._home.owner.partition("/")[0]

        while True:
            news.clear()
            pause = RECHECK_SECONDS
            state = await self._read(node.child_id, state)
            if state is None:
                await self._start(parent, node_id, node)
            elif state.is_closed:
                return state
            elif not is_ours(state):
                pause = ELSEWHERE_SECONDS
            elif self._home.state_of(node.child_id) is None and state.status != "waiting":
                try:
                    await until_available(lambda: self._home.bring_here(node.child_id), "activate a child")
                except InvalidTransition:
                    continue  # it ended between the two reads
                except Conflict:
                    pause = ELSEWHERE_SECONDS  # this host is leaving, and another one will have it soon
            try:
                await asyncio.wait_for(news.wait(), pause)
            except TimeoutError:
                log.debug("looking for the end of a child", execution=node.child_id)
            if news.ended is not None:
                return news.ended

    async def _read(self, execution_id: str, state: ExecutionState | None) -> ExecutionState | None:
        after = state.version if state else 0
        recorded: list[Recorded] = await until_available(
            lambda: asyncio.to_thread(self._log.read, execution_id, after), "read a child"
        )
        for one in recorded:
            event = one.event()
            state = execution.begin(event) if state is None else execution.evolve(state, event)
        return state

    async def _start(self, parent: ExecutionState, node_id: NodeId, node: NodeState) -> None:
        if self._depth(parent) >= DEPTH_MAX:
            raise InvalidTransition(f"flows are nested more than {DEPTH_MAX} deep")
        name, _, wanted = node.child_flow.partition("@")
        tenant, flow_id = TenantId(parent.tenant), FlowId(name)
        version = FlowVersion(wanted) or await until_available(
            lambda: self._plans.latest(tenant, flow_id), "read a child's flow"
        )
        await until_available(
            lambda: self._plans.check_input(tenant, flow_id, version, node.child_input), "read a child's flow"
        )
        command = commands.StartExecution(
            at=self._home.now(),
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

        async def start() -> None:
            answer = await self._home.start_child(command)
            if isinstance(answer, Refusal):
                raise messages.error_of(answer)

        await until_available(start, "start a child")

    def _depth(self, parent: ExecutionState) -> int:
        """How deep ``parent`` stands, as far as this host knows: ancestors stay in memory while they wait."""
        depth = 0
        state: ExecutionState | None = parent
        while state is not None and state.parent_id and depth < DEPTH_MAX:
            depth += 1
            state = self._home.state_of(state.parent_id)
        return depth

    async def _cancel_all(self, execution_ids: tuple[str, ...], after: Committed) -> None:
        try:
            await asyncio.shield(after)
        except (Conflict, Unavailable, InvariantViolated):
            return  # the parent's end was not recorded: its next owner will see to its children
        for first in range(0, len(execution_ids), CANCELS_AT_ONCE):
            some = execution_ids[first : first + CANCELS_AT_ONCE]
            await asyncio.gather(*(self._cancel(execution_id) for execution_id in some))

    async def _cancel(self, execution_id: str) -> None:
        command = commands.RequestCancel(at=self._home.now(), reason="the parent ended")
        for _ in range(CANCEL_TRIES_MAX):
            answer = await self._home.deliver_here(Send(execution_id, command))
            if not isinstance(answer, Refusal) or answer.branch != "Unavailable":
                return
            await asyncio.sleep(0.5)
        log.warning("child not cancelled; it goes on to its own end", execution=execution_id)


def _failed(message: str) -> StepOutcome:
    return StepOutcome(error=StepError(type="ChildFailed", message=message[:2_000]))
