"""Runs a map node: many items, few in flight, results in batches.

Finished items are recorded in batches (``NodeProgressed``), so a wide map costs the log one event for
about a hundred items, and a crash repeats only items that were not recorded. Results keep the order of
the items.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec

from actors.execution_actor import ExecutionActor
from actors.map_items import Hands, MapItems
from actors.step_call import StepOutcome
from actors.step_values import is_surely_small, step_error
from runtime import commands
from runtime.errors import DomainError
from runtime.events import ItemOutcome, Json, StepError
from runtime.plan import MapOver, Step

PROGRESS_ITEMS_MAX = 100
PROGRESS_SECONDS_MAX = 0.25
"""A batch of finished items is recorded when it is this large or its first item this old."""

LARGE_ITEMS_MAX = 16
"""Outputs in one batch that may be near the claim-check bound: keeps an event below about 600 KiB."""

INLINE_ITEMS_TURN = 50
"""Pure items computed before other executions of the host get their turn."""


class _FirstFailure(Exception):
    """Stops the other lanes of a map that fails as a whole."""


class MapRun:
    """One attempt of one map node."""

    def __init__(
        self,
        actor: ExecutionActor,
        hands: Hands,
        step: Step,
        attempt: int,
        action: MapOver,
    ) -> None:
        self._actor = actor
        self._hands = hands
        self._step = step
        self._attempt = attempt
        self._action = action
        self._items = MapItems(actor, hands, step, attempt, action.each)
        recorded = actor.state.nodes[step.node_id].outcomes
        keep = action.on_error == "keep"
        self._outcomes: dict[int, ItemOutcome] = {
            index: outcome for index, outcome in recorded.items() if keep or outcome.error is None
        }
        self._unrecorded: list[ItemOutcome] = []
        self._unrecorded_large = 0
        self._record_timer: asyncio.TimerHandle | None = None
        self._failure: StepError | None = None

    async def run(self) -> StepOutcome:
        """The node's outcome, all items done. Raises: CancelledError only."""
        todo = iter([i for i in range(len(self._action.items)) if i not in self._outcomes])
        lanes = max(1, min(self._action.concurrency, len(self._action.items)))
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(lanes):
                    group.create_task(self._lane(todo))
        except* _FirstFailure:
            pass  # noted in self._failure
        finally:
            self._record()
        if self._failure is not None:
            return StepOutcome(error=self._failure, started=True)
        try:
            return StepOutcome(output=await self._output(), started=True)
        except (DomainError, ValueError) as error:
            return StepOutcome(error=step_error(error), started=True)

    async def _lane(self, todo: Iterator[int]) -> None:
        for done, index in enumerate(todo, start=1):
            outcome = await self._item(index)
            self._outcomes[index] = outcome
            self._note(outcome)
            if outcome.error is not None and self._action.on_error == "fail":
                self._failure = msgspec.structs.replace(
                    outcome.error, message=f"item {index}: {outcome.error.message}"
                )
                self._items.give_up()
                raise _FirstFailure
            if done % INLINE_ITEMS_TURN == 0:
                await asyncio.sleep(0)

    async def _item(self, index: int) -> ItemOutcome:
        outcome = await self._items.outcome(index, self._action.items[index])
        if outcome.error is not None:
            return ItemOutcome(index=index, error=outcome.error)
        return ItemOutcome(index=index, output=outcome.output, output_ref=outcome.output_ref)

    def _note(self, outcome: ItemOutcome) -> None:
        self._unrecorded.append(outcome)
        self._unrecorded_large += outcome.output_ref is None and not is_surely_small(outcome.output)
        if len(self._unrecorded) >= PROGRESS_ITEMS_MAX or self._unrecorded_large >= LARGE_ITEMS_MAX:
            self._record()
        elif self._record_timer is None:
            loop = asyncio.get_running_loop()
            self._record_timer = loop.call_later(PROGRESS_SECONDS_MAX, self._record)

    def _record(self) -> None:
        if self._record_timer is not None:
            self._record_timer.cancel()
            self._record_timer = None
        if self._unrecorded:
            items = tuple(self._unrecorded)
            self._unrecorded.clear()
            self._unrecorded_large = 0
            if not self._actor.is_stopped:
                self._actor.record_step(
                    commands.RecordProgress(
                        at=self._actor.now(),
                        node_id=self._step.node_id,
                        attempt=self._attempt,
                        total=len(self._action.items),
                        items=items,
                    )
                )

    async def _output(self) -> Json:
        results: list[Json] = []
        errors: list[dict[str, Any]] = []
        for index in range(len(self._action.items)):
            outcome = self._outcomes[index]
            if outcome.error is not None:
                results.append(None)
                errors.append(
                    {
                        "index": index,
                        "error": {"type": outcome.error.type, "message": outcome.error.message},
                    }
                )
            elif outcome.output_ref is not None:
                results.append(await self._hands.load(outcome.output_ref))
            else:
                results.append(outcome.output)
        return {"results": results, "errors": errors}
