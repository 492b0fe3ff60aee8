"""The checker: holds a log, and what its clients saw, against what Heliograph promises.

Reads the log once, in order of position, and remembers what is still open: executions without an end, pending
callbacks, flows, keys and resources. Never raises for what it finds; every finding is a ``Violation``.

| rule | promise |
|---|---|
| position | positions rise |
| readable | every stored event can be read by this release |
| chain | each event carries the hash of the one before it in its stream |
| first | a stream begins with version 1 and the event that creates it |
| versions | versions of a stream are contiguous: no two owners wrote interleaved |
| last | one terminal event, and nothing after it |
| replay | the state machine accepts every event; no item of a wide map is recorded twice |
| time | times of a stream never go back |
| owner | no former owner's work is recorded after a take-over |
| start | attempts of a node are numbered from 1, none after its end; no start after a cancel or in a pause |
| outcome | one outcome an attempt, at most one success a node |
| answer | one answer a call of an agent, and no further try behind it |
| slot | no two open executions hold one slot of a queue |
| cancel | after an accepted cancel the only end is cancelled |
| progress | progress never falls, and is 100 only when completed |
| accepted | what was acknowledged to a client is in the log |
| key | one idempotency key, one execution |
| seen | a terminal status a client saw never changed, and is the log's |
| settled | (when asked) every execution reached its end |
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Iterable
from typing import Literal

import msgspec

from runtime import codec, events
from runtime.administration import evolve_flow, evolve_key
from runtime.callbacks import evolve_callback
from runtime.errors import Diverged
from runtime.event_log import Recorded
from runtime.events import TERMINAL_EVENTS, Event
from runtime.evolution import begin, evolve
from runtime.execution import contract_status
from runtime.ids import NodeId, Position
from runtime.resources import evolve_resource
from runtime.state import TERMINAL, ExecutionState, Status

VIOLATIONS_MAX = 1_000
"""Violations kept; all are counted."""

CLOSED_MAX = 100_000
"""Ended streams remembered, to tell an event after the end from a stream without a beginning."""

PAGE_EVENTS = 1_000

Rule = Literal[
    "position", "readable", "chain", "first", "versions", "last", "replay", "time", "owner",
    "start", "outcome", "answer", "slot", "cancel", "progress", "accepted", "key", "seen", "settled",
]  # fmt: skip


class Violation(msgspec.Struct, frozen=True):
    """``version`` and ``position`` are 0 where the finding is about a whole execution."""

    rule: Rule
    originator_id: str
    version: int
    position: int
    detail: str


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """A client was told that its start is accepted; ``request_key``: its idempotency key, if any."""

    execution_id: str
    request_key: str = ""


class Seen(msgspec.Struct, frozen=True, tag="seen"):
    """A client read this status. Entries of one execution stand in the order of the answers."""

    execution_id: str
    status: Status


JournalEntry = Accepted | Seen


class Report(msgspec.Struct, kw_only=True):
    """``executions``: counts by last status. ``found`` counts all, ``violations`` holds the first."""

    events: int = 0
    first_position: int = 0
    last_position: int = 0
    streams: int = 0
    open_executions: int = 0
    executions: dict[str, int] = {}
    topics: dict[str, int] = {}
    found: int = 0
    violations: list[Violation] = []

    @property
    def is_clean(self) -> bool:
        return self.found == 0


def pages(feed: Callable[[Position, int], list[Recorded]]) -> Generator[Recorded]:
    """A whole log in order, page by page, up to what is there when the last page is read.

    ``feed``: ``EventLog.feed``.
    """
    after = Position(0)
    while page := feed(after, PAGE_EVENTS):
        yield from page
        after = page[-1].position


def verify(
    recorded: Iterable[Recorded],
    journal: Iterable[JournalEntry] = (),
    *,
    settled: bool = False,
    archived: Iterable[Iterable[Recorded]] = (),
) -> Report:
    """Check a log from its beginning. Memory grows with what is open, and with ``journal``.

    ``settled``: the caller says that all work is done, so an execution without an end is a violation.
    ``archived``: parts of the log that left it, each with whole streams and in the order of the log.
    """
    checker = _Checker(journal)
    for part in archived:
        for one in part:
            checker.check(one)
        checker.end_part()
    for one in recorded:
        checker.check(one)
    return checker.report_at_end(settled)


class _Stream:
    """One open stream: the hash of its last event, and its aggregate's state."""

    __slots__ = ("at", "broken", "formers", "head", "outcomes", "state", "version")

    def __init__(self) -> None:
        self.head = ""
        self.version = 0
        self.at = 0
        self.state: object = None
        # An event was missing, unreadable or impossible: the state is that of the event before it, and
        # what follows can't be replayed, which would be one violation more for each.
        self.broken = False
        self.formers: set[str] = set()
        # Attempts with an outcome, by node; the state forgets attempts that were retried.
        self.outcomes: dict[str, int] = {}


class _Checker:
    def __init__(self, journal: Iterable[JournalEntry]) -> None:
        self._journal = tuple(journal)
        self._watched: dict[str, Status | None] = dict.fromkeys(entry.execution_id for entry in self._journal)
        self._streams: dict[str, _Stream] = {}
        self._closed: OrderedDict[str, str] = OrderedDict()
        self._slots: dict[tuple[str, str, str, int], str] = {}
        self._ends: Counter[str] = Counter()
        self._topics: Counter[str] = Counter()
        self._report = Report()
        self._position = 0

    def end_part(self) -> None:
        """What comes now may stand before what came, in the log."""
        self._position = 0

    def check(self, one: Recorded) -> None:
        report = self._report
        if one.position <= self._position:
            self._found("position", one, f"stands behind position {self._position}")
        self._position = max(one.position, self._position)
        report.events += 1
        report.first_position = min(one.position, report.first_position or one.position)
        report.last_position = max(one.position, report.last_position)
        self._topics[one.topic] += 1
        stream = self._stream_of(one)
        if stream is None:
            return
        self._check_chain(stream, one)
        stream.version = one.originator_version
        try:
            event = one.event()
        except Diverged as error:
            self._found("readable", one, str(error))
            stream.broken = True
            return
        self._check_event(stream, one, event)

    def _stream_of(self, one: Recorded) -> _Stream | None:
        stream = self._streams.get(one.originator_id)
        if stream is not None:
            return stream
        ended = self._closed.get(one.originator_id)
        if ended is not None:
            self._found("last", one, f"{one.topic} stands behind the end, {ended}")
            return None
        if one.originator_version != 1:
            self._found("first", one, f"the stream begins with version {one.originator_version}")
        self._report.streams += 1
        stream = self._streams[one.originator_id] = _Stream()
        stream.version = one.originator_version - 1
        return stream

    def _check_chain(self, stream: _Stream, one: Recorded) -> None:
        try:
            prev = codec.previous_hash(one.data)
        except msgspec.DecodeError as error:
            self._found("chain", one, f"the hash of the event before can't be read: {error}")
        else:
            if prev != stream.head:
                self._found("chain", one, "does not carry the hash of the event before it")
        stream.head = one.hash()
        if one.originator_version != stream.version + 1:
            self._found("versions", one, f"follows version {stream.version}")

    def _check_event(self, stream: _Stream, one: Recorded, event: Event) -> None:
        if (event.originator_id, event.originator_version) != (one.originator_id, one.originator_version):
            self._found(
                "readable", one, f"its body names {event.originator_id} version {event.originator_version}"
            )
        if event.at < stream.at:
            self._found("time", one, f"{event.at} is before {stream.at}")
        stream.at = max(stream.at, event.at)
        before = stream.state
        if not stream.broken:
            try:
                stream.state = _evolve(one.originator_id, before, event)
            except Diverged as error:
                self._found("first" if before is None else "replay", one, str(error))
                stream.broken = True
            if isinstance(before, ExecutionState):
                self._check_execution(stream, before, one, event)
        self._close_ended(stream, one, event)

    def _check_execution(self, stream: _Stream, before: ExecutionState, one: Recorded, event: Event) -> None:
        after = stream.state
        cancelling = before.cancel_requested_at is not None
        if cancelling and isinstance(event, (events.Completed, events.Failed, events.TimedOut)):
            self._found("cancel", one, f"{one.topic} after an accepted cancel")
        if isinstance(after, ExecutionState):
            if after.progress < before.progress:
                self._found("progress", one, f"fell from {before.progress} to {after.progress}")
            if (after.progress >= 100.0) != (after.status == "completed"):
                self._found("progress", one, f"{after.progress} while {after.status}")
        match event:
            case events.Recovered():
                stream.formers.add(before.owner)
                stream.formers.discard(event.owner)
            case events.Started() if event.queue_slot is not None:
                self._check_slot(before, one, event.queue_slot)
            case events.NodeStarted():
                self._check_start(before, one, event)
                self._check_owner(stream, one, event.where)
            case events.NodeCompleted() | events.NodeFailed():
                self._check_outcome(stream, before, one, event)
                self._check_owner(stream, one, event.where)
            case events.StepStarted() | events.StepRetried() | events.MessageRecorded():
                self._check_answer(before, one, event)
            case _:
                pass

    def _check_slot(self, before: ExecutionState, one: Recorded, number: int) -> None:
        slot = (before.tenant, before.flow_id, before.queue_key, number)
        holder = self._slots.setdefault(slot, one.originator_id)
        if holder != one.originator_id:
            what = f"slot {number} of queue '{before.queue_key}' of flow {before.flow_id}"
            self._found("slot", one, f"{what} is held by {holder}")

    def _free_slot(self, ended: ExecutionState) -> None:
        if ended.queue_slot is not None:
            slot = (ended.tenant, ended.flow_id, ended.queue_key, ended.queue_slot)
            if self._slots.get(slot) == ended.execution_id:
                del self._slots[slot]

    def _check_start(self, before: ExecutionState, one: Recorded, event: events.NodeStarted) -> None:
        node = before.nodes.get(NodeId(event.node_id))
        if before.cancel_requested_at is not None:
            self._found("start", one, f"node {event.node_id} started after an accepted cancel")
        elif before.paused or before.started_at is None:
            self._found("start", one, f"node {event.node_id} started while {before.status}")
        if node is None and event.attempt != 1:
            self._found("start", one, f"node {event.node_id} began with attempt {event.attempt}")
        if node is not None and (node.status != "retrying" or event.attempt != node.attempt + 1):
            detail = f"node {event.node_id} is {node.status}, attempt {node.attempt}"
            self._found("start", one, f"attempt {event.attempt} can't start: {detail}")

    def _check_outcome(
        self,
        stream: _Stream,
        before: ExecutionState,
        one: Recorded,
        event: events.NodeCompleted | events.NodeFailed,
    ) -> None:
        node = before.nodes.get(NodeId(event.node_id))
        if node is not None and node.attempt != event.attempt:
            self._found("outcome", one, f"attempt {event.attempt} of node {event.node_id} is not the latest")
        if node is not None and node.status in ("completed", "skipped"):
            self._found("outcome", one, f"node {event.node_id} was {node.status} before")
        if stream.outcomes.get(event.node_id, 0) >= event.attempt:
            self._found("outcome", one, f"attempt {event.attempt} of node {event.node_id} had an outcome")
        stream.outcomes[event.node_id] = event.attempt

    def _check_answer(
        self,
        before: ExecutionState,
        one: Recorded,
        event: events.StepStarted | events.StepRetried | events.MessageRecorded,
    ) -> None:
        """An answer was paid for once: whatever asks for it again, or gives another, is a call made twice."""
        node = before.nodes.get(NodeId(event.node_id))
        known = None if node is None else node.steps.get(event.step)
        if known is not None and known.answer is not None:
            self._found("answer", one, f"{one.topic} behind the answer of {event.step} of {event.node_id}")
        elif known is not None and isinstance(event, events.StepStarted):
            self._found("answer", one, f"{event.step} of {event.node_id} began before")

    def _check_owner(self, stream: _Stream, one: Recorded, where: str) -> None:
        if where in stream.formers:
            self._found("owner", one, f"recorded for {where}, which no longer owned the execution")

    def _close_ended(self, stream: _Stream, one: Recorded, event: Event) -> None:
        gave_up = isinstance(event, events.CallbackFailed) and event.retry_at is None
        if isinstance(event, TERMINAL_EVENTS):
            state = stream.state
            status = state.status if isinstance(state, ExecutionState) else one.topic
            self._ends[status] += 1
            if isinstance(state, ExecutionState):
                self._free_slot(state)
            if one.originator_id in self._watched and isinstance(state, ExecutionState):
                self._watched[one.originator_id] = state.status
        elif not gave_up and not isinstance(event, events.CallbackDelivered | events.ResourceDeleted):
            return
        del self._streams[one.originator_id]
        self._closed[one.originator_id] = one.topic
        if len(self._closed) > CLOSED_MAX:
            self._closed.popitem(last=False)

    # --- at the end -------------------------------------------------------------------------------------

    def report_at_end(self, settled: bool) -> Report:
        report = self._report
        statuses = Counter(self._ends)
        for originator_id, stream in self._streams.items():
            state = stream.state
            if not isinstance(state, ExecutionState):
                continue
            statuses[state.status] += 1
            report.open_executions += 1
            if originator_id in self._watched:
                self._watched[originator_id] = state.status
            if settled:
                self._found_of("settled", originator_id, f"still {state.status}", state.version)
        report.executions = dict(sorted(statuses.items()))
        report.topics = dict(sorted(self._topics.items()))
        self._check_journal()
        return report

    def _check_journal(self) -> None:
        by_key: dict[str, str] = {}
        ended: dict[str, Status] = {}
        for entry in self._journal:
            execution_id = entry.execution_id
            logged = self._watched[execution_id]
            if isinstance(entry, Accepted):
                if logged is None:
                    self._found_of("accepted", execution_id, "acknowledged, but not in the log")
                first = by_key.setdefault(entry.request_key, execution_id) if entry.request_key else ""
                if first and first != execution_id:
                    self._found_of("key", execution_id, f"{entry.request_key!r} also started {first}")
                continue
            status = contract_status(entry.status)
            before = ended.get(execution_id)
            if before is not None and status != before:
                self._found_of("seen", execution_id, f"{status} was seen after {before}")
            if status in TERMINAL:
                ended[execution_id] = status
                if logged is None or contract_status(logged) != status:
                    self._found_of("seen", execution_id, f"{status} was seen, the log says {logged}")

    def _found(self, rule: Rule, one: Recorded, detail: str) -> None:
        self._add(Violation(rule, one.originator_id, one.originator_version, one.position, detail))

    def _found_of(self, rule: Rule, execution_id: str, detail: str, version: int = 0) -> None:
        self._add(Violation(rule, execution_id, version, 0, detail))

    def _add(self, violation: Violation) -> None:
        self._report.found += 1
        if len(self._report.violations) < VIOLATIONS_MAX:
            self._report.violations.append(violation)


def _evolve(originator_id: str, state: object, event: Event) -> object:
    """The next state of whatever aggregate the stream holds. Raises: Diverged."""
    kind = originator_id.split(":", 1)[0] if ":" in originator_id else ""
    match kind:
        case "flow":
            return evolve_flow(state, event)  # pyright: ignore[reportArgumentType] - this stream's own state
        case "key":
            return evolve_key(state, event)  # pyright: ignore[reportArgumentType] - this stream's own state
        case "callback":
            return evolve_callback(state, event)  # pyright: ignore[reportArgumentType] - this stream's own state
        case "resource":
            return evolve_resource(state, event)  # pyright: ignore[reportArgumentType] - this stream's own state
        case _:
            return evolve(state, event) if isinstance(state, ExecutionState) else begin(event)
