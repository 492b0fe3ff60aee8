"""Records why a node of an execution has no place to run, once for each change, however many items wait.

What is recorded stands in the execution's state, so a host that takes it over repeats nothing.
"""

import itertools

from actors.execution_actor import ExecutionActor
from actors.resource_tasks import Tell
from runtime.commands import LogNode
from runtime.errors import Unavailable
from runtime.events import SCHEDULABLE, UNSCHEDULABLE
from runtime.ids import NodeId
from runtime.placement import MISSING_MAX


class PlacementReports:
    """One host's; lives on its loop."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._missing: dict[tuple[ExecutionActor, NodeId], dict[int, tuple[str, ...]]] = {}

    def teller(self, actor: ExecutionActor, node_id: NodeId, attempt: int) -> Tell:
        """What one call of a node (one item of a map) tells about its place."""
        number = next(self._numbers)

        def tell(missing: tuple[str, ...] | None) -> None:
            self._note(actor, node_id, number, missing or ())
            if missing is not None:
                self._record(actor, node_id, attempt)

        return tell

    def _note(self, actor: ExecutionActor, node_id: NodeId, number: int, missing: tuple[str, ...]) -> None:
        lacking = self._missing.get((actor, node_id), {})
        lacking.pop(number, None)
        if missing:
            self._missing[actor, node_id] = {**lacking, number: missing}
        elif not lacking:
            self._missing.pop((actor, node_id), None)

    def _record(self, actor: ExecutionActor, node_id: NodeId, attempt: int) -> None:
        lacking = self._missing.get((actor, node_id), {})
        missing = tuple(sorted({text for texts in lacking.values() for text in texts})[:MISSING_MAX])
        node = actor.state.nodes.get(node_id)
        if actor.is_stopped or node is None or node.missing == missing or node.attempt != attempt:
            return
        event, detail = (UNSCHEDULABLE, {"missing": list(missing)}) if missing else (SCHEDULABLE, None)
        try:
            actor.record_step(
                LogNode(at=actor.now(), node_id=node_id, attempt=attempt, event=event, detail=detail)
            )
        except Unavailable:
            return  # the execution left this host; whoever has it now will tell
