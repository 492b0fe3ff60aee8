"""The pool with real worker processes: what a function does to its own attempt, and to nobody else's."""

# ruff: noqa: ASYNC110, ASYNC240  # the tests wait for what other processes do
import asyncio
import itertools
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import ray

from actors.crash_report import is_running
from actors.step_call import StepOutcome, WorkerLimits
from actors.worker_pool import Durations, PoolSettings, WorkerPool
from runtime.blob_store import BlobStore
from runtime.errors import Overloaded, Unavailable
from runtime.events import StepError
from runtime.plan import Resources
from tests.actors.calls import call

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

T = TypeVar("T")
SETTINGS = PoolSettings(workers_max=2, limits=WorkerLimits(grace_seconds=0.3))


def in_pool(work: Callable[[WorkerPool], Awaitable[T]], settings: PoolSettings = SETTINGS) -> T:
    """What ``work`` returns, with a pool that is closed behind it."""

    async def main() -> T:
        pool = WorkerPool(settings)
        try:
            return await work(pool)
        finally:
            await pool.close()

    return asyncio.run(main())


def failure(outcome: StepOutcome) -> StepError:
    assert outcome.error is not None
    return outcome.error


async def wait_for(path: Path, running: "asyncio.Task[StepOutcome]") -> None:
    """Until the step has left its mark; bounded by the suite's own timeout."""
    while not (path.exists() and path.read_text()):
        assert not running.done(), running
        await asyncio.sleep(0.005)


async def wait_until_idle(pool: WorkerPool, workers: int) -> None:
    while pool.workers != workers:
        await asyncio.sleep(0.01)


async def measured(pool: WorkerPool, function: str, arguments: dict[str, Any]) -> None:
    """Let the pool learn that ``function`` is short, so that it batches its calls."""
    for _ in range(30):
        await pool.run(call(function, arguments))


# --- answers --------------------------------------------------------------------------------------


def test_two_hundred_short_calls_are_all_answered_once_and_correctly() -> None:
    async def work(pool: WorkerPool) -> list[StepOutcome]:
        calls = [call("echo" if n % 2 else "echo_later", {"value": n}) for n in range(200)]
        return list(await asyncio.gather(*(pool.run(one) for one in calls)))

    assert [outcome.output for outcome in in_pool(work)] == list(range(200))


def test_a_pool_without_work_has_no_worker_and_an_idle_worker_ends() -> None:
    async def work(pool: WorkerPool) -> tuple[int, int, int]:
        before = pool.workers
        pid = (await pool.run(call("pid"))).output
        during = pool.workers
        await wait_until_idle(pool, 0)
        while is_running(pid):
            await asyncio.sleep(0.01)
        return before, during, pool.workers

    settings = msgspec.structs.replace(SETTINGS, idle_seconds=0.2)
    assert in_pool(work, settings) == (0, 1, 0)


def test_long_calls_get_a_second_worker(tmp_path: Path) -> None:
    async def work(pool: WorkerPool) -> None:
        marks = [tmp_path / "one", tmp_path / "two"]
        runs = [
            asyncio.ensure_future(pool.run(call("sleep_for_ever", {"started": str(mark)}))) for mark in marks
        ]
        for mark, one in zip(marks, runs, strict=True):
            await wait_for(mark, one)
        assert pool.workers == 2
        for one in runs:
            one.cancel()
        assert all(isinstance(r, asyncio.CancelledError) for r in await gathered(runs))

    in_pool(work)


async def gathered(runs: list["asyncio.Task[StepOutcome]"]) -> list[StepOutcome | BaseException]:
    return await asyncio.gather(*runs, return_exceptions=True)


def test_a_large_result_goes_to_the_blob_store(tmp_path: Path) -> None:
    limits = WorkerLimits(blob_url=tmp_path.as_uri())

    async def work(pool: WorkerPool) -> StepOutcome:
        return await pool.run(call("huge", {"size": 200_000}))

    outcome = in_pool(work, msgspec.structs.replace(SETTINGS, limits=limits))
    assert outcome.output is None
    assert outcome.output_ref is not None
    stored = BlobStore(limits.blob_url).get_bytes(outcome.output_ref)
    assert stored == b'"' + b"h" * 200_000 + b'"'


def test_an_unserialisable_result_fails_its_step_only() -> None:
    async def work(pool: WorkerPool) -> tuple[StepOutcome, StepOutcome]:
        return await pool.run(call("unserialisable")), await pool.run(call("echo", {"value": 1}))

    failed, fine = in_pool(work)
    assert failure(failed).type == "Unserialisable"
    assert (fine.output, fine.where) == (1, failed.where)


def test_the_worker_imports_nothing_of_the_gateway_or_the_log() -> None:
    heavy = ["fastapi", "uvicorn", "jinja2", "eventsourcing", "pydantic_ai", "fsspec", "sqlite3"]
    rooms = ["actors", "runtime", "gateway", "projections"]

    async def work(pool: WorkerPool) -> StepOutcome:
        return await pool.run(call("modules", {"prefixes": heavy + rooms}))

    loaded = set(in_pool(work).output) - {"actors", "runtime"}
    assert loaded == {
        "actors.crash_report",
        "actors.dataset_reader",
        "actors.files",
        "actors.large_values",
        "actors.object_cache",
        "actors.optional_libraries",
        "actors.step_call",
        "actors.step_capture",
        "actors.step_context",
        "actors.step_execution",
        "actors.step_worker",
        "runtime.agent_spec",
        "runtime.block_file",
        "runtime.datasets",
        "runtime.errors",
        "runtime.events",
        "runtime.ids",
        "runtime.packages",
        "runtime.placement",
        "runtime.plan",
        "runtime.queues",
        "runtime.values",
    }


def test_numeric_libraries_get_one_thread() -> None:
    async def work(pool: WorkerPool) -> StepOutcome:
        return await pool.run(call("environment", {"name": "OMP_NUM_THREADS"}))

    assert in_pool(work).output == "1"


# --- crashes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "arguments", "word"),
    [
        ("drop_dead", {"code": 3}, "os._exit(3)"),
        ("segfault", {}, "Segmentation fault"),
        ("kill_self", {}, "unexpectedly"),
    ],
)
def test_a_function_that_kills_its_process_fails_its_own_attempt(
    function: str, arguments: dict[str, Any], word: str
) -> None:
    async def work(pool: WorkerPool) -> tuple[StepOutcome, StepOutcome]:
        return await pool.run(call(function, arguments)), await pool.run(call("echo", {"value": 1}))

    crashed, next_one = in_pool(work)
    error = failure(crashed)
    assert error.type == "WorkerCrashed"
    assert word in error.message
    assert "step_execution" not in error.traceback
    if word != "unexpectedly":
        assert function in error.traceback
    assert next_one.output == 1
    assert next_one.where != crashed.where


def test_a_crash_in_a_batch_is_charged_to_the_culprit_only() -> None:
    async def work(pool: WorkerPool) -> list[StepOutcome]:
        await measured(pool, "drop_dead_if", {"value": 0, "fatal": -1})
        calls = [call("drop_dead_if", {"value": n, "fatal": 7}) for n in range(20)]
        return list(await asyncio.gather(*(pool.run(one) for one in calls)))

    outcomes = in_pool(work)
    assert failure(outcomes[7]).type == "WorkerCrashed"
    rest = [outcome.output for n, outcome in enumerate(outcomes) if n != 7]
    assert rest == [n for n in range(20) if n != 7]


def test_an_idle_worker_that_is_killed_costs_nobody_an_attempt() -> None:
    async def work(pool: WorkerPool) -> StepOutcome:
        os.kill((await pool.run(call("pid"))).output, signal.SIGKILL)
        await wait_until_idle(pool, 0)
        return await pool.run(call("echo", {"value": 1}))

    assert in_pool(work).output == 1


# --- time -----------------------------------------------------------------------------------------


def test_an_endless_loop_ends_at_its_timeout_and_shows_where_it_was() -> None:
    async def work(pool: WorkerPool) -> tuple[StepOutcome, StepOutcome]:
        endless = await pool.run(call("spin", timeout_seconds=0.3))
        return endless, await pool.run(call("echo", {"value": 1}))

    endless, next_one = in_pool(work)
    error = failure(endless)
    assert error.type == "TimeoutError"
    assert "longer than 0.3 s" in error.message
    assert "in spin" in error.traceback
    assert endless.logs is not None
    assert endless.logs.stdout == "spinning\n"
    assert next_one.where != endless.where


def test_a_function_that_heeds_its_timeout_keeps_its_worker(tmp_path: Path) -> None:
    async def work(pool: WorkerPool) -> tuple[StepOutcome, StepOutcome]:
        late = await pool.run(call("wait_for_cancel", {"started": str(tmp_path / "m")}, timeout_seconds=0.3))
        return late, await pool.run(call("echo", {"value": 1}))

    late, next_one = in_pool(work)
    assert failure(late).type == "TimeoutError"
    assert late.output is None
    assert next_one.where == late.where


def test_a_call_that_hangs_in_a_batch_holds_up_nobody() -> None:
    async def work(pool: WorkerPool) -> list[StepOutcome]:
        await measured(pool, "spin_if", {"value": 0, "endless": -1})
        calls = [call("spin_if", {"value": n, "endless": 3}, timeout_seconds=1.0) for n in range(12)]
        return list(await asyncio.gather(*(pool.run(one) for one in calls)))

    outcomes = in_pool(work, msgspec.structs.replace(SETTINGS, workers_max=1))
    assert failure(outcomes[3]).type == "TimeoutError"
    rest = [outcome.output for n, outcome in enumerate(outcomes) if n != 3]
    assert rest == [n for n in range(12) if n != 3]


# --- cancellation ---------------------------------------------------------------------------------


def test_a_cancelled_function_that_looks_stops_by_itself(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    async def work(pool: WorkerPool) -> tuple[str, str]:
        before = (await pool.run(call("pid"))).where
        running = asyncio.ensure_future(pool.run(call("wait_for_cancel", {"started": str(mark)})))
        await wait_for(mark, running)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert Path(f"{mark}.stopped").exists()
        return before, (await pool.run(call("pid"))).where

    before, after = in_pool(work)
    assert before == after


def test_a_cancelled_function_that_does_not_look_is_killed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    async def work(pool: WorkerPool) -> int:
        running = asyncio.ensure_future(pool.run(call("ignore_cancel", {"started": str(mark)})))
        await wait_for(mark, running)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return int(mark.read_text())

    assert not is_running(in_pool(work))


def test_a_call_cancelled_while_it_waits_never_runs(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"

    async def work(pool: WorkerPool) -> int:
        running = asyncio.ensure_future(pool.run(call("wait_for_cancel", {"started": str(first)})))
        await wait_for(first, running)
        waiting = asyncio.ensure_future(pool.run(call("wait_for_cancel", {"started": str(second)})))
        while not pool.waiting:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        left = pool.waiting
        running.cancel()
        await gathered([running])
        await pool.run(call("echo", {"value": 1}))
        return left

    assert in_pool(work, msgspec.structs.replace(SETTINGS, workers_max=1)) == 0
    assert not second.exists()


# --- bounds ---------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    async def work(pool: WorkerPool) -> list[StepOutcome | BaseException]:
        running = asyncio.ensure_future(pool.run(call("wait_for_cancel", {"started": str(mark)})))
        await wait_for(mark, running)
        waiting = [asyncio.ensure_future(pool.run(call("echo", {"value": n}))) for n in range(3)]
        while pool.waiting < 3:
            await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await pool.run(call("echo", {"value": 9}))
        running.cancel()
        await gathered([running])
        return await gathered(waiting)

    outcomes = in_pool(work, msgspec.structs.replace(SETTINGS, workers_max=1, queue_max=3))
    assert [one.output for one in outcomes if isinstance(one, StepOutcome)] == [0, 1, 2]


def test_a_closed_pool_refuses_and_ends_what_runs(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    async def work(pool: WorkerPool) -> int:
        running = asyncio.ensure_future(pool.run(call("ignore_cancel", {"started": str(mark)})))
        await wait_for(mark, running)
        await pool.close()
        with pytest.raises(Unavailable):
            await running
        with pytest.raises(Unavailable):
            await pool.run(call("echo", {"value": 1}))
        pid = int(mark.read_text())
        while is_running(pid):
            await asyncio.sleep(0.01)
        return pool.workers

    assert in_pool(work) == 0


def test_a_pool_that_closes_while_it_finds_a_worker_dead_leaves_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    found, closed = threading.Event(), threading.Event()
    kills = itertools.count()

    def kill(actor: Any) -> None:
        """The closing pool's ends when the step's own has begun, and that one when the pool is closed."""
        ray.kill(actor)
        if next(kills) == 0:
            found.wait(60)
        else:
            found.set()
            closed.wait(60)

    async def work(pool: WorkerPool) -> None:
        running = asyncio.ensure_future(pool.run(call("ignore_cancel", {"started": str(mark)})))
        await wait_for(mark, running)
        await pool.close()
        closed.set()
        with pytest.raises(Unavailable):
            async with asyncio.timeout(10):
                await asyncio.shield(running)

    monkeypatch.setattr("actors.worker_pool._kill", kill)
    in_pool(work)


@pytest.mark.parametrize("function", ["flood", "flood_descriptor"])
def test_megabytes_of_output_grow_neither_memory_nor_the_log(function: str) -> None:
    async def work(pool: WorkerPool) -> tuple[StepOutcome, StepOutcome]:
        little = await pool.run(call(function, {"megabytes": 1}))
        return little, await pool.run(call(function, {"megabytes": 64}))

    little, much = in_pool(work)
    assert much.output - little.output < 16 * 1024
    assert much.logs is not None
    assert len(much.logs.stdout) == 32 * 1024
    assert much.logs.dropped == 64 * 1024 * 1024 - 32 * 1024


def test_what_a_child_process_prints_is_kept() -> None:
    async def work(pool: WorkerPool) -> StepOutcome:
        return await pool.run(call("run_child"))

    outcome = in_pool(work)
    assert outcome.output == 0
    assert outcome.logs is not None
    assert outcome.logs.stdout == "from the child\n"


def test_a_function_that_wants_too_much_memory_gets_a_memory_error() -> None:
    limits = WorkerLimits(memory_max_mb=256)

    async def work(pool: WorkerPool) -> tuple[StepOutcome, StepOutcome]:
        return await pool.run(call("allocate", {"megabytes": 300})), await pool.run(call("pid"))

    refused, next_one = in_pool(work, msgspec.structs.replace(SETTINGS, limits=limits))
    assert failure(refused).type == "MemoryError"
    assert next_one.where == refused.where


def test_a_worker_that_keeps_too_much_memory_is_replaced() -> None:
    limits = WorkerLimits(resident_max_mb=256)

    async def work(pool: WorkerPool) -> tuple[StepOutcome, StepOutcome]:
        return await pool.run(call("leak", {"megabytes": 256})), await pool.run(call("pid"))

    leaked, next_one = in_pool(work, msgspec.structs.replace(SETTINGS, limits=limits))
    assert leaked.output == 1
    assert next_one.where != leaked.where


def test_durations_forget_the_oldest_function() -> None:
    durations = Durations(functions_max=2)
    for name in ("a", "b", "c"):
        durations.note(name, 100)
    durations.note("c", 200)
    assert durations.expected("a") == float("inf")
    assert durations.expected("b") == 100
    assert durations.expected("c") == 120


# --- declared resources ---------------------------------------------------------------------------

ONE_CPU = Resources(cpus=1)


def test_a_step_with_resources_runs_as_a_task_with_its_output_kept() -> None:
    async def work(pool: WorkerPool) -> tuple[StepOutcome, int]:
        return await pool.run(call("chatter", resources=ONE_CPU)), pool.workers

    outcome, workers = in_pool(work)
    assert outcome.output == "done"
    assert outcome.logs is not None
    assert outcome.logs.stdout == "to stdout\n"
    assert workers == 0


def test_a_task_that_crashes_fails_its_own_attempt() -> None:
    async def work(pool: WorkerPool) -> StepOutcome:
        return await pool.run(call("drop_dead", {"code": 3}, resources=ONE_CPU))

    outcome = in_pool(work)
    assert failure(outcome).type == "WorkerCrashed"
    assert outcome.where


def test_a_task_that_hangs_ends_at_its_timeout() -> None:
    async def work(pool: WorkerPool) -> StepOutcome:
        return await pool.run(call("spin", timeout_seconds=0.3, resources=ONE_CPU))

    outcome = in_pool(work)
    assert failure(outcome).type == "TimeoutError"
    assert "in spin" in failure(outcome).traceback
    assert outcome.logs is not None
    assert outcome.logs.stdout == "spinning\n"


@pytest.mark.parametrize("function", ["wait_for_cancel", "ignore_cancel"])
def test_a_task_is_cancelled_whether_it_looks_or_not(tmp_path: Path, function: str) -> None:
    mark = tmp_path / "mark"

    async def work(pool: WorkerPool) -> None:
        run = pool.run(call(function, {"started": str(mark)}, resources=ONE_CPU))
        running = asyncio.ensure_future(run)
        await wait_for(mark, running)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    in_pool(work)
    if function == "wait_for_cancel":
        assert Path(f"{mark}.stopped").exists()
    else:
        assert not is_running(int(mark.read_text()))


def test_a_task_that_cannot_be_placed_waits_until_it_is_cancelled() -> None:
    async def work(pool: WorkerPool) -> None:
        nowhere = Resources(custom={"no_such_thing": 1})
        run = pool.run(call("echo", {"value": 1}, resources=nowhere))
        running = asyncio.ensure_future(run)
        # What comes after it is not held up, and by then it would have been answered.
        assert (await pool.run(call("echo", {"value": 2}, resources=ONE_CPU))).output == 2
        assert not running.done()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    in_pool(work)
