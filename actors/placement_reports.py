"""Records why a node of an execution has no place to run, once for each change, however many items wait.

What is recorded stands in the execution's state, so a host that takes it over repeats nothing. An execution
all of whose running nodes have no place gives back its own place in the host, so that it keeps nobody from
beginning; it goes on as soon as there is one, whatever the host's bound says then.
"""

import itertools
from weakref import WeakSet

from actors.admission import Admission
from actors.execution_actor import ExecutionActor
from actors.queue_line import ticket_of
from actors.resource_tasks import Tell
from runtime.commands import LogNode
from runtime.errors import Unavailable
from runtime.events import SCHEDULABLE, UNSCHEDULABLE
from runtime.ids import NodeId
from runtime.placement import MISSING_MAX

ASIDE_MAX = 1_000
"""Executions without a place in the host at once; another keeps its place while it waits."""


class PlacementReports:
    """One host's; lives on its loop."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._numbers = itertools.count()
        self._missing: dict[tuple[ExecutionActor, NodeId], dict[int, tuple[str, ...]]] = {}
        self._aside: WeakSet[ExecutionActor] = WeakSet()

    @property
    def count(self) -> int:
        """Nodes without a place to run."""
        return len(self._missing)

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
        if actor.is_stopped or node is None or node.attempt != attempt:
            return
        if node.missing != missing:
            event, detail = (UNSCHEDULABLE, {"missing": list(missing)}) if missing else (SCHEDULABLE, None)
            try:
                actor.record_step(
                    LogNode(at=actor.now(), node_id=node_id, attempt=attempt, event=event, detail=detail)
                )
            except Unavailable:
                return  # the execution left this host; whoever has it now will tell
        self._set_aside(actor)

    def _set_aside(self, actor: ExecutionActor) -> None:
        state = actor.state
        if actor.is_stopped or state.is_closed:
            return
        running = [node for node in state.nodes.values() if node.status == "running"]
        is_lost = bool(running) and all(node.missing for node in running)
        if is_lost and actor not in self._aside and len(self._aside) < ASIDE_MAX:
            self._aside.add(actor)
            self._admission.leave(state.execution_id)
        elif not is_lost and actor in self._aside:
            self._aside.discard(actor)
            self._admission.take_place(ticket_of(state, actor.plan.queue), state.queue_slot)
