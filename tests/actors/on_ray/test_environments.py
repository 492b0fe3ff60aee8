"""Code of flows on workers: modules of one name, versions of one requirement, each for itself."""

from __future__ import annotations

import asyncio
import importlib.util
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from actors.environment_pools import EnvironmentPools
from actors.environments import EnvironmentFailed, Environments
from actors.step_call import StepCall, StepOutcome, WorkerLimits
from actors.worker_pool import PoolSettings
from runtime.blob_store import BlobStore
from runtime.errors import Overloaded
from runtime.packages import MEDIA_TYPE, Code, build_package
from runtime.placement import Resources
from tests.actors.calls import call

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

T = TypeVar("T")
SETTINGS = PoolSettings(workers_max=1, limits=WorkerLimits(grace_seconds=0.3))
MODULE = """
import sys
from importlib.metadata import version

import salutation

def greet(who):
    return [salutation.greet(who), version("salutation"), {mark!r}]
"""


def make_wheel(folder: Path, version: str) -> None:
    """A distribution `salutation` whose one function tells its version."""
    info = f"salutation-{version}.dist-info"
    files = {
        "salutation.py": f"def greet(who):\n    return 'version {version} greets ' + who\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: salutation\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"salutation-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that pip finds its wheels in, and nowhere else."""
    folder = tmp_path_factory.mktemp("wheels")
    for version in ("1.0", "2.0"):
        make_wheel(folder, version)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> BlobStore:
    return BlobStore(f"file://{tmp_path_factory.mktemp('blobs')}")


def in_pools(blobs: BlobStore, work: Callable[[EnvironmentPools], Awaitable[T]]) -> T:
    async def main() -> T:
        pools = EnvironmentPools(SETTINGS, Environments(blobs))
        try:
            async with asyncio.timeout(120):
                return await work(pools)
        finally:
            await pools.close()

    return asyncio.run(main())


def code(blobs: BlobStore, mark: str, version: str) -> Code:
    package = build_package({"shop/__init__.py": b"", "shop/hello.py": MODULE.format(mark=mark).encode()})
    stored = blobs.put_bytes(package, MEDIA_TYPE)
    return Code(package=stored.sha256, requirements=(f"salutation=={version}",))


def test_two_flows_with_modules_of_one_name_and_versions_of_one_requirement_run_side_by_side(
    blobs: BlobStore, wheels: Path
) -> None:
    one, other = code(blobs, "first", "1.0"), code(blobs, "second", "2.0")

    async def work(pools: EnvironmentPools) -> list[StepOutcome]:
        ada = {"who": "Ada"}
        return list(
            await asyncio.gather(
                pools.run(call("shop.hello:greet", ada, code=one)),
                pools.run(call("shop.hello:greet", ada, code=other)),
                pools.run(call("shop.hello:greet", ada, code=one, resources=Resources(cpus=0.5))),
                pools.run(call("shop.hello:greet", ada)),
                pools.run(call("echo", {"value": 1})),
                pools.run(call("echo", {"value": 2}, code=one)),
            )
        )

    first, second, task, without, plain, both = in_pools(blobs, work)
    assert first.output == ["version 1.0 greets Ada", "1.0", "first"], first.error
    assert second.output == ["version 2.0 greets Ada", "2.0", "second"], second.error
    assert task.output == first.output, task.error
    assert without.error is not None
    assert without.error.type == "ModuleNotFoundError"
    assert (plain.output, both.output) == (1, 2)
    # The host's own process, which installed both, has neither.
    assert importlib.util.find_spec("salutation") is None


def test_an_environment_that_can_not_be_made_fails_its_own_steps_and_says_why(
    blobs: BlobStore, wheels: Path
) -> None:
    unknown = Code(requirements=("salutation==3.0",))
    lost = Code(package="0" * 64)

    async def work(pools: EnvironmentPools) -> list[StepOutcome]:
        return list(
            await asyncio.gather(
                pools.run(call("shop.hello:greet", code=unknown)),
                pools.run(call("shop.hello:greet", code=unknown, resources=Resources(cpus=1))),
                pools.run(call("shop.hello:greet", code=lost)),
                pools.run(call("echo", {"value": 1})),
            )
        )

    pooled, task, package, plain = in_pools(blobs, work)
    for failed in (pooled, task, package):
        assert failed.error is not None
        assert failed.error.type == "EnvironmentFailed"
    assert pooled.error is not None
    assert "No matching distribution found for salutation==3.0" in pooled.error.message
    assert package.error is not None
    assert "no blob 000000" in package.error.message
    assert plain.output == 1


def test_an_installation_that_hangs_is_ended(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        environments = Environments(blobs)
        with pytest.raises(EnvironmentFailed, match=r"took longer than 0\.01 s"):
            await environments.runtime_env(Code(requirements=("salutation==1.0",)))
        await environments.close()

    monkeypatch.setattr("actors.environments.INSTALL_SECONDS_MAX", 0.01)
    asyncio.run(work())


class Slow:
    """A pool whose calls last until they are let go."""

    let_go: asyncio.Event
    closed = 0
    objects = None

    def __init__(self, *_: Any, **__: Any) -> None: ...

    async def run(self, call: StepCall, _: Any) -> StepOutcome:
        await self.let_go.wait()
        return StepOutcome(output=call.node_id, started=True)

    async def close(self) -> None:
        Slow.closed += 1


def test_an_idle_environment_makes_room_for_another_and_a_busy_one_does_not(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (Code(requirements=(f"salutation=={version}",)) for version in ("1.0", "2.0"))

    async def work() -> None:
        Slow.let_go = asyncio.Event()
        pools = EnvironmentPools(SETTINGS, Environments(blobs))
        busy = asyncio.ensure_future(pools.run(call("f", code=one)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="functions of 1 environments are at work"):
            await pools.run(call("f", code=other))
        Slow.let_go.set()
        await busy
        await pools.run(call("f", code=other))
        assert pools.environments == (other.environment,)
        await pools.close()
        assert Slow.closed == 3  # the two, and that of the flows without code

    monkeypatch.setattr("actors.environment_pools.WorkerPool", Slow)
    monkeypatch.setattr("actors.environment_pools.ENVIRONMENTS_MAX", 1)
    asyncio.run(work())
