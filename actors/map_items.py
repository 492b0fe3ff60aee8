"""One item of a map that the host works on itself: its tries, its child execution, its large output.

Retries of an item are not recorded one by one; its last outcome is. A crash before that makes the item again
under the same keys, and finds the child executions that were started before.
"""

import asyncio
from typing import Protocol

import msgspec

from actors.children import child_of_item
from actors.execution_actor import ExecutionActor
from actors.performer import Attempt
from actors.step_call import StepOutcome
from actors.step_values import is_surely_small, step_error
from runtime.errors import DomainError
from runtime.events import BlobRef, Json, StepError
from runtime.ids import SECOND, Micros, NodeId
from runtime.plan import Action, Output, StartChild, Step
from runtime.state import ExecutionState, NodeState


class Hands(Protocol):
    """What a map needs of its host."""

    @property
    def is_leaving(self) -> bool: ...
    async def perform_item(self, actor: ExecutionActor, action: Action, attempt: Attempt) -> StepOutcome: ...
    async def run_child(self, parent: ExecutionState, node_id: NodeId, node: NodeState) -> StepOutcome: ...
    async def load(self, ref: BlobRef) -> Json: ...
    async def store_if_large(self, value: Json) -> BlobRef | None: ...


class MapItems:
    """The items of one attempt of one map node. ``claim_check``: large outputs become references."""

    def __init__(
        self,
        actor: ExecutionActor,
        hands: Hands,
        step: Step,
        attempt: int,
        each: Step,
        *,
        claim_check: bool = True,
    ) -> None:
        self._actor = actor
        self._hands = hands
        self._node_id = step.node_id
        self._attempt = attempt
        self._each = each
        self._scope = actor.scope(step, attempt)
        self._claim_check = claim_check
        self._is_given_up = False

    def give_up(self) -> None:
        """The map has failed: child executions of items that are then cancelled are cancelled, too."""
        self._is_given_up = True

    async def outcome(self, index: int, item: Json) -> StepOutcome:
        """The last outcome of an item, its own retries included. Raises: CancelledError only."""
        tries = 0
        while True:
            tries += 1
            outcome = await self._try(index, item, tries)
            if outcome.error is None:
                return outcome
            retry_at = self._each.retry.retry_at(Micros(0), tries, outcome.error.type, self._actor.draw())
            if retry_at is None:
                return outcome
            await asyncio.sleep(retry_at / SECOND)

    async def _try(self, index: int, item: Json, tries: int) -> StepOutcome:
        key = f"{self._actor.idempotency_key(self._node_id, self._attempt)}:{index}:{tries}"
        scope = {
            **self._scope,
            "item": item,
            "index": index,
            "execution": {**self._scope["execution"], "key": key, "attempt": tries},
        }
        try:
            action = self._each.act(scope)
        except Exception as error:  # noqa: BLE001 - templates and expressions may raise anything
            return StepOutcome(error=step_error(error))
        if isinstance(action, Output):
            return await self._with_claim_check(StepOutcome(output=action.value))
        if isinstance(action, StartChild):
            return await self._child(action, index, tries)
        attempt = Attempt(
            execution_id=self._actor.state.execution_id,
            node_id=self._node_id,
            attempt=self._attempt,
            key=key,
            timeout_seconds=self._each.timeout_seconds,
            resources=self._each.resources,
            files=self._actor.state.files,
            index=index,
        )
        return await self._with_claim_check(await self._hands.perform_item(self._actor, action, attempt))

    async def _child(self, action: StartChild, index: int, tries: int) -> StepOutcome:
        """Run the item's child execution, or find it: nothing of it is in the parent's log until it ended."""
        parent = self._actor.state
        child_id = child_of_item(parent.execution_id, self._node_id, index, tries)
        node = NodeState(
            status="waiting", child_id=child_id, child_flow=action.flow, child_input=action.input
        )
        seconds = self._each.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                return await self._hands.run_child(parent, self._node_id, node)
        except TimeoutError:
            self._actor.cancel_children((child_id,))
            message = f"child execution {child_id} took longer than {seconds} s"
            return StepOutcome(error=StepError(type="TimeoutError", message=message))
        except asyncio.CancelledError:
            state = self._actor.state
            # In all other cases the host leaves, and the map goes on elsewhere.
            if self._is_given_up or state.is_closed or state.cancel_requested_at is not None:
                self._actor.cancel_children((child_id,))
            raise

    async def _with_claim_check(self, outcome: StepOutcome) -> StepOutcome:
        if not self._claim_check or outcome.error is not None or outcome.output_ref is not None:
            return outcome
        if is_surely_small(outcome.output):
            return outcome
        try:
            ref = await self._hands.store_if_large(outcome.output)
        except (DomainError, TypeError, ValueError) as error:
            return msgspec.structs.replace(outcome, output=None, error=step_error(error))
        return outcome if ref is None else msgspec.structs.replace(outcome, output=None, output_ref=ref)
