"""Admission's clockwork on its host's loop: reading queues from the store, timers, and being called soon.

idle --a queue must be read--> reading (one thread, a batch of queues at a time) --> idle
while executions wait for queues: those are read again each ``LOOK_SECONDS``, a bounded number at a time
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple, Protocol

from actors.admission import Admission
from actors.keyed_queue import KeyedQueue
from actors.patience import until_available
from runtime.commands import StartExecution
from runtime.errors import InvalidTransition
from runtime.event_log import EventLog
from runtime.ids import SECOND, HostName, Micros
from runtime.queues import QueueId, QueueRule, QueueUse
from runtime.state import ExecutionState

LOOK_SECONDS = 1.0
"""A queue in which executions wait is read again this often: it may be short on another host as well."""

READS_MAX = 100
"""Queues of one look; the others come with the next."""

TIMER_SECONDS_MAX = 60.0


class Home(Protocol):
    """What admission needs of its host."""

    def now(self) -> Micros: ...
    def admit(self, execution_id: str, queue_slot: int | None) -> bool: ...
    def spawn(self, work: Coroutine[Any, Any, None]) -> object: ...


class _Question(NamedTuple):
    queue: KeyedQueue
    since: Micros
    starts_max: int
    holders: bool


class QueueReads:
    """Lives on its host's loop; implements ``admission.Surroundings``."""

    def __init__(self, event_log: EventLog, name: HostName, home: Home) -> None:
        self._log = event_log
        self._name = name
        self._home = home
        self._wanted: OrderedDict[QueueId, KeyedQueue] = OrderedDict()
        self._timers: dict[QueueId, tuple[Micros, asyncio.TimerHandle]] = {}
        self._look: asyncio.TimerHandle | None = None
        self._is_reading = False
        self._is_closed = False

    def admission(self, running_max: int, queued_max: int, tenant_running_max: int) -> Admission:
        """The admission this belongs to. Call it once."""
        self._admission = Admission(running_max, queued_max, self, tenant_running_max)
        return self._admission

    def close(self) -> None:
        self._is_closed = True
        self._wanted.clear()
        for _, timer in self._timers.values():
            timer.cancel()
        if self._look is not None:
            self._look.cancel()

    # --- what admission asks for ----------------------------------------------------------------------

    def now(self) -> Micros:
        return self._home.now()

    def admit(self, execution_id: str, queue_slot: int | None) -> bool:
        return not self._is_closed and self._home.admit(execution_id, queue_slot)

    def soon(self, work: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(work)

    def read_soon(self, queue: KeyedQueue) -> None:
        if self._is_closed:
            return
        self._wanted[queue.id] = queue
        if not self._is_reading:
            self._is_reading = True
            self._home.spawn(self._read_all())
        if self._look is None:
            self._look_later()

    def move_at(self, queue: QueueId, at: Micros) -> None:
        known = self._timers.get(queue)
        if self._is_closed or (known is not None and known[0] <= at):
            return
        if known is not None:
            known[1].cancel()
        # A little later than asked for: the clocks need not agree.
        seconds = min(TIMER_SECONDS_MAX, max(0.0, (at - self._home.now()) / SECOND) + 0.001)
        timer = asyncio.get_running_loop().call_later(seconds, self._ring, queue)
        self._timers[queue] = (at, timer)

    # --- the clockwork --------------------------------------------------------------------------------

    def _ring(self, queue: QueueId) -> None:
        del self._timers[queue]
        self._admission.reconsider(queue)

    def _look_later(self) -> None:
        self._look = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        if self._admission.look_again(READS_MAX) and self._look is None:
            self._look_later()

    async def _read_all(self) -> None:
        try:
            while self._wanted:
                questions: list[_Question] = []
                while self._wanted and len(questions) < READS_MAX:
                    _, queue = self._wanted.popitem(last=False)
                    if not queue.is_unused:
                        questions.append(_Question(queue, *queue.begin_reading(self._home.now())))
                answers = await until_available(
                    lambda asked=questions: asyncio.to_thread(self._read, asked), "read queues"
                )
                for question, use in zip(questions, answers, strict=True):
                    self._admission.read(question.queue, use)
        finally:
            self._is_reading = False

    def _read(self, questions: Sequence[_Question]) -> list[QueueUse]:
        return [
            self._log.queue_use(
                question.queue.id,
                self._name,
                question.since,
                question.starts_max,
                holders=question.holders,
            )
            for question in questions
        ]


def refuse_waiting_for_itself(
    command: StartExecution, rule: QueueRule | None, state_of: Callable[[str], ExecutionState | None]
) -> None:
    """A child in a queue whose slot one of its ancestors holds: with few slots it would wait for ever.

    Raises: InvalidTransition.
    """
    if not command.parent_id or rule is None or rule.concurrency is None:
        return
    queue = (command.tenant, command.flow_id, command.queue_key)
    parent = state_of(command.parent_id)
    while parent is not None:
        if (parent.tenant, parent.flow_id, parent.queue_key) == queue:
            raise InvalidTransition(
                f"flow {command.flow_id}: its queue '{command.queue_key}' is held by an execution that waits"
                " for this one"
            )
        parent = state_of(parent.parent_id) if parent.parent_id else None
