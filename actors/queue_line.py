"""Tickets of executions that wait, in order of their turn."""

import heapq
import itertools

import msgspec

from runtime.ids import FlowId, TenantId
from runtime.queues import QueueId, QueueRule, Turn
from runtime.state import ExecutionState

_REMAINS_MIN = 64
"""Discarded tickets that may stay in a heap; beyond, no more than there are living ones."""


_pushes = itertools.count()
# Tells apart tickets of one execution, of which all but one were discarded.


class Ticket(msgspec.Struct, frozen=True, eq=False):
    """One execution that wants to start. ``queue`` None: it waits for a place alone."""

    turn: Turn
    tenant: TenantId
    queue: QueueId | None = None
    rule: QueueRule | None = None

    @property
    def execution_id(self) -> str:
        return self.turn.execution_id

    @property
    def is_child(self) -> bool:
        return self.turn.begins == 0


def ticket_of(state: ExecutionState, rule: QueueRule | None) -> Ticket:
    """``rule``: of the flow's version the execution keeps."""
    turn = Turn(0 if state.parent_id else 1, -state.priority, state.created_at, state.execution_id)
    return Ticket(turn, TenantId(state.tenant), queue_of(state), rule)


def queue_of(state: ExecutionState) -> QueueId | None:
    if not state.queue_key:
        return None
    return QueueId(TenantId(state.tenant), FlowId(state.flow_id), state.queue_key)


class Line:
    """The first is found at once, any other can leave; each costs the logarithm of how many there are."""

    __slots__ = ("_heap", "_living")

    def __init__(self) -> None:
        self._heap: list[tuple[Turn, int, Ticket]] = []
        self._living: dict[str, Ticket] = {}

    def __len__(self) -> int:
        return len(self._living)

    def push(self, ticket: Ticket) -> None:
        self.discard(ticket.execution_id)
        self._living[ticket.execution_id] = ticket
        heapq.heappush(self._heap, (ticket.turn, next(_pushes), ticket))

    def discard(self, execution_id: str) -> None:
        # What was discarded stays in the heap until it comes first, or there is too much of it.
        if self._living.pop(execution_id, None) is None:
            return
        if len(self._heap) > _REMAINS_MIN + 2 * len(self._living):
            self._heap = [entry for entry in self._heap if self._is_living(entry[2])]
            heapq.heapify(self._heap)

    def first(self) -> Ticket | None:
        while self._heap and not self._is_living(self._heap[0][2]):
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def _is_living(self, ticket: Ticket) -> bool:
        return self._living.get(ticket.execution_id) is ticket
