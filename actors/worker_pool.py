"""Runs users' functions in worker processes, for one host, on the host's event loop.

    queued --dispatch--> running --reply--> answered
      |                     |
      |                     +-- caller cancelled / timeout: asked to stop, killed after the grace period
      |                     +-- worker died: alone in its batch -> WorkerCrashed; else queued again, alone
      +-- caller cancelled: forgotten

A worker is starting, idle, busy or gone; only the pool moves it, except that it may die at any time
(its ``lifeline`` breaks then). Nothing survives the host: workers are not detached and die with it, and
the host's recovery repeats what was running.

Batches: a Ray call costs about 0.6-1 ms of CPU, so calls whose function has proved to be short travel
together. A batch that takes longer than ``split_seconds`` after all is split: what is done is answered,
what has not begun goes back to the queue, and the call that hangs is from then on alone, so that a
timeout, a cancellation or a crash meets nobody else.

Workers reserve no CPUs of Ray (``num_cpus=0``): a pool that reserved its node's CPUs would keep Ray tasks
(steps with declared resources) waiting until it is idle. The price is bounded: at most ``workers_max``
busy processes more than Ray knows about. They stay on the host's node, because hosts are spread already.
"""

import asyncio
import itertools
import logging
import math
import os
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors import step_call
from actors.crash_report import (
    CRASHED,
    KILL_SECONDS_MAX,
    crash_error,
    last_words,
    wait_until_gone,
)
from actors.environments import EnvironmentFailed, Environments
from actors.object_cache import ObjectCache
from actors.resource_tasks import ResourceTasks, Tell, timed_out
from actors.step_call import BatchReply, StepCall, StepOutcome, WorkerAddress, WorkerLimits
from actors.step_worker import StepWorkerActor
from runtime.errors import Overloaded, Unavailable
from runtime.events import StepError

logger = logging.getLogger(__name__)

DURATION_WEIGHT = 0.2
DURATIONS_MAX = 10_000
SNAPSHOT_SECONDS_MAX = 1.0
START_FAILURES_MAX = 3
START_RETRY_SECONDS = 0.5


class PoolSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one host's pool.

    ``workers_max`` 0 = the CPUs this process may use. ``queue_max``: calls waiting for a worker; beyond
    it ``Overloaded``. ``short_micros``: a function is batched below this running average, as many calls as
    make ``batch_micros_max`` together, never more than ``batch_calls_max``. ``growth_seconds``: how long
    the oldest call waits before another worker is started for it. ``beside_host``: workers are on the host's
    node or nowhere, for it holds what they use.
    """

    workers_max: int = 0
    queue_max: int = 10_000
    tasks_max: int = 1_000
    idle_seconds: float = 30.0
    growth_seconds: float = 0.1
    start_seconds_max: float = 60.0
    batch_calls_max: int = 64
    batch_micros_max: int = 15_000
    short_micros: int = 3_000
    split_seconds: float = 0.25
    limits: WorkerLimits = WorkerLimits()
    beside_host: bool = False


class _Pending:
    """A call on its way. ``answer`` is done either by the pool or, cancelled, by the caller."""

    __slots__ = ("alone", "answer", "call", "encoded", "ended", "queued", "queued_at")

    def __init__(self, call: StepCall, loop: asyncio.AbstractEventLoop) -> None:
        self.call = call
        self.encoded = step_call.encode(call)
        self.answer: asyncio.Future[StepOutcome] = loop.create_future()
        self.ended = asyncio.Event()
        self.queued_at = loop.time()
        self.queued = True
        self.alone = False

    def settle(self, outcome: StepOutcome) -> None:
        if not self.answer.done():  # else the caller has gone: a late result is dropped
            self.answer.set_result(outcome)
        self.ended.set()


class _Worker:
    """The pool's view of one worker process."""

    def __init__(self, actor: Any, address: WorkerAddress) -> None:
        self.actor = actor
        self.address = address
        self.where = address.where
        self.alive = True
        self.idle_timer: asyncio.TimerHandle | None = None


class Durations:
    """Running averages of how long each function takes, in microseconds; the oldest are forgotten."""

    def __init__(self, functions_max: int = DURATIONS_MAX) -> None:
        self._average: dict[str, float] = {}
        self._functions_max = functions_max

    def note(self, function: str, micros: int) -> None:
        before = self._average.get(function)
        if before is None:
            if len(self._average) >= self._functions_max:
                del self._average[next(iter(self._average))]
            self._average[function] = float(micros)
        else:
            self._average[function] = before + DURATION_WEIGHT * (micros - before)

    def expected(self, function: str) -> float:
        """Infinite for a function that has not been measured."""
        return self._average.get(function, math.inf)


class WorkerPool:
    """Pooled workers and Ray tasks behind one ``run``; lives on one event loop.

    ``prepare`` gives Ray's ``runtime_env`` of the workers, all of whose calls are then of that environment.
    ``environments``: for tasks, each of which may have an environment of its own. ``objects``: large values
    at hand, by default the pool's own.
    """

    def __init__(
        self,
        settings: PoolSettings | None = None,
        prepare: Callable[[], Awaitable[dict[str, Any]]] | None = None,
        environments: Environments | None = None,
        objects: ObjectCache | None = None,
    ) -> None:
        self._settings = settings or PoolSettings()
        self.objects = objects or ObjectCache(self._settings.limits.object_cache_bytes_max)
        self._prepare = prepare
        self._workers_max = self._settings.workers_max or len(os.sched_getaffinity(0))
        self._limits = step_call.encode(self._settings.limits)
        self._tasks = ResourceTasks(
            self._settings.limits, self._settings.tasks_max, environments, self.objects
        )
        self._queue: deque[_Pending] = deque()
        self._waiting = 0
        self._durations = Durations()
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._starting = 0
        self._start_failures = 0
        self._batches = itertools.count(1)
        self._background: set[asyncio.Task[None]] = set()
        self._dispatch_due = False
        self._growth_timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def workers(self) -> int:
        """Worker processes that exist or are being started."""
        return len(self._workers) + self._starting

    @property
    def workers_max(self) -> int:
        return self._workers_max

    @property
    def waiting(self) -> int:
        """Calls no worker has taken yet."""
        return self._waiting

    @property
    def unplaceable(self) -> int:
        """Steps with declared resources that no node can ever hold, as the cluster is."""
        return self._tasks.unplaceable

    async def run(self, call: StepCall, tell: Tell | None = None) -> StepOutcome:
        """Run the call in a worker and say how it ended; a fault of the function is an outcome.

        ``tell`` hears what is missing while a step with declared resources can't be placed.

        Cancelling the caller cancels the step: it is asked to stop, killed after the grace period, and
        ``CancelledError`` is raised when it has really ended.
        Raises: Overloaded at ``queue_max``; Unavailable when the pool is or gets closed.
        """
        if self._closed:
            raise Unavailable("the worker pool is closed")
        if call.resources is not None:
            return await self._tasks.run(call, tell)
        if self._waiting >= self._settings.queue_max:
            raise Overloaded(f"{self._waiting} steps are waiting for a worker")
        pending = _Pending(call, asyncio.get_running_loop())
        self._queue.append(pending)
        self._waiting += 1
        self._dispatch_soon()
        try:
            return await pending.answer
        except asyncio.CancelledError:
            if pending.queued:
                self._forget(pending)
            else:
                await pending.ended.wait()
            raise

    async def close(self) -> None:
        """Kill every worker; calls under way raise Unavailable. Idempotent."""
        self._closed = True
        if self._growth_timer is not None:
            self._growth_timer.cancel()
        for pending in self._queue:
            self._refuse(pending)
        self._queue.clear()
        self._waiting = 0
        for worker in tuple(self._workers):
            await self._discard(worker)
        tasks = tuple(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._tasks.close()
        self.objects.clear()

    @staticmethod
    def _refuse(pending: _Pending) -> None:
        if not pending.answer.done():
            pending.answer.set_exception(Unavailable("the worker pool was closed"))
        pending.ended.set()

    # --- queue ----------------------------------------------------------------------------------------

    def _dispatch_soon(self) -> None:
        # One turn of the loop later, so that calls made in the same turn can share a batch.
        if not self._dispatch_due:
            self._dispatch_due = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_due = False
        if self._closed:
            return
        while self._idle:
            batch = self._next_batch()
            if not batch:
                return
            # The one used last: the others may become idle for good.
            worker = self._idle.pop()
            if worker.idle_timer is not None:
                worker.idle_timer.cancel()
            self._spawn(self._serve(worker, batch))
        if self._waiting:
            self._grow()

    def _forget(self, pending: _Pending) -> None:
        # It stays in the queue and is passed over, for removing it there would cost O(queue); now and
        # then the queue is swept, so that it stays bounded whoever comes and goes.
        pending.queued = False
        self._waiting -= 1
        if len(self._queue) > 2 * self._waiting + 100:
            self._queue = deque(one for one in self._queue if one.queued)

    def _next_batch(self) -> list[_Pending]:
        settings = self._settings
        batch: list[_Pending] = []
        micros = 0.0
        while self._queue and len(batch) < settings.batch_calls_max:
            pending = self._queue[0]
            if not pending.queued or pending.answer.done():  # its caller has gone
                self._queue.popleft()
                if pending.queued:
                    self._waiting -= 1
                    pending.queued = False
                    pending.ended.set()
                continue
            expected = self._expected(pending)
            micros += expected
            if batch and (expected > settings.short_micros or micros > settings.batch_micros_max):
                break
            self._queue.popleft()
            self._waiting -= 1
            pending.queued = False
            batch.append(pending)
            if expected > settings.short_micros:
                break
        return batch

    def _expected(self, pending: _Pending) -> float:
        """Microseconds; infinite for a call that must travel alone."""
        timeout = pending.call.timeout_seconds
        # A timeout near the time to split would be charged with the time of others.
        if (
            pending.alone
            or pending.call.chunk is not None
            or (timeout is not None and timeout < 2 * self._settings.split_seconds)
        ):
            return math.inf
        return self._durations.expected(pending.call.function)

    def _requeue(self, batch: list[_Pending], *, alone: bool) -> None:
        """Back to the front, in order."""
        for pending in reversed(batch):
            pending.alone = pending.alone or alone
            if pending.answer.done():
                pending.ended.set()
            elif self._closed:
                self._refuse(pending)
            else:
                self._queue.appendleft(pending)
                pending.queued = True
                self._waiting += 1
        if batch:
            self._dispatch_soon()

    # --- workers --------------------------------------------------------------------------------------

    def _grow(self) -> None:
        """Start the first worker at once, another when the oldest call has waited long enough."""
        if self.workers >= self._workers_max:
            return
        if self.workers == 0:
            self._start()
        elif self._growth_timer is None:
            self._growth_timer = asyncio.get_running_loop().call_later(
                self._settings.growth_seconds, self._grow_if_late
            )

    def _grow_if_late(self) -> None:
        self._growth_timer = None
        if self._closed or not self._waiting:
            return
        oldest = next((one for one in self._queue if not one.answer.done()), None)
        waited = asyncio.get_running_loop().time() - oldest.queued_at if oldest else 0.0
        # A start takes about half a CPU-second: never more starts at a time than there are workers.
        may_start = self.workers < self._workers_max and self._starting < max(1, len(self._workers))
        if waited >= self._settings.growth_seconds and may_start:
            self._start()
        self._grow()

    def _start(self) -> None:
        self._starting += 1
        self._spawn(self._start_worker())

    async def _start_worker(self) -> None:
        actor = None
        try:
            runtime_env = await self._prepare() if self._prepare is not None else None
            # Registering an actor asks Ray's control service and may block, hence the thread.
            create = partial(_create_actor, self._limits, runtime_env, soft=not self._settings.beside_host)
            actor = await asyncio.to_thread(create)
            async with asyncio.timeout(self._settings.start_seconds_max):
                address = step_call.decode_address(await _send(actor.ready))
        except EnvironmentFailed as error:
            self._starting -= 1
            self._fail_waiting(StepError(type="EnvironmentFailed", message=str(error)))
            return
        except (RayError, TimeoutError) as error:
            self._starting -= 1
            if actor is not None:
                await asyncio.to_thread(_kill, actor)
            await self._start_failed(error)
            return
        except asyncio.CancelledError:
            self._starting -= 1
            if actor is not None:
                _kill(actor)
            raise
        self._starting -= 1
        self._start_failures = 0
        worker = _Worker(actor, address)
        self._workers.add(worker)
        lifeline = _send(_control(actor.lifeline))
        lifeline.add_done_callback(lambda _: self._died(worker))
        self._release(worker)

    async def _start_failed(self, error: BaseException) -> None:
        logger.warning("a step worker did not start: %s", error)
        self._start_failures += 1
        if self._start_failures >= START_FAILURES_MAX and not self._workers:
            self._start_failures = 0
            message = f"no worker started: {error}"[:4096]
            self._fail_waiting(StepError(type="WorkerUnavailable", message=message))
            return
        await asyncio.sleep(START_RETRY_SECONDS)
        self._dispatch_soon()

    def _fail_waiting(self, failure: StepError) -> None:
        while self._queue:
            self._queue.popleft().settle(StepOutcome(error=failure))
        self._waiting = 0

    def _died(self, worker: _Worker) -> None:
        worker.alive = False
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
            if worker.idle_timer is not None:
                worker.idle_timer.cancel()

    def _release(self, worker: _Worker) -> None:
        if self._closed:
            self._spawn(self._discard(worker))
            return
        if worker.alive:
            self._idle.append(worker)
            worker.idle_timer = asyncio.get_running_loop().call_later(
                self._settings.idle_seconds, lambda: self._spawn(self._retire_idle(worker))
            )
        self._dispatch_soon()

    async def _retire_idle(self, worker: _Worker) -> None:
        if worker in self._idle:
            await self._discard(worker)

    async def _discard(self, worker: _Worker) -> None:
        worker.alive = False
        self._workers.discard(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        if worker.idle_timer is not None:
            worker.idle_timer.cancel()
        with suppress(RayError):  # it may be dead already, which is what we want
            await asyncio.to_thread(_kill, worker.actor)

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the worker pool failed", exc_info=error)

    # --- one batch ------------------------------------------------------------------------------------

    async def _serve(self, worker: _Worker, batch: list[_Pending]) -> None:
        number = next(self._batches)
        began = asyncio.get_running_loop().time()
        calls = b"[" + b",".join([pending.encoded for pending in batch]) + b"]"
        reply = _send(worker.actor.run, number, calls, self.objects.mentioned(calls))
        retire = ""
        try:
            try:
                if len(batch) > 1:
                    batch = await self._share(worker, number, batch, reply)
                if len(batch) == 1 and not await self._within_time(batch[0], reply, began):
                    retire = await self._stop(worker, number, batch[0], reply)
                else:
                    told = step_call.decode_reply(await reply)
                    self.objects.take(told.held, worker.actor)
                    retire = self._settle(batch, told)
            except RayError as error:
                await self._discard(worker)
                if len(batch) == 1:
                    batch[0].settle(await asyncio.to_thread(_crashed, worker.address, error))
                else:
                    self._requeue(batch, alone=True)
        except BaseException:  # the pool closes (above too), or has a fault: nobody may wait for ever
            for pending in batch:
                self._refuse(pending)
            raise
        if retire:
            logger.info("replacing step worker %s: %s", worker.where, retire)
            await self._discard(worker)
        self._release(worker)

    async def _share(
        self, worker: _Worker, number: int, batch: list[_Pending], reply: "asyncio.Future[bytes]"
    ) -> list[_Pending]:
        """See a batch through, or split it when it takes too long; returns what the reply will answer."""
        await asyncio.wait({reply}, timeout=self._settings.split_seconds)
        if reply.done():
            return batch
        split = _send(_control(worker.actor.split), number)
        await asyncio.wait({reply, split}, timeout=SNAPSHOT_SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED)
        if reply.done():
            return batch
        if not split.done():  # the worker does not even answer: code that never lets go of the GIL
            await self._discard(worker)
            await asyncio.wait({reply}, timeout=KILL_SECONDS_MAX)
            return batch
        told = step_call.decode_reply(await split)
        if not told.split:  # it had just ended
            await asyncio.wait({reply}, timeout=KILL_SECONDS_MAX)
            return batch
        done = len(told.outcomes)
        self._settle(batch[:done], told)
        self._requeue(batch[done + 1 :], alone=False)
        return batch[done : done + 1]

    async def _within_time(self, pending: _Pending, reply: "asyncio.Future[bytes]", began: float) -> bool:
        """Wait for the reply; False when the step has to be stopped: its time or its caller is gone."""
        timeout = pending.call.timeout_seconds
        left = None
        if timeout is not None:
            left = max(0.0, began + timeout - asyncio.get_running_loop().time())
        await asyncio.wait({reply, pending.answer}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        return reply.done()

    async def _stop(
        self, worker: _Worker, number: int, pending: _Pending, reply: "asyncio.Future[bytes]"
    ) -> str:
        """Ask the step to stop, kill its process after the grace period, and answer for it.

        Returns: as ``_settle``.
        """
        _send(_control(worker.actor.interrupt), number)
        await asyncio.wait({reply}, timeout=self._settings.limits.grace_seconds)
        left, retire = StepOutcome(), ""
        if reply.done() and reply.exception() is None:
            told = step_call.decode_reply(reply.result())
            left, retire = told.outcomes[0], told.retire
        else:
            snapshot = _send(_control(worker.actor.snapshot), number)
            await asyncio.wait(
                {reply, snapshot},
                timeout=SNAPSHOT_SECONDS_MAX,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if snapshot.done() and snapshot.exception() is None:
                left = step_call.decode_outcome(snapshot.result())
            await self._discard(worker)
            await asyncio.wait({reply}, timeout=KILL_SECONDS_MAX)
            if not await wait_until_gone(worker.address):
                logger.error("step worker %s was killed and is still there", worker.where)
        pending.settle(timed_out(pending.call, left, worker.where))
        return retire

    def _settle(self, batch: list[_Pending], reply: BatchReply) -> str:
        """Answer the calls; those without an outcome never began. Returns why the worker must go, or ''."""
        for pending, outcome in zip(batch, reply.outcomes, strict=False):
            self._durations.note(pending.call.function, outcome.duration_micros)
            pending.settle(outcome)
        self._requeue(batch[len(reply.outcomes) :], alone=False)
        return reply.retire


def _create_actor(limits: bytes, runtime_env: dict[str, Any] | None, *, soft: bool) -> Any:
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=soft)
    actor: Any = StepWorkerActor.options(
        num_cpus=0,
        max_restarts=0,
        enable_task_events=False,
        scheduling_strategy=here,
        runtime_env=runtime_env,
    ).remote(limits)
    return actor


def _kill(actor: Any) -> None:
    ray.kill(actor)


def _control(method: Any) -> Any:
    return method.options(concurrency_group="control")


def _send(method: Any, *arguments: Any) -> "asyncio.Future[bytes]":
    """Call an actor's method; nobody has to look at the result."""
    future: asyncio.Future[bytes] = asyncio.wrap_future(method.remote(*arguments).future())
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future


def _crashed(address: WorkerAddress, error: RayError) -> StepOutcome:
    known = crash_error(error)
    found = last_words(address.stderr_path)
    if found is not None:
        message, trace = found
        known = StepError(type=known.type, message=f"{CRASHED}: {message}", traceback=trace)
    return StepOutcome(error=known, where=address.where, started=True)
