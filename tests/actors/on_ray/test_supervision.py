"""Hosts as Ray actors: their deaths, their freezing, and who goes on with what they held."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import ray

from actors import adoption, host_link, supervision
from actors.client import ExecutionClient
from actors.host_config import HostConfig
from actors.ray_cluster import NAMESPACE
from actors.ray_settings import RaySettings
from actors.supervision import Supervisor
from runtime.blob_store import BlobStore
from runtime.errors import Unavailable
from runtime.event_log import Recorded
from tests.actors.household import Desk, Household, run, start_message, until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

READY_SECONDS = 60.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules with short bounds; the Ray of the suite is not ours to end."""
    monkeypatch.setattr(supervision, "RENEW_SECONDS", 1.0)
    monkeypatch.setattr(adoption, "SILENT_SECONDS", 1.0)
    monkeypatch.setattr(adoption, "RESTART_SECONDS", 1.0)
    monkeypatch.setattr(supervision, "INSPECT_SECONDS", 0.2)
    monkeypatch.setattr(host_link, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(host_link, "SILENCE_GRACE_SECONDS", 1.5)
    monkeypatch.setattr(supervision, "_shutdown_ray", lambda: None)


class _Supervisor(Supervisor):
    """Finds Ray running already."""

    def _start_ray(self) -> None:
        assert ray.is_initialized()

    def named(self, name: str) -> Any:
        return _handle(name)

    def host_names(self) -> list[str]:
        return [str(name) for name in self._roster.links]


class Cluster:
    """One store, its hosts in Ray, and a client."""

    def __init__(self, home: Household, hosts: int) -> None:
        self.home = home
        self.client = ExecutionClient(home.log, BlobStore(f"file://{home.folder}/blobs"))
        config = HostConfig(
            name="", store=home.env, blob_url=f"file://{home.folder}/blobs", egress_allow="127.0.0.1"
        )
        self.supervisor = _Supervisor(RaySettings(hosts=hosts), config, home.log, self.client)

    async def start(self, flow_id: str, **fields: Any) -> str:
        command = start_message(self.home, flow_id, **fields).command
        await self.client.start(command)
        return command.execution_id

    def follow(self, execution_id: str) -> "asyncio.Task[list[int]]":
        async def versions() -> list[int]:
            stream = self.client.follow(execution_id)
            return [item.originator_version async for item in stream if isinstance(item, Recorded)]

        return asyncio.ensure_future(versions())

    async def pid(self, name: str) -> int:
        return await self.supervisor.named(name).__ray_call__.remote(_pid)


def _handle(name: str) -> Any:
    # Ray's own types leave the class of the actor open.
    return cast("Any", ray).get_actor(name, namespace=NAMESPACE)


def _pid(_: object) -> int:
    return os.getpid()


@asynccontextmanager
async def cluster(folder: Path, hosts: int = 1) -> AsyncGenerator[tuple[Cluster, Household, Desk]]:
    async with Household(folder) as home, Desk() as desk:
        home.publish(
            f"{{heliograph: 1, id: work, nodes: [{{id: w, kind: http_request, url: '{desk.url}/work'}}]}}"
        )
        one = Cluster(home, hosts)
        ready = asyncio.Event()
        one.supervisor.open(ready.set)
        try:
            async with asyncio.timeout(READY_SECONDS):
                await ready.wait()
            yield one, home, desk
        finally:
            names = one.supervisor.host_names()
            await one.supervisor.close()
            for name in names:
                await asyncio.to_thread(_end, name)


def _end(name: str) -> None:
    try:
        ray.kill(_handle(name))
    except ValueError:
        return  # it has ended already


def test_a_killed_host_comes_back_and_its_executions_go_on(tmp_path: Path) -> None:
    async def story() -> None:
        async with cluster(tmp_path) as (one, home, desk):
            desk.hold("/work")
            ids = [await one.start("work") for _ in range(10)]
            await desk.asked("/work", 10)
            followers = [one.follow(execution_id) for execution_id in ids]
            os.kill(await one.pid("host-0"), signal.SIGKILL)
            await desk.asked("/work", 20)
            assert {len([r for r in desk.requests if r.key == f"{i}:w:1"]) for i in ids} == {2}
            desk.release("/work")
            for execution_id, follower in zip(ids, followers, strict=True):
                state = await home.ended(execution_id)
                assert state.status == "completed"
                assert await follower == list(range(1, state.version + 1))
                assert home.kinds(execution_id).count("recovered") == 1
            home.verified()

    run(story())


def test_a_host_that_ended_for_good_is_made_anew(tmp_path: Path) -> None:
    async def story() -> None:
        async with cluster(tmp_path) as (one, home, desk):
            desk.hold("/work")
            execution_id = await one.start("work")
            await desk.asked("/work")
            await asyncio.to_thread(_end, "host-0")
            await until(lambda: not one.supervisor.readiness().is_ready, "its end is noticed")
            await desk.asked("/work", 2)
            await until(lambda: one.supervisor.readiness().is_ready, "the new one answers")
            desk.release("/work")
            assert (await home.ended(execution_id)).status == "completed"
            await home.ended(await one.start("work"))
            home.verified()

    run(story())


def test_a_frozen_host_loses_its_executions_and_is_fenced_when_it_wakes_up(tmp_path: Path) -> None:
    async def story() -> None:
        async with cluster(tmp_path, hosts=2) as (one, home, desk):
            desk.hold("/work")
            ids = [await one.start("work") for _ in range(4)]
            await desk.asked("/work", 4)
            frozen = [i for i in ids if home.log.owner_of(i) == "host-0"]
            assert len(frozen) == 2
            followers = [one.follow(execution_id) for execution_id in ids]
            pid = await one.pid("host-0")
            os.kill(pid, signal.SIGSTOP)
            try:
                await desk.asked("/work", 6)
                assert {home.log.owner_of(i) for i in frozen} == {"host-1"}
            finally:
                os.kill(pid, signal.SIGCONT)
            await until(lambda: one.supervisor.readiness().is_ready, "it answers again")
            desk.release("/work")  # both answer: only the new owner's outcome counts
            for execution_id, follower in zip(ids, followers, strict=True):
                state = await home.ended(execution_id)
                assert state.status == "completed"
                assert await follower == list(range(1, state.version + 1))
            for execution_id in frozen:
                assert home.state(execution_id).owner.startswith("host-1/")
                assert home.kinds(execution_id).count("recovered") == 1
            home.verified()
            later = [await one.start("work") for _ in range(2)]
            for execution_id in later:
                assert (await home.ended(execution_id)).status == "completed"
            assert {home.log.owner_of(i) for i in later} == {"host-0", "host-1"}

    run(story())


def test_a_dedicated_host_survives_its_crash_and_ends_with_its_execution(tmp_path: Path) -> None:
    async def story() -> None:
        async with cluster(tmp_path) as (one, home, desk):
            desk.hold("/work")
            execution_id = await one.start("work", placement="dedicated")
            await desk.asked("/work")
            name = f"execution-{execution_id}"
            assert home.state(execution_id).owner.startswith(name)
            os.kill(await one.pid(name), signal.SIGKILL)
            await desk.asked("/work", 2)
            follower = one.follow(execution_id)
            process = psutil.Process(await one.pid(name))
            desk.release("/work")
            state = await home.ended(execution_id)
            assert await follower == list(range(1, state.version + 1))
            await until(lambda: not process.is_running(), "its process has ended")
            await until(lambda: name not in one.supervisor.host_names(), "its link is forgotten")
            home.verified()

    run(story())


def test_without_ray_the_client_says_unavailable(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish("{heliograph: 1, id: work, nodes: [{id: w, kind: template, template: x}]}")
            client = ExecutionClient(home.log, BlobStore(f"file://{home.folder}/blobs"))
            with pytest.raises(Unavailable):
                await client.start(start_message(home, "work").command)

    run(story())
