"""Large values in Ray's object store: who reads one next does not touch the blob store."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import pytest
import ray

from actors.object_cache import VALUE_BYTES_MIN, HeldValues, ObjectCache
from actors.step_call import HeldValue, StepCall, StepOutcome, WorkerLimits
from actors.worker_pool import PoolSettings, WorkerPool
from runtime import values
from runtime.blob_store import BlobStore
from runtime.events import BlobRef, Json
from runtime.plan import Resources
from tests.actors.calls import VALUES, call

T = TypeVar("T")
MIB = 1024 * 1024
ROWS = 100_000


def _ref(data: bytes) -> BlobRef:
    return BlobRef(sha256=sha256(data).hexdigest(), size=len(data), media_type=values.BYTES)


def _call(function: str, resources: Resources | None = None, **arguments: Json) -> StepCall:
    return call(f"{VALUES}:{function}", arguments, resources=resources)


def _output(outcome: StepOutcome) -> Any:
    assert outcome.error is None, outcome.error
    return outcome.output


# --- what is held ---------------------------------------------------------------------------------------


def test_a_worker_holds_no_more_than_its_bound_and_what_is_newest() -> None:
    held = HeldValues(bytes_max=2 * MIB)
    data = [bytes([n]) * MIB for n in range(3)]
    for each in data:
        held.keep(_ref(each), each)
    assert held.end() == tuple(HeldValue(_ref(each).sha256, MIB) for each in data[1:])
    assert held.end() == ()  # it was told
    assert held.hand_over(_ref(data[0]).sha256) == b""
    assert held.find(_ref(data[1])) == data[1]
    assert held.hand_over(_ref(data[1]).sha256) == data[1]
    assert held.find(_ref(data[1])) is None


@pytest.mark.parametrize("size", [VALUE_BYTES_MIN - 1, MIB + 1])
def test_small_values_and_those_above_the_bound_are_not_held(size: int) -> None:
    held = HeldValues(bytes_max=MIB)
    copy = held.copy()
    assert copy is not None
    for start in range(0, size, 100_000):
        copy.write(b"x" * min(100_000, size - start))
    copy.keep(_ref(b"x" * size))
    assert held.end() == ()


class _Worker:
    """Hands over whatever it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.hand_over = self

    def options(self, **_: Any) -> "_Worker":
        return self

    def remote(self, name: str) -> str:
        self.asked.append(name)
        return f"object of {name[:4]}"


def test_a_host_lets_go_of_what_was_used_longest_ago() -> None:
    cache, worker = ObjectCache(bytes_max=2 * MIB), _Worker()
    refs = [_ref(bytes([n]) * MIB) for n in range(3)]

    def mentioned(*which: int) -> list[str]:
        calls = [_call("describe", value=values.marker(refs[n])) for n in which]
        return sorted(cache.mentioned(msgspec.json.encode(calls)))

    for ref in refs[:2]:
        cache.take([HeldValue(ref.sha256, ref.size)], worker)
    assert mentioned(0) == [refs[0].sha256]
    cache.take([HeldValue(refs[2].sha256, MIB)], worker)
    assert mentioned(0, 1, 2) == sorted([refs[0].sha256, refs[2].sha256])
    cache.take([HeldValue(refs[1].sha256, 3 * MIB)], worker)
    assert len(worker.asked) == 3  # too large: it is not even asked for
    assert mentioned() == []


# --- over Ray -------------------------------------------------------------------------------------------


def _in_pool(blobs: BlobStore, work: Callable[[WorkerPool], Awaitable[T]]) -> T:
    limits = WorkerLimits(grace_seconds=0.3, blob_url=blobs.url, object_cache_bytes_max=16 * MIB)

    async def main() -> T:
        pool = WorkerPool(PoolSettings(workers_max=1, limits=limits))
        try:
            return await work(pool)
        finally:
            await pool.close()

    return asyncio.run(main())


def _hide(blobs: BlobStore, ref: BlobRef) -> tuple[Path, Path]:
    """Take a blob out of its store; returns where it was, and where it is."""
    place = Path(blobs.url) / ref.sha256[:2] / ref.sha256[2:4] / ref.sha256
    aside = Path(blobs.url) / "aside"
    os.replace(place, aside)
    return place, aside


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_next_reader_needs_no_blob_store_and_a_lost_object_is_read_from_it(tmp_path: Path) -> None:
    blobs = BlobStore(str(tmp_path))

    async def work(pool: WorkerPool) -> None:
        marker = _output(await pool.run(_call("table", rows=ROWS)))
        ref = values.value_ref(marker)
        assert ref is not None
        place, aside = _hide(blobs, ref)
        # The worker that made it has handed it over, and holds it no longer.
        assert _output(await pool.run(_call("describe", value=marker)))["rows"] == ROWS
        cpu = Resources(cpus=0.5)
        assert _output(await pool.run(_call("describe", cpu, value=marker)))["rows"] == ROWS
        pool.objects.clear()
        outcome = await pool.run(_call("describe", value=marker))
        assert outcome.error is not None
        assert outcome.error.type == "NotFound"
        os.replace(aside, place)
        assert _output(await pool.run(_call("describe", value=marker)))["rows"] == ROWS
        _hide(blobs, ref)  # read once, it is at hand again
        assert _output(await pool.run(_call("describe", value=marker)))["rows"] == ROWS

        made_by_task = _output(await pool.run(_call("table", cpu, rows=ROWS + 1)))
        ref = values.value_ref(made_by_task)
        assert ref is not None
        _hide(blobs, ref)
        assert _output(await pool.run(_call("describe", value=made_by_task)))["rows"] == ROWS + 1

    _in_pool(blobs, work)


class _Opened:
    """Leaves a trace when somebody opens it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self._path,)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_object_that_is_not_these_very_bytes_is_refused_unopened(tmp_path: Path) -> None:
    data = b"x" * MIB
    ref = _ref(data)
    held = HeldValues(bytes_max=MIB)
    put = cast("Any", ray.put)
    for planted in (_Opened(str(tmp_path / "opened")), b"y" * MIB, [data]):
        held.begin({ref.sha256: put(planted)})
        assert held.find(ref) is None
    assert not (tmp_path / "opened").exists()
    held.begin({ref.sha256: put(data)})
    found = held.find(ref)
    assert found == data
    assert found is not None
    assert found.readonly
