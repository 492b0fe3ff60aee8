"""A chunk in the worker as a plain class, in this process: parts, errors, retries, times, the rest."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from actors import step_call
from actors.chunk_run import ITEM_OUTPUT_BYTES_MAX
from actors.step_call import ChunkCall, ChunkReport, StepCall, StepOutcome, WorkerLimits
from actors.step_worker import StepWorker
from runtime import datasets
from runtime.blob_store import BlobStore
from runtime.events import BlobRef
from runtime.ids import ExecutionId, NodeId

STEPS = "tests.actors.sample_steps"
BATCHES = itertools.count(100)
NO_SCOPE = {"inputs": {}, "nodes": {}, "execution": {"id": "e1"}}


class Bench:
    """A worker over a folder of blobs."""

    def __init__(self, folder: Path) -> None:
        self.blobs = BlobStore(f"file://{folder}/blobs")
        limits = WorkerLimits(output_bytes_max=1_000, grace_seconds=1)
        self.worker = StepWorker(step_call.encode(limits), own_process=False, blobs=self.blobs)

    def outcome(self, each: dict[str, Any], items: list[Any], **chunk: Any) -> StepOutcome:
        chunk.setdefault("scope", msgspec.Raw(step_call.encode(NO_SCOPE)))
        call = StepCall(
            execution_id=ExecutionId("e1"),
            node_id=NodeId("m"),
            attempt=1,
            key="e1:m:1",
            function="#map",
            arguments={},
            chunk=ChunkCall(
                first=chunk.pop("first", 0),
                items=tuple(msgspec.Raw(step_call.encode(item)) for item in items),
                document=msgspec.Raw(step_call.encode(each)),
                **chunk,
            ),
        )
        reply = step_call.decode_reply(self.worker.run(next(BATCHES), step_call.encode([call])))
        return reply.outcomes[0]

    def report(self, each: dict[str, Any], items: list[Any], **chunk: Any) -> ChunkReport:
        outcome = self.outcome(each, items, **chunk)
        assert outcome.error is None, outcome.error
        return msgspec.convert(outcome.output, ChunkReport)

    def results(self, report: ChunkReport) -> list[Any]:
        assert report.results is not None
        return [msgspec.json.decode(line) for line in datasets.read_lines(self.blobs, report.results)]

    def failures(self, report: ChunkReport) -> list[datasets.ItemFailure]:
        assert report.errors is not None
        lines = datasets.read_lines(self.blobs, report.errors)
        return [msgspec.json.decode(line, type=datasets.ItemFailure) for line in lines]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.worker.close()


def python(name: str, **fields: Any) -> dict[str, Any]:
    arguments = fields.pop("arguments", {})
    return {
        "kind": "python",
        "function": f"{STEPS}:{name}",
        "with": {"item": "${item}", **arguments},
    } | fields


def test_results_stand_in_order_with_null_for_what_failed(bench: Bench) -> None:
    report = bench.report(python("pick"), list(range(7)), first=30)
    assert (report.items, report.failed, report.first_failed) == (7, 2, 32)
    assert bench.results(report) == [{"n": 0}, {"n": 1}, None, {"n": 3}, {"n": 4}, None, {"n": 6}]
    failures = bench.failures(report)
    assert [(one.index, bytes(one.item)) for one in failures] == [(32, b"2"), (35, b"5")]
    assert failures[0].error.type == "ValueError"
    assert 'raise ValueError(f"bad item {item}")' in failures[0].error.traceback


def test_templates_and_expressions_see_item_index_and_scope(bench: Bench) -> None:
    scope = {"inputs": {"who": "Ada"}, "nodes": {"first": [7]}, "execution": {"id": "e1", "flow": "f"}}
    raw = msgspec.Raw(step_call.encode(scope))
    text = "{{ inputs.who }} {{ nodes.first[0] }} {{ index }} {{ item.x }} {{ execution.key }}"
    report = bench.report({"kind": "template", "template": text}, [{"x": 1}, {"x": 2}], first=5, scope=raw)
    assert bench.results(report) == ["Ada 7 5 1 e1:m:1:5:1", "Ada 7 6 2 e1:m:1:6:1"]
    report = bench.report({"kind": "select", "expression": "item.x"}, [{"x": [1]}, {}])
    assert bench.results(report) == [[1], None]
    assert report.failed == 0, "null is a result like others"


def test_a_large_scope_comes_by_reference(bench: Bench) -> None:
    scope = {"inputs": {"text": "x" * 100_000}, "nodes": {}, "execution": {}}
    ref = bench.blobs.put_bytes(step_call.encode(scope))
    each = {"kind": "select", "expression": "length(inputs.text)"}
    for _ in range(2):
        report = bench.report(each, [0], scope_ref=ref)
        assert bench.results(report) == [100_000]


def test_when_all_items_fail_there_is_no_part(bench: Bench) -> None:
    report = bench.report({"kind": "template", "template": "{{ item.x.y }}"}, [1, 2])
    assert (report.failed, report.results) == (2, None)
    assert [one.error.type for one in bench.failures(report)] == ["UndefinedError"] * 2


def test_a_failed_item_is_tried_again_behind_the_others_under_a_key_of_its_own(bench: Bench) -> None:
    each = python("better_the_second_time", retry={"attempts": 2, "backoff_seconds": 0.01})
    report = bench.report(each, ["a", "b"], first=8)
    assert report.failed == 0
    assert [line["key"] for line in bench.results(report)] == ["e1:m:1:8:2", "e1:m:1:9:2"]
    once = bench.report(python("better_the_second_time"), ["a"], first=8)
    assert once.failed == 1
    with_tries = bench.report(python("better_the_second_time"), ["a"], first=20, tries=1)
    assert with_tries.failed == 0, "the first try was made by a process that died"


def test_in_fail_mode_the_first_item_that_fails_for_good_ends_the_chunk(bench: Bench) -> None:
    report = bench.report(python("pick"), list(range(9)), fail_fast=True)
    assert (report.items, report.failed, report.first_failed) == (3, 1, 2)
    assert report.first_error is not None
    assert report.first_error.message == "bad item 2"


def test_after_its_time_a_chunk_hands_back_what_it_did_not_begin(bench: Bench) -> None:
    each = python("dawdle", arguments={"seconds": 0.05})
    report = bench.report(each, list(range(50)), stop_after_seconds=0.12)
    assert 1 <= report.items < 50
    assert bench.results(report) == list(range(report.items))
    assert bench.report(each, [4], stop_after_seconds=0.000_001).items == 1, "one item is always done"


@pytest.mark.parametrize("name", ["dawdle", "dawdle_later"])
def test_an_item_that_takes_too_long_fails_alone(bench: Bench, name: str) -> None:
    each = {**python(name), "timeout_seconds": 0.1}
    each["with"] = {"item": "${item.n}", "seconds": "${item.seconds}"}
    report = bench.report(each, [{"n": 1, "seconds": 0}, {"n": 2, "seconds": 30}, {"n": 3, "seconds": 0}])
    assert bench.results(report) == [1, None, 3]
    (late,) = bench.failures(report)
    assert (late.index, late.error.type) == (1, "TimeoutError")
    assert late.error.message.endswith(f"{name} took longer than 0.1 s")


def test_an_interrupted_chunk_ends_with_its_running_item(bench: Bench) -> None:
    each = python("dawdle", arguments={"seconds": 30})
    number = next(BATCHES) + 1  # the batch that report() runs next

    def interrupt() -> None:
        bench.worker.interrupt(number)

    timer = threading.Timer(0.1, interrupt)
    timer.start()
    report = bench.report(each, [1, 2, 3])
    timer.join()
    assert report.items == 1


def test_a_large_output_stands_in_the_part_as_a_marker(bench: Bench) -> None:
    each = python("huge", arguments={"size": ITEM_OUTPUT_BYTES_MAX + 1})
    each["with"].pop("item")
    report = bench.report(each, [0])
    (line,) = bench.results(report)
    ref = msgspec.convert(line["$blob"], BlobRef)
    assert msgspec.json.decode(bench.blobs.get_bytes(ref)) == "h" * (ITEM_OUTPUT_BYTES_MAX + 1)


def test_storage_that_is_away_is_no_fault_of_an_item(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file where the folder should be")
    outcome = bench.outcome(python("pick"), [1])
    assert outcome.output is None
    assert outcome.error is not None
    assert outcome.error.type == "Unavailable"
