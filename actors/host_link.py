"""One host as a gateway sees it: the outbox to it, the feed from it, and whether it answers.

    command --> outbox --(one Ray call carries all that waits)--> answer, once durable
    feed    <-- a connection <---- committed events of executions that somebody follows here

A host that dies loses the calls in flight, and nobody knows whether they took effect. Every message can
be repeated harmlessly (a start by its id, a signal by its signal id, a cancellation by its cause), so the
outbox sends them again until the host is back, for at most ``ANSWER_SECONDS_MAX``. When the host is given
up before that, whoever waits gets ``Moved`` and asks who has the execution now.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import aclosing
from typing import Any, Literal

import msgspec
import structlog
from ray.exceptions import RayError

from actors import messages
from actors.feed import batches
from actors.messages import Answer, Delta, FeedBatch, HostStatus, Message, Refusal, Reply
from runtime.errors import DomainError, InvalidInput, Overloaded, Unavailable
from runtime.event_log import Recorded
from runtime.ids import HostName

log = structlog.get_logger(__name__)

CALLS_AT_ONCE_MAX = 2
"""Ray calls in flight to one host: while one is being committed the next is being decoded."""

BATCH_MESSAGES_MAX = 1_000

ANSWERS_AT_ONCE = 64
"""Senders that go on in one sweep of the loop: each computes for a while, and text waits for all of them."""

OUTBOX_MESSAGES_MAX = 50_000
"""Messages waiting for one host; one more is refused with ``Overloaded``."""

ANSWER_SECONDS_MAX = 30.0
"""How long a message waits for its host to come back; then ``Unavailable``, outcome unknown."""

SILENCE_SECONDS = 2.0
"""Longest silence of a feed; a host silent for this plus ``SILENCE_GRACE_SECONDS`` is unreachable."""

SILENCE_GRACE_SECONDS = 2.5
RETRY_SECONDS_MIN, RETRY_SECONDS_MAX = 0.1, 1.0

READER_ITEMS_MAX = 1_000
"""A reader further behind than this is cut off and may resume from the log (gateway rule G8)."""


Trouble = Literal["", "broken", "silent"]
"""Why a host is unreachable: calls fail at once (its process is gone, or not there yet), or get no answer."""


Waiting = tuple[msgspec.Raw, "asyncio.Future[Answer]", float]
"""An encoded message, its answer, and when it is given up (the loop's time)."""


class Moved(Unavailable):
    """The host was given up before it answered: another one has its executions, or will have them soon."""


class Reader:
    """One follower's bounded buffer. ``None`` in it means: something was lost, read the log."""

    def __init__(self) -> None:
        self.items: deque[Recorded | Delta | None] = deque()
        self.news = asyncio.Event()
        self.is_cut = False

    def put(self, item: Recorded | Delta | None) -> None:
        if len(self.items) >= READER_ITEMS_MAX:
            self.is_cut = True
        else:
            self.items.append(item)
        self.news.set()


class HostLink:
    """One host as a gateway sees it: the outbox to it and the feed from it."""

    def __init__(
        self,
        name: HostName,
        handle: Any,
        gateway_id: str,
        on_reachable: Callable[[], None] | None = None,
    ) -> None:
        self._on_reachable = on_reachable
        self.name = name
        self._handle = handle
        self._gateway_id = gateway_id
        self._outbox: deque[Waiting] = deque()
        self._calls = 0
        self._in_flight: list[list[Waiting]] = []
        self._readers: dict[str, list[Reader]] = {}
        self._watches: dict[str, asyncio.Future[None]] = {}
        self._incarnation = ""
        self._last_batch = 0
        """Number of the feed's latest batch; 0: none yet."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._flush_due = False
        self._reachable = asyncio.Event()
        self._closed_with: DomainError | None = None
        self._asking: asyncio.Task[None] | None = None
        self.trouble: Trouble = ""
        self.unreachable_since: float | None = None
        """The loop's time at which it was first missed, or at which this link was opened."""
        self.status: HostStatus | None = None

    def open(self) -> None:
        self.unreachable_since = asyncio.get_running_loop().time()
        self._spawn(self._follow_for_ever())

    def close(self, error: DomainError | None = None) -> None:
        """Stop talking to the host; whoever waits for an answer gets ``error``."""
        self._closed_with = error or Unavailable("the gateway is shutting down")
        for task in tuple(self._tasks):
            task.cancel()
        self.release(self._closed_with)
        self._lose()

    def release(self, error: DomainError) -> None:
        """Give up waiting for answers: the host's executions are going to another one."""
        for batch in (*self._in_flight, self._outbox):
            _refuse(batch, error)
        self._outbox.clear()

    def reconnect(self, handle: Any) -> None:
        """The host was made anew, after its actor had ended for good."""
        self._handle = handle

    @property
    def is_closed(self) -> bool:
        return self._closed_with is not None

    @property
    def is_reachable(self) -> bool:
        """Whether the host answered the last call."""
        return self._reachable.is_set()

    @property
    def has_answered(self) -> bool:
        """Whether the host was ever reachable."""
        return self._incarnation != ""

    @property
    def accepts(self) -> bool:
        """Whether new executions may go here."""
        return self.is_reachable and (self.status is None or self.status.state != "draining")

    @property
    def has_backlog(self) -> bool:
        """Whether executions wait here for a place, as far as we were told."""
        return self.status is not None and self.status.queued > 0

    def ask_status(self) -> None:
        """Bring ``status`` up to date soon. Nobody waits for it: the feed says whether the host lives."""
        if self._asking is None or self._asking.done():
            self._asking = self._spawn(self._ask_status())

    async def _ask_status(self) -> None:
        try:
            async with asyncio.timeout(SILENCE_GRACE_SECONDS):
                self.status = messages.decode_status(await self._handle.status.remote())
        except (RayError, TimeoutError) as error:
            log.debug("no status", host=self.name, error=reason_of(error))

    async def drain(self, seconds: float) -> tuple[str, ...]:
        """Let the host end its work within ``seconds``; the executions it still holds. Repeatable.

        Raises: RayError, TimeoutError.
        """
        async with asyncio.timeout(SILENCE_GRACE_SECONDS):
            return messages.decode_ids(await self._handle.drain.remote(seconds))

    async def wait_reachable(self) -> None:
        await self._reachable.wait()

    # --- outbox ---------------------------------------------------------------------------------------

    async def send(self, message: Message) -> Reply:
        """Deliver ``message``. Raises: what the host refused with; Overloaded; Unavailable."""
        if self._closed_with is not None:
            raise self._closed_with
        if len(self._outbox) >= OUTBOX_MESSAGES_MAX:
            raise Overloaded(f"{OUTBOX_MESSAGES_MAX} messages are waiting for host {self.name}")
        try:
            # Encoded here and not with its batch, so that one that can't be harms nobody else's.
            encoded = msgspec.Raw(messages.encode(message))
        except (OverflowError, TypeError, ValueError) as error:
            raise InvalidInput((("", f"can't be stored: {error}"),)) from error
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._outbox.append((encoded, answer, loop.time() + ANSWER_SECONDS_MAX))
        self._flush_soon()
        result = await answer
        if isinstance(result, Refusal):
            raise messages.error_of(result)
        return result

    def _flush_soon(self) -> None:
        if not self._flush_due and self._calls < CALLS_AT_ONCE_MAX:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._outbox and self._calls < CALLS_AT_ONCE_MAX and not self.is_closed:
            size = min(len(self._outbox), BATCH_MESSAGES_MAX)
            batch = [self._outbox.popleft() for _ in range(size)]
            self._calls += 1
            self._in_flight.append(batch)
            self._spawn(self._call(batch))

    async def _call(self, batch: list[Waiting]) -> None:
        try:
            call = self._handle.deliver.remote(messages.encode([message for message, _, _ in batch]))
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                answers = messages.decode_answers(await call)
        except TimeoutError:
            # The host lives but can't record: its store is away. It goes on trying; the caller may too.
            _refuse(batch, Unavailable(f"host {self.name} could not record it in time"))
        except RayError as error:
            self._miss("broken")
            log.warning("host unreachable, sending again", host=self.name, error=reason_of(error))
            await asyncio.sleep(0.2)
            self._send_again(batch)
        except ValueError as error:
            log.error("an answer can't be read", host=self.name, error=str(error)[:200])
            _refuse(batch, Unavailable(f"host {self.name} gave an answer that can't be read"))
        else:
            for number, ((_, future, _), answer) in enumerate(zip(batch, answers, strict=False), 1):
                if not future.done():
                    future.set_result(answer)
                if number % ANSWERS_AT_ONCE == 0:
                    await asyncio.sleep(0)
        finally:
            self._in_flight.remove(batch)
            self._calls -= 1
            if self._outbox:
                self._flush_soon()

    def _send_again(self, batch: list[Waiting]) -> None:
        now = asyncio.get_running_loop().time()
        for message, future, deadline in reversed(batch):
            if future.done():
                continue
            if deadline > now:
                self._outbox.appendleft((message, future, deadline))
            else:
                future.set_exception(Unavailable(f"host {self.name} did not answer"))

    # --- feed -----------------------------------------------------------------------------------------

    async def watch(self, execution_id: str, reader: Reader, *, deltas: bool = False) -> None:
        """Put an execution on the feed; returns when what is committed from now on will come.

        ``deltas``: the host also says again what text is on its way; the other readers drop what they have.
        """
        self._readers.setdefault(execution_id, []).append(reader)
        watch = self._watches.get(execution_id)
        if watch is None or (deltas and watch.done()):
            work = self._watch(execution_id)
            watch = self._watches[execution_id] = asyncio.get_running_loop().create_task(work)
            watch.add_done_callback(lambda done: self._watched(execution_id, done))
        await asyncio.shield(watch)

    async def _watch(self, execution_id: str) -> None:
        await self.send(messages.Watch(self._gateway_id, (execution_id,)))

    def _watched(self, execution_id: str, watch: "asyncio.Future[None]") -> None:
        if watch.cancelled() or watch.exception() is not None:  # the next reader asks again
            self._watches.pop(execution_id, None)

    def unwatch(self, execution_id: str, reader: Reader) -> None:
        readers = self._readers.get(execution_id, [])
        if reader in readers:
            readers.remove(reader)
        if not readers and self._readers.pop(execution_id, None) is not None and not self.is_closed:
            self._watches.pop(execution_id, None)
            self._spawn(self._unwatch(execution_id))

    async def _unwatch(self, execution_id: str) -> None:
        try:
            if execution_id not in self._readers:
                await self.send(messages.Unwatch(self._gateway_id, (execution_id,)))
        except Unavailable:
            log.info("unwatch not delivered; a new incarnation knows no watches", execution=execution_id)

    async def _follow_for_ever(self) -> None:
        pause = RETRY_SECONDS_MIN
        while not self.is_closed:
            try:
                feed = batches(self._handle, self._gateway_id, SILENCE_SECONDS, SILENCE_GRACE_SECONDS)
                async with aclosing(feed):
                    async for batch in feed:
                        pause = RETRY_SECONDS_MIN
                        self._hear(batch)
            except (RayError, OSError, EOFError, msgspec.MsgspecError) as error:
                self._miss("silent" if isinstance(error, TimeoutError) else "broken")
                log.warning("feed interrupted", host=self.name, error=reason_of(error))
                self._lose()  # what it would have brought is in the log alone; others may have the executions
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_SECONDS_MAX)

    def _hear(self, batch: FeedBatch) -> None:
        self.trouble = ""
        if not self.is_reachable:
            self.unreachable_since = None
            self._reachable.set()
            self._lose()  # what they follow may have moved meanwhile
            self.ask_status()  # it may be on another node now
            if self._on_reachable is not None:
                self._on_reachable()
        self._arrived(batch)

    def _miss(self, trouble: Trouble) -> None:
        if self.is_reachable or self.unreachable_since is None:
            self.unreachable_since = asyncio.get_running_loop().time()
        self.trouble = trouble
        self._reachable.clear()

    def _arrived(self, batch: FeedBatch) -> None:
        if batch.incarnation != self._incarnation:
            self._incarnation = batch.incarnation
            self._last_batch = 0
            if self._readers:
                self._spawn(self._watch_again())
        elif 0 < self._last_batch < batch.number - 1:
            self._lose()  # what came between was on its way when the connection broke
        self._last_batch = batch.number or self._last_batch
        self._dispatch(batch)

    def _dispatch(self, batch: FeedBatch) -> None:
        if batch.lagged:
            self._lose()
        for item in batch.items:
            execution_id = item.originator_id if isinstance(item, Recorded) else item.execution_id
            for reader in self._readers.get(execution_id, ()):
                reader.put(item)

    async def _watch_again(self) -> None:
        try:
            await self.send(messages.Watch(self._gateway_id, tuple(self._readers)))
        except Unavailable as error:
            log.warning("watches not renewed, trying again", host=self.name, error=str(error))
            self._incarnation = "unknown"  # the next batch then comes from a new one
        self._lose()

    def _lose(self) -> None:
        for reader in itertools.chain.from_iterable(self._readers.values()):
            reader.put(None)

    def _spawn(self, work: Any) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def reason_of(error: BaseException) -> str:
    """The line that says why: Ray puts it last, behind where it happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _refuse(batch: Iterable[Waiting], error: DomainError) -> None:
    for _, answer, _ in batch:
        if not answer.done():
            answer.set_exception(error)
