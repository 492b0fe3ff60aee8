"""The worker as a plain class, in this process: what becomes of what a function does."""

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors import step_call, step_context
from actors.step_call import BatchReply, StepCall, StepOutcome, WorkerLimits
from actors.step_worker import StepWorker
from runtime.blob_store import BlobStore
from runtime.events import FileDescriptor, StepError, StepLogs
from tests.actors.calls import STEPS, call

BATCHES = itertools.count(100)
LIMITS = WorkerLimits(output_bytes_max=1_000, log_bytes_max=2_000, grace_seconds=1)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(f"file://{tmp_path}/blobs")


@pytest.fixture
def worker(blobs: BlobStore) -> Iterator[StepWorker]:
    worker = StepWorker(step_call.encode(LIMITS), own_process=False, blobs=blobs)
    try:
        yield worker
    finally:
        worker.close()


def run_batch(worker: StepWorker, calls: list[StepCall]) -> BatchReply:
    return step_call.decode_reply(worker.run(next(BATCHES), step_call.encode(calls)))


def run(worker: StepWorker, function: str, **arguments: Any) -> StepOutcome:
    (outcome,) = run_batch(worker, [call(function, arguments)]).outcomes
    return outcome


def failure(outcome: StepOutcome) -> StepError:
    assert outcome.error is not None
    assert outcome.output is None
    return outcome.error


def logs(outcome: StepOutcome) -> StepLogs:
    assert outcome.logs is not None
    return outcome.logs


# --- results --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0, -1.5, "text é", [1, [2]], {"a": {"b": None}}, 2**70])
def test_a_json_value_comes_back_as_it_was(worker: StepWorker, value: Any) -> None:
    outcome = run(worker, "echo", value=value)
    assert outcome.output == value
    assert outcome.error is None
    assert outcome.started
    assert outcome.logs is None
    assert outcome.where == step_call.decode_address(worker.ready()).where


def test_a_coroutine_function_is_awaited(worker: StepWorker) -> None:
    assert run(worker, "echo_later", value=7).output == 7


def test_the_outcomes_of_a_batch_stand_in_the_order_of_its_calls(worker: StepWorker) -> None:
    calls = [call("echo", {"value": n}) for n in range(10)]
    assert [one.output for one in run_batch(worker, calls).outcomes] == list(range(10))


def test_a_failing_call_does_not_end_its_batch(worker: StepWorker) -> None:
    calls = [call("fail", {"message": "no"}), call("leave", {"code": 1}), call("echo", {"value": 1})]
    outcomes = run_batch(worker, calls).outcomes
    assert [one.error.type if one.error else None for one in outcomes] == [
        "ValueError",
        "SystemExit",
        None,
    ]


def test_a_large_output_goes_to_the_blob_store(worker: StepWorker, blobs: BlobStore) -> None:
    outcome = run(worker, "huge", size=5_000)
    assert outcome.output is None
    assert outcome.output_ref is not None
    assert outcome.output_ref.size == 5_002
    assert outcome.output_ref.media_type == "application/json"
    assert json.loads(blobs.get_bytes(outcome.output_ref)) == "h" * 5_000


def test_an_output_at_the_bound_stays_inline(worker: StepWorker) -> None:
    outcome = run(worker, "huge", size=998)
    assert outcome.output == "h" * 998
    assert outcome.output_ref is None


def test_an_unserialisable_result_is_named_with_path_and_type(worker: StepWorker) -> None:
    error = failure(run(worker, "unserialisable"))
    assert error.type == "Unserialisable"
    assert "result.rows[1].lock is a _thread.lock" in error.message


def test_a_result_that_contains_itself_is_refused(worker: StepWorker) -> None:
    error = failure(run(worker, "nested_in_itself"))
    assert error.type == "Unserialisable"
    assert "contains itself" in error.message


# --- errors ---------------------------------------------------------------------------------------


def test_an_exception_becomes_an_error_with_the_users_frames_only(worker: StepWorker) -> None:
    outcome = run(worker, "fail", message="no such row")
    error = failure(outcome)
    assert outcome.started
    assert (error.type, error.message) == ("ValueError", "no such row")
    assert "in fail\n    raise ValueError(message)" in error.traceback
    assert 'File "tests/actors/sample_steps.py"' in error.traceback
    assert "step_execution" not in error.traceback
    assert str(Path.cwd()) not in error.traceback


def test_an_exception_of_a_coroutine_shows_the_users_frames_only(worker: StepWorker) -> None:
    error = failure(run(worker, "fail_later", message="late"))
    assert error.type == "ValueError"
    assert "in fail_later" in error.traceback
    assert "asyncio" not in error.traceback
    assert "step_execution" not in error.traceback


def test_a_chain_of_exceptions_is_kept(worker: StepWorker) -> None:
    traceback = failure(run(worker, "fail_with_cause")).traceback
    assert "the cause" in traceback
    assert "direct cause of the following exception" in traceback
    assert "step_execution" not in traceback


def test_a_long_message_is_bounded_and_says_so(worker: StepWorker) -> None:
    error = failure(run(worker, "fail", message="m" * 1_000_000))
    assert len(error.message) < 5_000
    assert "characters left out" in error.message
    assert len(error.traceback) < 9_000


def test_an_exception_that_cannot_speak_is_an_error_like_others(worker: StepWorker) -> None:
    assert failure(run(worker, "fail_mutely")).type == "_Mute"


@pytest.mark.parametrize("function", ["leave", "leave_later"])
def test_sys_exit_fails_the_step_and_not_the_worker(worker: StepWorker, function: str) -> None:
    error = failure(run(worker, function, code=3))
    assert error.type == "SystemExit"
    assert "sys.exit(3)" in error.message
    assert run(worker, "echo_later", value=1).output == 1


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        ("no.such.module:f", "ModuleNotFoundError"),
        (f"{STEPS}:no_such_function", "AttributeError"),
        (f"{STEPS}:not_a_function", "TypeError"),
        (f"{STEPS}:", "ValueError"),
    ],
)
def test_a_function_that_cannot_be_found_is_an_error_before_the_start(
    worker: StepWorker, function: str, kind: str
) -> None:
    outcome = run(worker, function)
    assert failure(outcome).type == kind
    assert not outcome.started


def test_wrong_arguments_are_an_error(worker: StepWorker) -> None:
    assert failure(run(worker, "echo", other=1)).type == "TypeError"


# --- the step's context ---------------------------------------------------------------------------


def test_a_step_knows_who_it_is(worker: StepWorker) -> None:
    (outcome,) = run_batch(worker, [call("who", attempt=2, key="e1:n1:2", index=4)]).outcomes
    assert outcome.output == {
        "execution_id": "e1",
        "node_id": "n1",
        "attempt": 2,
        "index": 4,
        "key": "e1:n1:2",
        "cancelled": False,
    }


def test_outside_a_step_there_is_no_context(worker: StepWorker) -> None:
    run(worker, "who")
    with pytest.raises(RuntimeError, match="no step is running"):
        step_context.current()


def test_a_step_opens_files_of_its_execution_and_no_others(worker: StepWorker, blobs: BlobStore) -> None:
    ref = blobs.put_bytes(b"first\nsecond\n", "text/plain")
    file = FileDescriptor(
        file_id="f1",
        name="a.txt",
        content_type="text/plain",
        size=ref.size,
        sha256=ref.sha256,
        uri="artifact://r1/f1",
    )
    mine = call("first_line", {"uri": "artifact://r1/f1"}, files=(file,))
    foreign = call("first_line", {"uri": "artifact://r2/f1"}, files=(file,))
    got, refused = run_batch(worker, [mine, foreign]).outcomes
    assert got.output == "first\n"
    assert failure(refused).type == "FileNotFoundError"


# --- output ---------------------------------------------------------------------------------------


def test_prints_and_log_records_are_kept_apart(worker: StepWorker) -> None:
    kept = logs(run(worker, "chatter"))
    assert kept.stdout == "to stdout\n"
    assert kept.stderr == "to stderr\n"
    assert kept.records == ("INFO sample: a record with 1 arguments", "WARNING sample: a warning")
    assert kept.dropped == 0


def test_each_call_of_a_batch_has_its_own_output(worker: StepWorker) -> None:
    first, silent, third = run_batch(
        worker, [call("chatter"), call("echo", {"value": 1}), call("chatter")]
    ).outcomes
    assert logs(first) == logs(third)
    assert silent.logs is None


def test_megabytes_of_prints_keep_the_head_and_count_the_rest(worker: StepWorker) -> None:
    kept = logs(run(worker, "flood", megabytes=4))
    assert kept.stdout == "x" * 2_000
    assert kept.dropped == 4 * 1024 * 1024 - 2_000


def test_many_log_records_are_bounded(worker: StepWorker) -> None:
    kept = logs(run(worker, "flood_log", records=500))
    assert sum(len(record) for record in kept.records) <= 2_000
    assert kept.records[0].startswith("WARNING sample: record 0")
    assert kept.dropped > 490_000


def test_a_failing_step_keeps_its_output(worker: StepWorker) -> None:
    first, second = run_batch(worker, [call("break_streams"), call("chatter")]).outcomes
    assert first.error is None
    assert logs(second).stdout == "to stdout\n"
    assert len(logs(second).records) == 2


def test_input_is_empty(worker: StepWorker) -> None:
    read, asked = run_batch(worker, [call("read_input"), call("ask")]).outcomes
    assert read.output == ""
    assert failure(asked).type == "EOFError"


def test_closing_the_worker_gives_the_streams_back(blobs: BlobStore) -> None:
    before = (sys.stdin, sys.stdout, sys.stderr)
    worker = StepWorker(step_call.encode(LIMITS), own_process=False, blobs=blobs)
    run(worker, "chatter")
    worker.close()
    assert (sys.stdin, sys.stdout, sys.stderr) == before


# --- control --------------------------------------------------------------------------------------


def in_thread(work: Callable[[], bytes]) -> tuple[threading.Thread, list[bytes]]:
    answers: list[bytes] = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    return thread, answers


def wait_for(path: Path) -> None:
    """Until the step has left its mark; bounded by the suite's own timeout."""
    pause = threading.Event()
    while not path.exists():
        pause.wait(0.005)


def test_an_interrupted_function_sees_it(worker: StepWorker, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    calls = step_call.encode([call("wait_for_cancel", {"started": str(mark)})])
    thread, answers = in_thread(lambda: worker.run(5, calls))
    wait_for(mark)
    worker.interrupt(4)  # of a batch that ended long ago: without effect
    assert step_call.decode_outcome(worker.snapshot(4)) == StepOutcome()
    told = step_call.decode_outcome(worker.snapshot(5))
    assert logs(told).stdout == "waiting\n"
    assert "in wait_for_cancel" in failure(told).traceback
    worker.interrupt(5)
    thread.join()
    (outcome,) = step_call.decode_reply(answers[0]).outcomes
    assert outcome.output == "stopped by itself"


def test_an_interrupted_coroutine_is_cancelled(worker: StepWorker, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    calls = step_call.encode([call("sleep_for_ever", {"started": str(mark)})])
    thread, answers = in_thread(lambda: worker.run(1, calls))
    wait_for(mark)
    worker.interrupt(1)
    thread.join()
    (outcome,) = step_call.decode_reply(answers[0]).outcomes
    assert failure(outcome).type == "CancelledError"
    assert Path(f"{mark}.stopped").exists()
    assert run(worker, "echo_later", value=1).output == 1


def test_an_interrupt_that_overtakes_its_batch_still_counts(worker: StepWorker, tmp_path: Path) -> None:
    worker.interrupt(3)
    mark = tmp_path / "mark"
    calls = step_call.encode([call("wait_for_cancel", {"started": str(mark)})])
    (outcome,) = step_call.decode_reply(worker.run(3, calls)).outcomes
    assert outcome.output == "stopped by itself"


def test_a_split_reports_what_is_done_and_gives_up_what_has_not_begun(
    worker: StepWorker, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    calls = step_call.encode(
        [
            call("echo", {"value": "done"}),
            call("wait_for_cancel", {"started": str(mark)}),
            call("echo", {"value": "never begun"}),
        ]
    )
    thread, answers = in_thread(lambda: worker.run(1, calls))
    wait_for(mark)
    told = step_call.decode_reply(worker.split(1))
    assert told.split
    assert [one.output for one in told.outcomes] == ["done"]
    worker.interrupt(1)
    thread.join()
    assert [one.output for one in step_call.decode_reply(answers[0]).outcomes] == ["stopped by itself"]


def test_a_split_of_an_ended_batch_says_so(worker: StepWorker) -> None:
    worker.run(1, step_call.encode([call("echo", {"value": 1})]))
    assert step_call.decode_reply(worker.split(1)) == BatchReply()


def test_tasks_a_coroutine_leaves_behind_are_cancelled(worker: StepWorker, tmp_path: Path) -> None:
    mark = tmp_path / "late"
    run(worker, "leave_task_behind", path=str(mark))
    run(worker, "echo_later", value=1)
    from tests.actors import sample_steps

    assert sample_steps.leave_task_behind.__dict__.pop("task").cancelled()
    assert not mark.exists()


def test_a_worker_that_grew_too_large_asks_to_be_replaced(blobs: BlobStore) -> None:
    small = msgspec.structs.replace(LIMITS, resident_max_mb=1)
    worker = StepWorker(step_call.encode(small), own_process=False, blobs=blobs)
    try:
        assert "memory" in run_batch(worker, [call("echo", {"value": 1})]).retire
    finally:
        worker.close()


def test_a_worker_process_has_none_of_the_servers_secrets_in_its_environment() -> None:
    program = (
        "import os, sys\n"
        "from actors import step_call\n"
        "from actors.step_worker import NOT_FOR_FUNCTIONS, StepWorker\n"
        "os.environ.update(dict.fromkeys(NOT_FOR_FUNCTIONS, 'secret'), OTHER='kept')\n"
        "StepWorker(step_call.encode(step_call.WorkerLimits()))\n"
        "os._exit('OTHER' not in os.environ or 'secret' in os.environ.values())\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
