"""Tables, arrays, bytes and files between functions: markers outside, values inside, never a pickle."""

import io
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy
import pyarrow
import pytest

from actors import step_call, step_context
from actors.step_call import StepOutcome, WorkerLimits
from actors.step_worker import StepWorker
from runtime import datasets, values
from runtime.blob_store import BlobStore
from runtime.datasets import ItemFailure, Part
from runtime.events import BlobRef, Json, StepError
from runtime.expressions import compile_value
from tests.actors.calls import VALUES, call

pa: Any = pyarrow

NUMBERS = itertools.count(1)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(f"{tmp_path}/blobs")


@pytest.fixture
def worker(blobs: BlobStore) -> Iterator[StepWorker]:
    worker = StepWorker(step_call.encode(WorkerLimits()), own_process=False, blobs=blobs)
    try:
        yield worker
    finally:
        worker.close()


def run(worker: StepWorker, function: str, **arguments: Json) -> StepOutcome:
    given = call(function if ":" in function else f"{VALUES}:{function}", arguments)
    reply = step_call.decode_reply(worker.run(next(NUMBERS), step_call.encode([given])))
    return reply.outcomes[0]


def output(worker: StepWorker, function: str, **arguments: Json) -> Any:
    outcome = run(worker, function, **arguments)
    assert outcome.error is None, outcome.error
    return outcome.output


def ref_of(value: Json) -> BlobRef:
    ref = values.value_ref(value)
    assert ref is not None, value
    return ref


def failure(outcome: StepOutcome) -> StepError:
    assert outcome.error is not None, outcome
    return outcome.error


@pytest.mark.parametrize(
    ("function", "arguments", "media_type", "arrives"),
    [
        (
            "table",
            {"rows": 3},
            "application/vnd.apache.arrow.stream",
            {"type": "pyarrow.Table", "rows": 3, "columns": ["id", "square"]},
        ),
        (
            "frame",
            {"rows": 4},
            "application/vnd.apache.arrow.stream",
            {"type": "pyarrow.Table", "rows": 4, "columns": ["id"]},
        ),
        (
            "batches",
            {"count": 5, "rows": 100},
            "application/vnd.apache.arrow.stream",
            {"type": "pyarrow.Table", "rows": 500, "columns": ["id"]},
        ),
        (
            "array",
            {"size": 6},
            "application/x-npy",
            {"type": "numpy.ndarray", "shape": [3, 2], "sum": 16.0},
        ),
        (
            "some_bytes",
            {"size": 512},
            "application/octet-stream",
            {"type": "builtins.bytes", "size": 512, "start": "000102"},
        ),
    ],
)
def test_a_value_travels_as_a_marker_and_arrives_as_it_was(
    worker: StepWorker,
    blobs: BlobStore,
    function: str,
    arguments: dict[str, Json],
    media_type: str,
    arrives: dict[str, Any],
) -> None:
    marker = output(worker, function, **arguments)
    ref = ref_of(marker)
    assert ref.media_type == media_type
    assert blobs.exists(ref)
    assert output(worker, "describe", value=marker) == arrives


def test_a_file_arrives_as_a_copy_that_ends_with_the_call(
    worker: StepWorker, blobs: BlobStore, tmp_path: Path
) -> None:
    marker = output(worker, "file", folder=str(tmp_path), text="a,b\n1,2\n")
    assert ref_of(marker).media_type == "text/csv"
    assert blobs.get_bytes(ref_of(marker)) == b"a,b\n1,2\n"
    told = output(worker, "describe", value=marker)
    assert not os.path.exists(told.pop("path"))
    assert told == {"type": "actors.File", "text": "a,b\n1,2\n", "media_type": "text/csv", "same": True}


def test_a_value_inside_a_result_is_stored_and_decoded_where_it_stands(worker: StepWorker) -> None:
    nested = output(worker, "nested")
    assert nested.pop("tables") == [{"$blob": msgspec.to_builtins(ref_of(output(worker, "table", rows=2)))}]
    assert nested == {"mean": 0.5, "count": 3, "done": True}
    told = output(worker, "describe_first", values={"tables": [output(worker, "table", rows=2)]})
    assert told["rows"] == 2


def test_what_cannot_be_stored_is_named_and_nothing_is_pickled(worker: StepWorker) -> None:
    error = failure(run(worker, "objects"))
    assert (error.type, "without pickling" in error.message) == ("NotStorable", True)
    assert "no-such-file.csv can't be read" in failure(run(worker, "absent_file")).message
    error = failure(run(worker, "nested_unknown"))
    assert error.message.startswith("result.lock[0] is a object, which JSON can't express")


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("opened-a-pickle",)


def test_a_stored_pickle_is_never_opened(
    worker: StepWorker, blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = io.BytesIO()
    numpy.save(evil, numpy.array([_Evil()], dtype=object), allow_pickle=True)
    for content in (evil.getvalue(), pickle.dumps(_Evil())):
        for media_type in (values.NUMPY_ARRAY, values.ARROW_STREAM):
            marker = values.marker(blobs.put_bytes(content, media_type))
            assert failure(run(worker, "describe", value=marker)).type
    assert not (tmp_path / "opened-a-pickle").exists()


def test_an_argument_above_the_bound_is_refused_before_it_is_read(worker: StepWorker) -> None:
    ref = BlobRef(sha256="0" * 64, size=2 * 1024**3, media_type=values.BYTES)
    message = failure(run(worker, "describe", value=values.marker(ref))).message
    assert message == "an argument has 2147483648 bytes; at most 1073741824 are loaded"


def test_a_lost_value_is_said_so_before_the_function_begins(worker: StepWorker) -> None:
    ref = BlobRef(sha256="0" * 64, size=3, media_type=values.BYTES)
    outcome = run(worker, "describe", value=values.marker(ref))
    assert (failure(outcome).type, outcome.started) == ("NotFound", False)


def test_a_marker_stays_a_marker_in_expressions() -> None:
    marker = values.marker(BlobRef(sha256="0" * 64, size=3, media_type=values.BYTES))
    value = compile_value({"table": "${nodes.a}", "type": '${nodes.a."$blob".media_type}'})
    assert value.evaluate({"nodes": {"a": marker}}) == {"table": marker, "type": values.BYTES}


_TOLD = {"sha256": "0" * 64, "size": 1, "media_type": "text/csv"}


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        {},
        {"$blob": 1},
        {"$blob": _TOLD, "b": 2},
        {"$blob": _TOLD | {"sha256": "../../etc"}},
        {"$blob": _TOLD | {"size": -1}},
        {"$blob": _TOLD | {"media_type": "text/csv\r\nSet-Cookie: a=b"}},
        {"$blob": _TOLD | {"media_type": "text/csv; a=ä"}},
        {"$blob": _TOLD | {"media_type": "csv"}},
    ],
)
def test_what_only_looks_like_a_marker_is_plain_json(worker: StepWorker, value: Json) -> None:
    assert values.value_ref(value) is None
    if isinstance(value, dict):
        assert output(worker, "describe", value=value)["value"] == value


def test_the_media_type_of_a_file_must_be_known() -> None:
    assert step_context.File("a.parquet.gz", "application/x-own").media_type == "application/x-own"
    with pytest.raises(ValueError, match="give its media_type"):
        step_context.File("a.unknown-suffix")
    with pytest.raises(ValueError, match="is not a media type"):
        step_context.File("a.csv", "text/csv\n")


def test_workers_load_no_library_of_tables_before_they_need_one() -> None:
    heavy = "{'numpy', 'pandas', 'pyarrow', 'fsspec'}"
    code = f"import sys, actors.step_worker; print(sorted({heavy} & set(sys.modules)))"
    root = Path(step_context.__file__).parents[1]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60)
    assert ran.stdout.strip() == "[]", ran.stderr


# --- data sets ----------------------------------------------------------------------------------------


def _dataset(blobs: BlobStore, *parts: list[Any]) -> Json:
    made: list[Part] = []
    first = 0
    for items in parts:
        failed = [first + at for at, item in enumerate(items) if item is None]
        errors = [ItemFailure(index=at, error=StepError(type="ValueError", message="no")) for at in failed]
        made.append(
            Part(
                first=first,
                items=len(items),
                failed=len(failed),
                ref=datasets.write_lines(blobs, map(msgspec.json.encode, items)),
                errors=datasets.write_failures(blobs, errors) if errors else None,
            )
        )
        first += len(items)
    return datasets.dataset_value(datasets.write_dataset(blobs, made))


def test_a_function_reads_a_data_set_item_by_item(worker: StepWorker, blobs: BlobStore) -> None:
    value = _dataset(blobs, [1, None], ["c"])
    told = output(worker, "read_dataset", value=value, how="items")
    assert told == {"items": [1, None, "c"], "again": 3, "length": 3, "failures": [[1, "ValueError"]]}


def test_a_data_set_is_a_table_with_a_row_for_each_item(worker: StepWorker, blobs: BlobStore) -> None:
    value = _dataset(blobs, [{"n": 1}, None], [{"n": 2.5, "more": "x"}])
    told = output(worker, "read_dataset", value=value, how="arrow")
    assert told["items"] == [{"n": 1, "more": None}, {"n": None, "more": None}, {"n": 2.5, "more": "x"}]
    assert output(worker, "read_dataset", value=value, how="pandas") == {"mean": 1.75, "rows": 3}
    assert output(worker, "read_dataset", value=_dataset(blobs, [1, 2]), how="arrow")["columns"] == ["value"]
    mixed = _dataset(blobs, [{"n": 1}, {"n": "one"}])
    assert "do not fit one table" in failure(run(worker, "read_dataset", value=mixed, how="arrow")).message


def test_the_documented_functions_run(
    worker: StepWorker, blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(step_context.__file__).parents[1] / "docs" / "flows.md").read_text()
    (tmp_path / "documented_values.py").write_text(text.partition("```py\n")[2].partition("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    orders = _dataset(blobs, [{"price": 5}, {"price": 10}])
    table = output(worker, "documented_values:priced", orders=orders)
    made = output(worker, "documented_values:report", table=table)
    assert ref_of(made).media_type == "text/csv"
    assert blobs.get_bytes(ref_of(made)) == b"5,1.0\n10,2.0\n"
