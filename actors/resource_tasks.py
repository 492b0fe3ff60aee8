"""Steps with declared resources: each is one Ray task, placed where Ray finds room for it.

The task is a generator of two items: where it started, and the outcome. The step's time counts from the
first, so that waiting for a GPU is not charged. The function runs on a thread of its own while the task's
main thread keeps the time, for then a step that hangs can still report what it had written.

    waiting --Ray placed it--> running --> answered
      |  ^
      v  | a node that can hold it joined
    unplaceable: no node, and none that may be started, can ever hold it

A task that can't be placed waits until it can be, or until its caller cancels. Whoever waits is told what is
missing, once for each change. The unplaceable have a bound of their own, so that they use up nobody's turn.
"""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, cast

import msgspec
import ray
from ray.exceptions import RayError, RuntimeEnvSetupError, WorkerCrashedError

from actors import step_call
from actors.cluster_view import ClusterView
from actors.crash_report import KILL_SECONDS_MAX, crash_error, wait_until_gone
from actors.environments import REASON_CHARS_MAX, EnvironmentFailed, Environments
from actors.object_cache import ObjectCache
from actors.step_call import MIB, BatchReply, StepCall, StepOutcome, WorkerAddress, WorkerLimits
from actors.step_worker import StepWorker, memory_allowed
from runtime.errors import Overloaded, Unavailable
from runtime.events import StepError
from runtime.plan import Resources

WATCH_SECONDS = 0.1
"""How soon the task's main thread notices a cancellation; the function's end it notices at once."""
DEATH_SECONDS_MAX = 30.0
GRACE_MARGIN_SECONDS = 2.0
PLACEMENTS_MAX = 3

LOOK_SECONDS = 1.0
"""How often those that wait are held against what the cluster's nodes have."""

Tell = Callable[[tuple[str, ...] | None], None]
"""Told what is missing for a step that can't be placed, ``()`` when it can be after all and when it begins,
and None when it was given up."""


class _Wait:
    """One step on its way to a place."""

    __slots__ = ("is_placed", "missing", "resources", "tell")

    def __init__(self, resources: Resources, tell: Tell | None) -> None:
        self.resources = resources
        self.tell = tell
        self.missing: tuple[str, ...] = ()
        self.is_placed = False

    def lack(self, missing: tuple[str, ...]) -> None:
        if missing != self.missing:
            self.missing = missing
            if self.tell is not None:
                self.tell(missing)

    def placed(self) -> None:
        # Told even if nothing was missing: a former life of the host may have recorded that something was.
        self.is_placed = True
        self.missing = ()
        if self.tell is not None:
            self.tell(())

    def given_up(self) -> None:
        if self.tell is not None and self.missing:
            self.tell(None)


class ResourceTasks:
    """The host's side: starts the tasks, follows and cancels them."""

    def __init__(
        self,
        limits: WorkerLimits,
        tasks_max: int,
        environments: Environments | None = None,
        objects: ObjectCache | None = None,
    ) -> None:
        self._objects = objects or ObjectCache(0)
        self._limits = limits
        self._encoded_limits = step_call.encode(limits)
        self._tasks_max = tasks_max
        self._environments = environments
        self._view = ClusterView()
        self._waits: set[_Wait] = set()
        self._watching: asyncio.Task[None] | None = None
        self._open: set[Any] = set()
        self._closed = False

    @property
    def unplaceable(self) -> int:
        """Steps that no node can ever hold, as the cluster is."""
        return sum(bool(wait.missing) for wait in self._waits)

    async def run(self, call: StepCall, tell: Tell | None = None) -> StepOutcome:
        """As ``WorkerPool.run``.

        Raises: Overloaded at ``tasks_max`` steps that run or could run, and at as many that can't be placed.
        """
        if call.resources is None:
            raise ValueError("a Ray task needs declared resources")
        wait = _Wait(call.resources, tell)
        missing = await self._view.missing(call.resources)
        alike = sum(bool(other.missing) == bool(missing) for other in self._waits)
        if alike >= self._tasks_max:
            what = "can't be placed" if missing else "are under way"
            raise Overloaded(f"{alike} steps with declared resources {what}")
        self._waits.add(wait)
        try:
            wait.lack(missing)
            self._watch()
            return await self._run_placed(call, wait)
        finally:
            self._waits.discard(wait)
            wait.given_up()

    async def _run_placed(self, call: StepCall, wait: _Wait) -> StepOutcome:
        outcome = await self._run_once(call, wait)
        for _ in range(PLACEMENTS_MAX - 1):
            if outcome.started or self._closed:
                break
            # Its process died before the function began, for instance because Ray had handed the task
            # to one that was just being killed: not the function's fault, so not its attempt.
            outcome = await self._run_once(call, wait)
        return outcome

    def _watch(self) -> None:
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._watch_waiting())

    async def _watch_waiting(self) -> None:
        """Hold those without a place against what the nodes have, while there are any."""
        while not self._closed:
            await asyncio.sleep(LOOK_SECONDS)
            waiting = [wait for wait in self._waits if not wait.is_placed]
            if not waiting:
                return
            alike: dict[bytes, tuple[str, ...]] = {}
            for wait in waiting:
                kind = step_call.encode(wait.resources)
                if kind not in alike:
                    alike[kind] = await self._view.missing(wait.resources)
                if not wait.is_placed:
                    wait.lack(alike[kind])

    async def _run_once(self, call: StepCall, wait: _Wait) -> StepOutcome:
        # Never retried by Ray: attempts are the execution's to count.
        options = {**ray_options(wait.resources), "max_retries": 0}
        if call.code is not None and self._environments is not None:
            try:
                options["runtime_env"] = await self._environments.runtime_env(call.code)
            except EnvironmentFailed as error:
                failure = StepError(type="EnvironmentFailed", message=str(error))
                return StepOutcome(error=failure, started=True)  # as final as the function's own faults
        task = _step_task.options(**options)
        encoded = step_call.encode(call)
        items: Any = task.remote(self._encoded_limits, encoded, self._objects.mentioned(encoded))
        self._open.add(items)
        address = WorkerAddress(where="")
        try:
            async for item in items:
                answer: bytes = await item
                if not address.where:
                    address = step_call.decode_address(answer)
                    wait.placed()
                    continue
                told = step_call.decode_reply(answer)
                (outcome,) = told.outcomes
                await self._objects.take_items(told.held, items)
                if outcome.error is not None and outcome.error.type == "TimeoutError":
                    # The function may hang on, and then its process must go.
                    await self._end(items, address, within=WATCH_SECONDS)
                return outcome
            raise Unavailable("the step's task ended without an answer")
        except RuntimeEnvSetupError as error:
            reason = f"a node could not take over the flow's code: {error}"
            failure = StepError(type="EnvironmentFailed", message=reason[:REASON_CHARS_MAX])
            return StepOutcome(error=failure, started=True)
        except RayError as error:
            if self._closed:
                raise Unavailable("the worker pool was closed") from error
            where = address.where
            return StepOutcome(error=crash_error(error), where=where, started=bool(where))
        except asyncio.CancelledError:
            await asyncio.to_thread(_cancel, items, force=False)
            # The task itself keeps the grace period; the margin is for one that can't any more.
            grace = self._limits.grace_seconds + GRACE_MARGIN_SECONDS
            await self._end(items, address, within=grace if address.where else 0)
            raise
        finally:
            self._open.discard(items)

    async def close(self) -> None:
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        for items in tuple(self._open):
            await self._kill(items)
        await self._view.close()

    async def _end(self, items: Any, address: WorkerAddress, within: float) -> None:
        """Wait for the task's end, forced when it doesn't come ``within`` so many seconds."""
        end = asyncio.wrap_future(items.completed().future())
        end.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait({end}, timeout=within)
        if not end.done():
            await self._kill(items)
            await asyncio.wait({end}, timeout=KILL_SECONDS_MAX)
            if address.where:
                await wait_until_gone(address)
        elif isinstance(end.exception(), WorkerCrashedError):
            await wait_until_gone(address)

    @staticmethod
    async def _kill(items: Any) -> None:
        await asyncio.to_thread(_cancel, items, force=True)


def _cancel(items: Any, *, force: bool) -> None:
    """For a thread: it asks other processes, and the event loop must not wait for them."""
    ray.cancel(items, force=force)


def ray_options(resources: Resources) -> dict[str, Any]:
    """Ray's options for a task or an actor that has these resources."""
    options: dict[str, Any] = {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "resources": dict(resources.custom),
    }
    if resources.memory_mb:
        options["memory"] = resources.memory_mb * MIB
    if resources.labels:
        options["label_selector"] = dict(resources.labels)
    if resources.label_fallbacks:
        options["fallback_strategy"] = [
            {"label_selector": dict(selector)} for selector in resources.label_fallbacks
        ]
    return options


def step_task(limits: bytes, encoded_call: bytes, objects: Mapping[str, Any]) -> Iterator[bytes]:
    """In the task: run one call; yields where it runs, its encoded ``BatchReply``, and the values it holds.

    ``objects``: as ``StepWorker.run``.
    """
    (call,) = step_call.decode_calls(b"[" + encoded_call + b"]")
    grace = msgspec.json.decode(limits, type=WorkerLimits).grace_seconds
    cancelled = threading.Event()
    with ExitStack() as stack:
        # Ray cancels a task by a simulated SIGINT, and repeats it while the task goes on. As a flag it
        # can't tear through the clean-up below.
        before = signal.signal(signal.SIGINT, lambda _number, _frame: cancelled.set())
        stack.callback(signal.signal, signal.SIGINT, before)
        worker = StepWorker(limits, own_process=False, holds=True)
        stack.callback(worker.close)
        yield worker.ready()
        if call.resources is not None and call.resources.memory_mb:
            stack.enter_context(memory_allowed(call.resources.memory_mb))
        replies: list[bytes] = []
        calls = step_call.encode([call])
        thread = threading.Thread(target=lambda: replies.append(worker.run(1, calls, objects)), daemon=True)
        thread.start()
        in_time = _ends(thread, call.timeout_seconds, cancelled)
        if not in_time:
            worker.interrupt(1)
            if not _ends(thread, grace) and cancelled.is_set():
                os._exit(1)  # nobody reads an answer, and the process must not serve anybody else
        if replies:
            told = step_call.decode_reply(replies[0])
        else:
            told = BatchReply(outcomes=(step_call.decode_outcome(worker.snapshot(1)),))
        (outcome,) = told.outcomes
        if not in_time:
            told = BatchReply(outcomes=(timed_out(call, outcome, outcome.where),))
        yield step_call.encode(told)
        for value in told.held:
            yield worker.hand_over(value.sha256)
        if thread.is_alive():
            # The function still runs. The host kills the process as soon as it has the answer; should
            # the host be gone, the process ends itself.
            _ends(thread, DEATH_SECONDS_MAX, cancelled)
            os._exit(1)


def _ends(thread: threading.Thread, seconds: float | None, cancelled: threading.Event | None = None) -> bool:
    """Whether the thread ends in time and before ``cancelled``.

    Short waits, because Python runs signal handlers only between them.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    while thread.is_alive():
        left = WATCH_SECONDS if deadline is None else deadline - time.monotonic()
        if left <= 0 or (cancelled is not None and cancelled.is_set()):
            return False
        thread.join(min(left, WATCH_SECONDS))
    return True


def timed_out(call: StepCall, left: StepOutcome, where: str) -> StepOutcome:
    """The outcome of a step that used up its time; ``left``: what it had written, and where it stood."""
    error = StepError(
        type="TimeoutError",
        message=f"{call.function} took longer than {call.timeout_seconds:g} s"
        if call.timeout_seconds is not None
        else f"{call.function} was stopped",
        traceback=left.error.traceback if left.error else "",
    )
    micros = left.duration_micros or int((call.timeout_seconds or 0) * 1_000_000)
    return StepOutcome(error=error, logs=left.logs, where=where, duration_micros=micros, started=True)


_step_task: Any = cast(Any, ray.remote)(num_returns="streaming")(step_task)
