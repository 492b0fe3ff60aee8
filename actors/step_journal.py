"""The record of one agent node: what was asked and answered, call by call.

``begin`` and ``end`` return once their event is durable, so a call is never made before the log knows of it,
and nothing is done with an answer that a crash could take back. After a crash the loop runs again from its
beginning and ``answer`` gives it what was recorded, until it comes to the first call without an answer.

Text on its way (``delta``) is told to whoever follows, and to the log never.
"""

from typing import Literal, Protocol

from actors.turns import Turns
from runtime.commands import BeginStep, EndStep, LogNode, RetryStep, Usage
from runtime.events import BlobRef, Json, MessageRecorded, StepError, ToolCall
from runtime.ids import Micros, NodeId
from runtime.state import ExecutionState, StepState


class Recorder(Protocol):
    """What the journal needs of the execution's actor."""

    @property
    def state(self) -> ExecutionState: ...
    def record_step(self, command: BeginStep | RetryStep | EndStep | LogNode) -> None: ...
    async def durable(self) -> None: ...
    def now(self) -> Micros: ...
    def draw(self) -> float: ...
    def delta(self, node_id: NodeId, step: str, offset: int, text: str) -> None: ...
    def idempotency_key(self, node_id: NodeId, attempt: int) -> str: ...


class StepJournal:
    """One attempt of one agent node. ``prefix`` sets apart several conversations of one node."""

    def __init__(
        self, actor: Recorder, node_id: NodeId, attempt: int, prefix: str = "", turns: Turns | None = None
    ) -> None:
        """``turns``: those of all runs of the process; None: this one is alone."""
        self._actor = actor
        self._prefix = prefix
        self._turns = turns or Turns()
        self._rank = self._turns.rank()
        self._asked = 0
        self.node_id = node_id
        self.attempt = attempt

    @property
    def execution(self) -> ExecutionState:
        """As it stands now: tenant, ids, when it started."""
        return self._actor.state

    def now(self) -> Micros:
        return self._actor.now()

    def draw(self) -> float:
        """A random number in [0, 1)."""
        return self._actor.draw()

    def key(self, step: str) -> str:
        """The step's idempotency key: the same for every try, in every attempt, after every crash."""
        return f"{self._actor.state.execution_id}:{self.node_id}:{self._prefix}{step}"

    def known(self, step: str) -> StepState | None:
        node = self._actor.state.nodes.get(self.node_id)
        return None if node is None else node.steps.get(self._prefix + step)

    def steps(self) -> list[tuple[str, StepState]]:
        """Every step of this conversation so far, in the order in which they began."""
        node = self._actor.state.nodes.get(self.node_id)
        if node is None:
            return []
        skip = len(self._prefix)
        return [(name[skip:], step) for name, step in node.steps.items() if name.startswith(self._prefix)]

    def answer(self, step: str) -> MessageRecorded | None:
        """What the step answered, if it did."""
        known = self.known(step)
        return None if known is None else known.answer

    async def begin(
        self,
        step: str,
        kind: Literal["model", "tool"],
        name: str,
        *,
        request_hash: str = "",
        request: Json = None,
        purpose: str = "",
        child_id: str = "",
    ) -> None:
        """The call is about to be made (again). Raises: Conflict when the execution is no longer ours."""
        self._actor.record_step(
            BeginStep(
                at=self._actor.now(),
                node_id=self.node_id,
                attempt=self.attempt,
                step=self._prefix + step,
                kind=kind,
                name=name,
                request_hash=request_hash,
                request=request,
                purpose=purpose,
                child_id=child_id,
            )
        )
        await self._durable()
        self._asked += kind == "model"

    async def retry(self, step: str, error: StepError, retry_at: Micros) -> None:
        """The call failed and is made again at ``retry_at``; waiting is the caller's."""
        self._actor.record_step(
            RetryStep(
                at=self._actor.now(),
                node_id=self.node_id,
                attempt=self.attempt,
                step=self._prefix + step,
                error=error,
                retry_at=retry_at,
            )
        )
        await self._durable()

    async def end(
        self,
        step: str,
        role: Literal["assistant", "tool"],
        *,
        content: Json = None,
        content_ref: BlobRef | None = None,
        tool_calls: tuple[ToolCall, ...] = (),
        tool_call_id: str = "",
        name: str = "",
        is_error: bool = False,
        raw: Json = None,
        raw_ref: BlobRef | None = None,
        duration_ms: float = 0.0,
        usage: Usage | None = None,
    ) -> None:
        """The answer, durable when this returns."""
        self._actor.record_step(
            EndStep(
                at=self._actor.now(),
                node_id=self.node_id,
                attempt=self.attempt,
                step=self._prefix + step,
                role=role,
                content=content,
                content_ref=content_ref,
                tool_calls=tool_calls,
                tool_call_id=tool_call_id,
                name=name,
                is_error=is_error,
                raw=raw,
                raw_ref=raw_ref,
                duration_ms=duration_ms,
                usage=usage,
            )
        )
        await self._durable()

    async def turn(self) -> None:
        """Return when the run may compute for a while. What waits for the log has had its turn."""
        await self._turns.take(self._asked, self._rank)

    async def _durable(self) -> None:
        await self._actor.durable()
        await self.turn()

    def log(self, event: str, detail: Json = None) -> None:
        """Something worth telling; durable with whatever is recorded next."""
        self._actor.record_step(
            LogNode(
                at=self._actor.now(),
                node_id=self.node_id,
                attempt=self.attempt,
                event=event,
                detail=detail,
            )
        )

    def delta(self, step: str, offset: int, text: str) -> None:
        """``text`` was just produced by the call; ``offset``: characters of its answer before it."""
        self._actor.delta(self.node_id, self._prefix + step, offset, text)
