"""One queue (a flow's key of one tenant) as its host sees it: who holds it, what started lately, who waits.

    unread --the store was asked--> read --a doubt (fenced, crashed, lost a slot)--> unread

Nothing starts from an unread queue. What is known is the store's word about open executions, wherever they
live, with what this host began itself since; so a slot can't leak: it is held by an open execution or by
nobody. Two hosts that know too little of each other are kept apart by the store, where two open executions
can't have one slot; the loser waits on.

Rates are moving windows over the times executions started at, by the host's clock. The ``limits`` library
counts in its own memory by the process's clock, which a restart would forget.

Where tickets of one queue wait on several hosts, a host with a younger one lets the older one go first.
"""

from itertools import islice

from actors.queue_line import Line, Ticket
from runtime.ids import SECOND, Micros
from runtime.queues import QueueId, QueueRule, QueueUse, Turn

CHANCE_SECONDS = 1.5
"""How long a host lets an older ticket of another host take the next slot: the other looks each second."""

PATIENCE_SECONDS = 30.0
"""A host that did not take its chance (it is lost, or full) is not waited for again so soon."""


class KeyedQueue:
    def __init__(self, queue: QueueId) -> None:
        self.id = queue
        self.waiting = Line()
        self.offered: Ticket | None = None
        """The one ticket that may start and waits only for a place."""
        self.is_read = False
        self.next_at: Micros | None = None
        """When the first ticket may start by the rate, or after another host's chance."""
        self._holders: dict[str, int | None] = {}
        self._slots: set[int] = set()
        self._here: set[str] = set()
        self._starts: dict[str, Micros] = {}
        self._period = 0
        self._amount = 0
        self._has_bound = False
        self._is_reading = False
        self._is_doubted = False
        self._ended: set[str] = set()
        self._left: set[str] = set()
        self._next_slot = 0
        self._chance: Turn | None = None
        self._chance_at = 0

    @property
    def is_unused(self) -> bool:
        """Everything known of it is in the store: it may be forgotten, and read when it is asked for."""
        return not self.waiting and not self._here and not self._is_reading

    # --- what is known ----------------------------------------------------------------------------------

    def needs_reading(self, rule: QueueRule) -> bool:
        """Whether the store must be asked before a ticket with this rule can start."""
        rate = rule.rate
        grows = rate is not None and (rate.period > self._period or rate.amount > self._amount)
        if grows or (rule.concurrency is not None and not self._has_bound):
            self._must_read()
            self._has_bound = self._has_bound or rule.concurrency is not None
            if rate is not None:
                self._period = max(self._period, rate.period)
                self._amount = max(self._amount, rate.amount)
        return not self.is_read

    def begin_reading(self, now: Micros) -> tuple[Micros, int, bool]:
        """What to ask for: starts since then, how many of them, and whether the holders matter."""
        self._is_reading = True
        self._is_doubted = False
        return Micros(now - self._period), self._amount, self._has_bound

    def take(self, use: QueueUse, now: Micros) -> None:
        """The store's answer; what began or ended here since it was asked counts more."""
        self._is_reading = False
        self.is_read = not self._is_doubted
        here = {one: self._holders[one] for one in self._here if one in self._holders}
        told = {holder.execution_id: holder.slot for holder in use.holders}
        self._holders = {one: slot for one, slot in told.items() if one not in self._ended} | here
        self._slots = {slot for slot in self._holders.values() if slot is not None}
        starts = self._starts | dict(use.starts)
        self._starts = dict(sorted(starts.items(), key=lambda pair: pair[1]))
        self._here -= self._left
        self._left.clear()
        self._ended.clear()
        self._give_chance(use.waiting, now)

    def _must_read(self) -> None:
        self.is_read = False
        self._is_doubted = True  # also of an answer that is on its way

    def _give_chance(self, others: tuple[Turn, ...], now: Micros) -> None:
        missed = self._chance is not None and self._chance in others
        if missed and now - self._chance_at < PATIENCE_SECONDS * SECOND:
            return
        self._chance = others[0] if others else None
        self._chance_at = now

    # --- starting ---------------------------------------------------------------------------------------

    def is_open_for(self, ticket: Ticket, now: Micros) -> bool:
        """Whether it may start now; if not, ``next_at`` says when to ask again, where that is known."""
        rule = ticket.rule or QueueRule()
        self.next_at = None
        if self.needs_reading(rule):
            return False
        if rule.concurrency is not None and (
            len(self._holders) >= rule.concurrency or self._free_slot(rule.concurrency) is None
        ):
            return False
        free_at = max(self._rate_opens_at(rule, now), self._chance_ends_at(ticket))
        if free_at > now:
            self.next_at = Micros(free_at)
            return False
        return True

    def _rate_opens_at(self, rule: QueueRule, now: Micros) -> int:
        if rule.rate is None:
            return 0
        self._drop_old_starts(now)
        period, amount = rule.rate.period, rule.rate.amount
        times = self._starts.values()
        if period < self._period:
            times = [at for at in times if at > now - period]
        if len(times) < amount:
            return 0
        return next(islice(times, len(times) - amount, None)) + period

    def _chance_ends_at(self, ticket: Ticket) -> int:
        if self._chance is None or ticket.turn < self._chance:
            return 0
        return self._chance_at + int(CHANCE_SECONDS * SECOND)

    def _free_slot(self, concurrency: int) -> int | None:
        # Not from the lowest on: hosts that share a queue would all want the same.
        for offset in range(concurrency):
            slot = (self._next_slot + offset) % concurrency
            if slot not in self._slots:
                return slot
        return None

    def _drop_old_starts(self, now: Micros) -> None:
        while self._starts:
            first = next(iter(self._starts))
            if self._starts[first] > now - self._period:
                return
            del self._starts[first]

    def begin(self, ticket: Ticket, now: Micros) -> int | None:
        """``ticket`` starts; the slot it holds from now on, if the queue bounds its concurrency."""
        slot: int | None = None
        if ticket.rule is not None and ticket.rule.concurrency is not None:
            slot = self._free_slot(ticket.rule.concurrency)
        if slot is not None:
            self._next_slot = slot + 1
        self.waiting.discard(ticket.execution_id)
        if self.offered is ticket:
            self.offered = None
        if self._period:
            self._starts[ticket.execution_id] = now
        self.hold(ticket.execution_id, slot)
        return slot

    def hold(self, execution_id: str, slot: int | None) -> None:
        """An execution that lives here has begun, now or long ago."""
        self._left.discard(execution_id)
        self._here.add(execution_id)
        self._holders[execution_id] = slot
        if slot is not None:
            self._slots.add(slot)

    def left(self, execution_id: str) -> None:
        """It left this host's memory, durably begun and not ended: it holds what it held."""
        if self._is_reading:
            self._left.add(execution_id)  # the answer on its way may be older than its start
        else:
            self._here.discard(execution_id)

    def ended(self, execution_id: str) -> None:
        self._here.discard(execution_id)
        if self._is_reading:
            self._ended.add(execution_id)
        if execution_id in self._holders:
            slot = self._holders.pop(execution_id)
            if slot is not None:
                self._slots.discard(slot)

    def doubt(self, execution_id: str) -> None:
        """Whether it began is not known here any more: the store must be asked."""
        self.ended(execution_id)
        self._starts.pop(execution_id, None)
        self._must_read()
