"""Which executions of a host may run: a bounded number of places, queues by key, and turns between tenants.

    queued --its queue lets it, a place is free, its turn--> admitted --ended or passivated--> released

A **place** bounds what the host does at once; whoever waits for a timer or a signal gives it back. A
**queue's slot** (see ``keyed_queue``) is held until the end, whatever the execution waits for.

Tenants take turns, one start each, however much each of them has waiting. Within a tenant the higher
priority goes first, then the older one. One whose queue is short, or must still be read, holds up nobody.

The bounds on places are on beginning. What was begun before (a timer came due, a signal arrived, a recovery)
goes on at once, and so does a child, whose parent holds a place already; both take a place, so new ones wait
the longer. A child waits for its own queue, ahead of all that are no children.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from actors.keyed_queue import KeyedQueue
from actors.queue_line import Line, Ticket
from runtime.ids import Micros, TenantId
from runtime.queues import QueueId, QueueUse

RESERVE_SHARE = 10
"""One tenant alone fills the host's queue but for the tenth part, so that others still get in."""


class Surroundings(Protocol):
    """What admission needs of its host's loop."""

    def now(self) -> Micros: ...
    def admit(self, execution_id: str, queue_slot: int | None) -> bool:
        """Begin it; False: it no longer wants to."""
        ...

    def soon(self, work: Callable[[], None]) -> None: ...
    def read_soon(self, queue: KeyedQueue) -> None:
        """Ask the store; the answer comes to ``Admission.read``. Asked again meanwhile, it is one answer."""
        ...

    def move_at(self, queue: QueueId, at: Micros) -> None:
        """Call ``Admission.reconsider`` then."""
        ...


class _Tenant:
    __slots__ = ("line", "running", "waiting")

    def __init__(self) -> None:
        self.line = Line()
        """Those that wait only for a place."""
        self.waiting: set[str] = set()
        self.running: set[str] = set()


class Admission:
    """Lives on its host's loop. ``tenant_running_max`` 0: a tenant may have every place."""

    def __init__(
        self, running_max: int, queued_max: int, around: Surroundings, tenant_running_max: int = 0
    ) -> None:
        self._running_max = running_max
        self._queued_max = queued_max
        self._tenant_max = tenant_running_max or running_max
        self._around = around
        self._tickets: dict[str, Ticket] = {}
        self._admitted: dict[str, Ticket] = {}
        self._tenants: dict[TenantId, _Tenant] = {}
        self._turns: OrderedDict[TenantId, _Tenant] = OrderedDict()
        self._queues: OrderedDict[QueueId, KeyedQueue] = OrderedDict()
        self._is_open = False
        self._moves_soon = False

    @property
    def queued(self) -> int:
        return len(self._tickets)

    @property
    def short_of_places(self) -> int:
        """Of those, the ones that more places, or more hosts, would help."""
        # Those of a tenant that has all it may have wait for its own bound, unless that is the host's.
        tenants = self._turns if self._tenant_max < self._running_max else self._tenants
        return sum(len(tenant.line) for tenant in tenants.values())

    @property
    def admitted(self) -> int:
        return len(self._admitted)

    @property
    def queues(self) -> int:
        """Queues in use here."""
        return len(self._queues)

    def is_full(self, tenant: TenantId, *, has_queue: bool) -> bool:
        """Neither a place nor room in the queue: a new execution must be refused."""
        reserve = self._queued_max // RESERVE_SHARE
        if len(self._tickets) < self._queued_max - reserve:
            return False
        if not has_queue and self._is_unhindered(tenant):
            return False
        known = self._tenants.get(tenant)
        is_small = known is None or len(known.waiting) < reserve
        return not is_small or len(self._tickets) >= self._queued_max

    # --- what the host tells ------------------------------------------------------------------------------

    def open(self) -> None:
        """Let the queue move: what had begun before is back, and comes first."""
        self._is_open = True
        self._move()

    def close(self) -> None:
        """Let nothing begin any more: the host is leaving."""
        self._is_open = False

    def enqueue(self, ticket: Ticket) -> None:
        """``ticket`` wants to start; it does at once where nothing is in its way."""
        if ticket.queue is None and (ticket.is_child or self._is_unhindered(ticket.tenant)):
            self._begin(ticket)
            return
        self._tickets[ticket.execution_id] = ticket
        tenant = self._tenant(ticket.tenant)
        tenant.waiting.add(ticket.execution_id)
        if ticket.queue is None:
            self._line_up(tenant, ticket)
        else:
            queue = self._queues.get(ticket.queue)
            if queue is None:
                queue = self._queues[ticket.queue] = KeyedQueue(ticket.queue)
            queue.waiting.push(ticket)
            self._offer(queue)
        self._move()

    def take_place(self, ticket: Ticket, queue_slot: int | None) -> None:
        """For what began before and goes on without waiting, whatever the bounds say."""
        self._tenant(ticket.tenant).running.add(ticket.execution_id)
        self._admitted[ticket.execution_id] = ticket
        queue = self._known(ticket.queue)
        if queue is not None:
            queue.hold(ticket.execution_id, queue_slot)

    def leave(self, execution_id: str) -> None:
        """It is in memory no longer, or needs no start any more: its place is free, its slot is not."""
        waiting = self._tickets.get(execution_id)
        if waiting is not None:
            self._withdraw(waiting)
        ticket = self._admitted.pop(execution_id, None)
        if ticket is not None:
            tenant = self._tenants[ticket.tenant]
            tenant.running.discard(execution_id)
            self._arrange(ticket.tenant, tenant)
            queue = self._known(ticket.queue)
            if queue is not None:
                queue.left(execution_id)
                self._forget_unused(queue)
        self._move_soon()

    def ended(self, execution_id: str, queue_id: QueueId | None) -> None:
        """It has durably ended: its slot is free."""
        queue = self._known(queue_id)
        if queue is not None:
            queue.ended(execution_id)
            self._reconsider_soon(queue)

    def doubt(self, execution_id: str, queue_id: QueueId | None) -> None:
        """Another host may have it, or its start was not recorded: only the store knows."""
        queue = self._known(queue_id)
        if queue is not None:
            queue.doubt(execution_id)
            self._reconsider_soon(queue)

    def read(self, queue: KeyedQueue, use: QueueUse) -> None:
        """The store's answer about a queue."""
        if self._queues.get(queue.id) is queue:
            self._queues.move_to_end(queue.id)
            queue.take(use, self._around.now())
            self.reconsider(queue.id)

    def reconsider(self, queue_id: QueueId) -> None:
        """Something of this queue may start by now."""
        queue = self._known(queue_id)
        if queue is not None:
            self._offer(queue)
            self._move()

    def look_again(self, most: int) -> bool:
        """Have queues read again in which executions wait, those read longest ago first.

        False: nobody waits for a queue.
        """
        asked = 0
        for queue in self._queues.values():
            if queue.waiting:
                self._around.read_soon(queue)
                asked += 1
                if asked == most:
                    break
        return asked > 0

    # --- the queues ---------------------------------------------------------------------------------------

    def _offer(self, queue: KeyedQueue) -> None:
        """Let those of the queue that may start do so (children), or line up for a place (one at a time)."""
        while True:
            first = queue.waiting.first()
            if queue.offered is not None and queue.offered is not first:
                self._take_back(queue.offered)
                queue.offered = None
            if first is None:
                self._forget_unused(queue)
                return
            if not queue.is_open_for(first, self._around.now()):
                self._wait_for(queue, first)
                return
            if not first.is_child:
                if queue.offered is None:
                    queue.offered = first
                    self._line_up(self._tenant(first.tenant), first)
                return
            self._begin(first)

    def _wait_for(self, queue: KeyedQueue, first: Ticket) -> None:
        if queue.offered is not None:
            self._take_back(queue.offered)
            queue.offered = None
        if not queue.is_read:
            self._around.read_soon(queue)
        elif queue.next_at is not None:
            self._around.move_at(queue.id, queue.next_at)

    def _known(self, queue_id: QueueId | None) -> KeyedQueue | None:
        return None if queue_id is None else self._queues.get(queue_id)

    def _reconsider_soon(self, queue: KeyedQueue) -> None:
        self._forget_unused(queue)
        if queue.waiting:
            self._around.soon(lambda: self.reconsider(queue.id))

    def _forget_unused(self, queue: KeyedQueue) -> None:
        if queue.is_unused and self._queues.get(queue.id) is queue:
            del self._queues[queue.id]

    # --- tenants and places -------------------------------------------------------------------------------

    def _tenant(self, tenant_id: TenantId) -> _Tenant:
        tenant = self._tenants.get(tenant_id)
        if tenant is None:
            tenant = self._tenants[tenant_id] = _Tenant()
        return tenant

    def _is_unhindered(self, tenant_id: TenantId) -> bool:
        """A place is free, and nobody waits for one."""
        if not self._is_open or self._turns or len(self._admitted) >= self._running_max:
            return False
        tenant = self._tenants.get(tenant_id)
        return tenant is None or len(tenant.running) < self._tenant_max

    def _line_up(self, tenant: _Tenant, ticket: Ticket) -> None:
        tenant.line.push(ticket)
        self._arrange(ticket.tenant, tenant)

    def _take_back(self, ticket: Ticket) -> None:
        tenant = self._tenants[ticket.tenant]
        tenant.line.discard(ticket.execution_id)
        self._arrange(ticket.tenant, tenant)

    def _arrange(self, tenant_id: TenantId, tenant: _Tenant) -> None:
        """A tenant has turns while one of its own waits for a place and it may have one more."""
        if tenant.line and len(tenant.running) < self._tenant_max:
            self._turns.setdefault(tenant_id, tenant)
            return
        self._turns.pop(tenant_id, None)
        if not (tenant.waiting or tenant.running):
            self._tenants.pop(tenant_id, None)

    def _withdraw(self, ticket: Ticket) -> None:
        """It waits no longer."""
        del self._tickets[ticket.execution_id]
        tenant = self._tenants[ticket.tenant]
        tenant.waiting.discard(ticket.execution_id)
        tenant.line.discard(ticket.execution_id)
        queue = self._known(ticket.queue)
        if queue is not None:
            queue.waiting.discard(ticket.execution_id)
            if queue.offered is ticket:
                queue.offered = None
            self._reconsider_soon(queue)
        self._arrange(ticket.tenant, tenant)

    def _move_soon(self) -> None:
        if self._turns and not self._moves_soon:
            self._moves_soon = True
            self._around.soon(self._move)

    def _move(self) -> None:
        self._moves_soon = False
        while self._is_open and self._turns and len(self._admitted) < self._running_max:
            tenant_id, tenant = next(iter(self._turns.items()))
            self._turns.move_to_end(tenant_id)
            ticket = tenant.line.first()
            if ticket is None:
                self._arrange(tenant_id, tenant)
                continue
            queue = None if ticket.queue is None else self._queues[ticket.queue]
            if queue is None or queue.is_open_for(ticket, self._around.now()):
                self._begin(ticket)
            else:
                self._take_back(ticket)
                queue.offered = None
            if queue is not None:
                self._offer(queue)

    def _begin(self, ticket: Ticket) -> None:
        execution_id = ticket.execution_id
        tenant = self._tenant(ticket.tenant)
        tenant.running.add(execution_id)
        self._admitted[execution_id] = ticket
        if self._tickets.pop(execution_id, None) is not None:
            tenant.waiting.discard(execution_id)
            tenant.line.discard(execution_id)
        self._arrange(ticket.tenant, tenant)
        slot: int | None = None
        if ticket.queue is not None:
            slot = self._queues[ticket.queue].begin(ticket, self._around.now())
        if not self._around.admit(execution_id, slot):
            self.leave(execution_id)
            self.doubt(execution_id, ticket.queue)
