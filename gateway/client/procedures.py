"""What the client does, request by request, each written once for both drivers (`steps`). Pure.

States of following a stream of events, moved by what it brings:

    open --event--> open                           every event is handed on once, in order
    (none) --never opens--> Unreachable            the driver repeated that as long as it is patient
    open --broken, or ended early--> pausing       the server stops, or this reader fell behind
    pausing --> open                               behind the last event that was handed on
    pausing --nothing new in RECONNECTS_MAX tries--> Unreachable
    open --last event--> done
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Never, Protocol, TypeVar

from gateway.client import calls
from gateway.client.calls import Call
from gateway.client.errors import ClientError, Overloaded, StillRunning, Unreachable, end_of
from gateway.client.picture import Picture
from gateway.client.steps import Close, Download, Emit, Listen, Next, Pause, Procedure, Send
from gateway.client.views import EventRecord, Snapshot

T = TypeVar("T")
E = TypeVar("E")


class Ending(Protocol):
    """Something that goes on until it has ended."""

    @property
    def has_ended(self) -> bool: ...


S = TypeVar("S", bound=Ending)

RECONNECTS_MAX = 10
"""Times in a row that a stream or a download is taken up again without having brought anything."""

PAGE = 200

POLL_SECONDS_MIN, POLL_SECONDS_MAX = 0.05, 2.0

LETS_GO_SECONDS = 20.0
"""A silent stream lets go with its next keep-alive, 15 s later; the rest of a bounded wait polls."""

Clock = Callable[[], float]


def ask(call: Call[T]) -> Procedure[Never, T]:
    """One request."""
    body: bytes = yield Send(call)
    return call.read(body)


# --- streams --------------------------------------------------------------------------------------------


def follow(
    call: Call[E],
    after: int,
    is_last: Callable[[E], bool] | None,
    is_over: Callable[[], bool] | None = None,
    *,
    is_optional: bool = False,
) -> Procedure[E, None]:
    """Every event behind the id ``after``, to the last one, none missed and none twice.

    ``is_last`` None: the stream has no end. ``is_over`` is asked after everything that comes, keep-alives
    too, and may end it early. ``is_optional``: Overloaded when there is no place for the stream.
    """
    last, fruitless, is_again = str(after or ""), 0, False
    while True:
        before = last
        broken: ClientError | None = None
        try:
            yield Listen(call, last, is_again, is_optional)
            is_again = True
            while (sent := (yield Next())) is not None:
                if is_over is not None and is_over():
                    return
                if not sent.data:
                    continue  # a keep-alive, or the line that says how soon to come back
                event = call.read(sent.data.encode())
                last, fruitless = str(sent.id), 0
                yield Emit(event)
                if is_last is not None and is_last(event):
                    return
        except (Unreachable, Overloaded) as error:
            if not is_again:
                raise  # the driver was patient; it never opened
            broken = error
        yield Close()
        if broken is None and is_last is not None and last == before:
            return  # the server had nothing more: the last event was before ``after``
        fruitless += 1
        if fruitless > RECONNECTS_MAX:
            raise broken or Unreachable("the server ends the stream of events again and again")
        yield Pause(_pause(fruitless))


def follow_execution(execution_id: str, after: int) -> Procedure[EventRecord, None]:
    return follow(calls.events(execution_id), after, _is_terminal)


def read_lines(
    call_at: Callable[[int], tuple[Call[bytes], int]], decode: Callable[[bytes], E]
) -> Procedure[E, None]:
    """The lines of a body of any size, decoded. A broken download goes on where it broke.

    ``call_at(count)``: the request for what follows ``count`` lines, and how many of its lines were had.
    """
    count, fruitless, is_again = 0, 0, False
    while True:
        before = count
        call, known = call_at(count)
        try:
            yield Download(call, is_again)
            is_again = True
            held = b""
            while (block := (yield Next())) is not None:
                *whole, held = (held + block).split(b"\n")
                for line in whole:
                    if known:
                        known -= 1
                        continue
                    count += 1
                    yield Emit(decode(line))
            yield Close()
            return
        except (Unreachable, Overloaded):
            if not is_again:
                raise
            yield Close()
            fruitless = fruitless + 1 if count == before else 0
            if fruitless > RECONNECTS_MAX:
                raise
            yield Pause(_pause(fruitless))


def blocks(call: Call[bytes]) -> Procedure[bytes, None]:
    """A body of any size, as it comes. Raises: Unreachable when it breaks."""
    yield Download(call)
    while (block := (yield Next())) is not None:
        yield Emit(block)
    yield Close()


def _pause(fruitless: int) -> float:
    return min(0.1 * 2**fruitless, 5.0)


def consume(procedure: Procedure[E, T], take: Callable[[E], Any]) -> Procedure[Never, T]:
    """Carry ``procedure`` out as a part of another, and give what it emits to ``take``."""
    answer: Any = None
    error: ClientError | None = None
    while True:
        try:
            step = procedure.throw(error) if error is not None else procedure.send(answer)
        except StopIteration as ended:
            return ended.value
        answer = error = None
        if isinstance(step, Emit):
            take(step.item)
            continue
        try:
            answer = yield step
        except ClientError as raised:
            error = raised


# --- waiting --------------------------------------------------------------------------------------------


def wait(
    what: str,
    show: Call[S],
    stream: Call[E],
    is_last: Callable[[E], bool],
    timeout_seconds: float | None,
    clock: Clock,
    watch: Callable[[E], Any] | None,
) -> Procedure[Never, S]:
    """It once it has ended; ``watch`` gets every event on the way.

    Raises: StillRunning after ``timeout_seconds``.
    """
    until = None if timeout_seconds is None else clock() + timeout_seconds
    if watch is not None or timeout_seconds is None or timeout_seconds > 2 * LETS_GO_SECONDS:
        is_over = None if until is None else lambda: clock() > until - LETS_GO_SECONDS
        try:
            following = follow(stream, 0, is_last, is_over, is_optional=True)
            yield from consume(following, watch or _ignore)
        except Overloaded:
            yield Close()  # no stream to be had: asking now and then works as well
    pause = POLL_SECONDS_MIN
    while True:
        found = yield from ask(show)
        if found.has_ended:
            return found
        if until is not None:
            left = until - clock()
            if left <= 0:
                raise StillRunning(what, timeout_seconds or 0.0)
            pause = min(pause, left)
        yield Pause(pause)
        pause = min(pause * 1.5, POLL_SECONDS_MAX)


def wait_for_execution(
    execution_id: str,
    timeout_seconds: float | None,
    clock: Clock,
    watch: Callable[[EventRecord], Any] | None,
) -> Procedure[Never, Snapshot]:
    show, stream = calls.show(execution_id), calls.events(execution_id)
    what = f"execution {execution_id}"
    return wait(what, show, stream, _is_terminal, timeout_seconds, clock, watch)


def _is_terminal(record: EventRecord) -> bool:
    return record.is_terminal


def _ignore(_: object) -> None:
    return


def completed(found: Snapshot) -> Snapshot:
    """The execution, when it completed. Raises: NotCompleted."""
    if found.status != "completed":
        raise end_of(found)
    return found


# --- the rest -------------------------------------------------------------------------------------------


def list_executions(filters: Mapping[str, Any], limit: int | None) -> Procedure[Snapshot, None]:
    """Newest first, page after page; ``limit`` in all."""
    cursor, left = None, limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        page = yield from ask(calls.list_executions(filters, cursor, size))
        for found in page.executions:
            yield Emit(found)
        cursor = page.next_cursor
        if cursor is None:
            return
        left = None if left is None else left - len(page.executions)


def picture(execution_id: str) -> Procedure[Never, Picture]:
    found = yield from ask(calls.show(execution_id))
    graph = yield from ask(calls.graph(execution_id))
    return Picture(found, graph)
