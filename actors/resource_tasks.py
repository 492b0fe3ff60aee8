"""Steps with declared resources: each is one Ray task, placed where Ray finds room for it.

The task is a generator of two items: where it started, and the outcome. The step's time counts from the
first, so that waiting for a GPU is not charged. The function runs on a thread of its own while the task's
main thread keeps the time, for then a step that hangs can still report what it had written. A task that
can't be placed waits until it can be, or until its caller cancels.
"""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, cast

import msgspec
import ray
from ray.exceptions import RayError

from actors import step_call
from actors.crash_report import crash_error
from actors.step_call import MIB, StepCall, StepOutcome, WorkerLimits
from actors.step_worker import StepWorker, memory_allowed
from runtime.errors import Overloaded, Unavailable
from runtime.events import StepError
from runtime.plan import Resources

WATCH_SECONDS = 0.1
"""How soon the task's main thread notices a cancellation; the function's end it notices at once."""
DEATH_SECONDS_MAX = 30.0
KILL_SECONDS_MAX = 10.0


class ResourceTasks:
    """The host's side: starts the tasks, follows and cancels them."""

    def __init__(self, limits: WorkerLimits, tasks_max: int) -> None:
        self._limits = limits
        self._encoded_limits = step_call.encode(limits)
        self._tasks_max = tasks_max
        self._open: set[Any] = set()
        self._closed = False

    async def run(self, call: StepCall) -> StepOutcome:
        """As ``WorkerPool.run``. Raises: Overloaded at ``tasks_max`` placed and waiting tasks."""
        if call.resources is None:
            raise ValueError("a Ray task needs declared resources")
        if len(self._open) >= self._tasks_max:
            raise Overloaded(f"{len(self._open)} steps with declared resources are under way")
        options = task_options(call.resources)
        items: Any = _step_task.options(**options).remote(self._encoded_limits, step_call.encode(call))
        self._open.add(items)
        where = ""
        try:
            async for item in items:
                answer: bytes = await item
                if not where:
                    where = step_call.decode_address(answer).where
                    continue
                outcome = step_call.decode_outcome(answer)
                if outcome.error is not None and outcome.error.type == "TimeoutError":
                    await self._kill(items)  # the function may hang on, and its process must go
                return outcome
            raise Unavailable("the step's task ended without an answer")
        except RayError as error:
            if self._closed:
                raise Unavailable("the worker pool was closed") from error
            return StepOutcome(error=crash_error(error), where=where, started=bool(where))
        except asyncio.CancelledError:
            await self._stop(items, waiting=not where)
            raise
        finally:
            self._open.discard(items)

    async def close(self) -> None:
        self._closed = True
        for items in tuple(self._open):
            await self._kill(items)

    async def _stop(self, items: Any, *, waiting: bool) -> None:
        """Interrupt the task and wait for its end; killed after the grace period."""
        end = asyncio.wrap_future(items.completed().future())
        end.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.to_thread(_cancel, items, force=False)
        await asyncio.wait({end}, timeout=0 if waiting else self._limits.grace_seconds)
        if not end.done():
            await self._kill(items)
            await asyncio.wait({end}, timeout=KILL_SECONDS_MAX)

    @staticmethod
    async def _kill(items: Any) -> None:
        await asyncio.to_thread(_cancel, items, force=True)


def _cancel(items: Any, *, force: bool) -> None:
    """For a thread: it asks other processes, and the event loop must not wait for them."""
    ray.cancel(items, force=force)


def task_options(resources: Resources) -> dict[str, Any]:
    """Ray's options for one step. Never retried by Ray: attempts are the execution's to count."""
    options: dict[str, Any] = {
        "num_cpus": resources.cpus,
        "num_gpus": resources.gpus,
        "resources": dict(resources.custom),
        "max_retries": 0,
    }
    if resources.memory_mb:
        options["memory"] = resources.memory_mb * MIB
    if resources.labels:
        options["label_selector"] = dict(resources.labels)
    return options


def step_task(limits: bytes, encoded_call: bytes) -> Iterator[bytes]:
    """In the task: run one call; yields where it runs, then its encoded outcome."""
    (call,) = step_call.decode_calls(b"[" + encoded_call + b"]")
    worker = StepWorker(limits, own_process=False)
    yield worker.ready()
    replies: list[bytes] = []
    calls = step_call.encode([call])
    thread = threading.Thread(target=lambda: replies.append(worker.run(1, calls)), daemon=True)
    with ExitStack() as stack:
        stack.callback(worker.close)
        if call.resources is not None and call.resources.memory_mb:
            stack.enter_context(memory_allowed(call.resources.memory_mb))
        thread.start()
        try:
            in_time = _ends(thread, call.timeout_seconds)
        except KeyboardInterrupt:  # Ray's way of cancelling a task; what we yield now nobody reads
            in_time = False
        if not in_time:
            worker.interrupt(1)
            grace = msgspec.json.decode(limits, type=WorkerLimits).grace_seconds
            _ends(thread, grace)
        if replies:
            outcome = step_call.decode_reply(replies[0]).outcomes[0]
        else:
            outcome = step_call.decode_outcome(worker.snapshot(1))
        if not in_time:
            outcome = timed_out(call, outcome, step_call.decode_address(worker.ready()).where)
        yield step_call.encode(outcome)
        if thread.is_alive():
            # The function still runs: its process must not serve anybody else. The host kills it as
            # soon as it has the answer; should the host be gone, it ends itself.
            _ends(thread, DEATH_SECONDS_MAX)
            os._exit(1)


def _ends(thread: threading.Thread, seconds: float | None) -> bool:
    """Whether the thread ends in time; short waits, so that an interrupt gets through in between."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while thread.is_alive():
        left = WATCH_SECONDS if deadline is None else deadline - time.monotonic()
        if left <= 0:
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
