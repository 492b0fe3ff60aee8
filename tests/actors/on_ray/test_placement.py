"""Steps with declared resources on several nodes: fake GPUs, labels, and a node that joins late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.experimental import internal_kv

from actors import adoption, cluster_view, supervision
from actors.client import ExecutionClient
from actors.environment_pools import EnvironmentPools
from actors.environments import Environments
from actors.host_config import HostConfig
from actors.ray_settings import RaySettings
from actors.step_call import StepOutcome, WorkerLimits
from actors.supervision import Supervisor
from actors.worker_pool import PoolSettings, WorkerPool
from runtime import events
from runtime.blob_store import BlobStore
from runtime.errors import Overloaded
from runtime.packages import MEDIA_TYPE, Code, build_package
from runtime.placement import Resources
from tests.actors.calls import call
from tests.actors.household import Desk, Household, cancel, run, start, start_message, until

pytestmark = [pytest.mark.ray, pytest.mark.slow]

T = TypeVar("T")
OBJECT_STORE_BYTES = 78 * 1024 * 1024
SETTINGS = PoolSettings(workers_max=1, tasks_max=2, limits=WorkerLimits(grace_seconds=0.3))


@pytest.fixture(scope="module")
def cluster(ray_cluster: str) -> Iterator[Cluster]:
    """The suite's Ray as the head of Ray's test cluster; what a test adds to it ends with the module."""
    cluster: Any = Cluster(initialize_head=False, shutdown_at_exit=False)
    cluster.head_node = ray._private.worker._global_node  # pyright: ignore
    cluster.redis_address = cluster.head_node.redis_address
    added: list[Any] = []

    def add_node(**options: Any) -> Any:
        node: Any = cast(Any, Cluster).add_node(
            cluster, wait=False, object_store_memory=OBJECT_STORE_BYTES, **options
        )
        added.append(node)
        return node

    def remove_node(node: Any) -> None:
        added.remove(node)
        node.kill_all_processes(check_alive=False, allow_graceful=True, wait=True)

    cluster.add_node, cluster.remove_node = add_node, remove_node
    yield cluster
    for node in tuple(added):
        remove_node(node)


@pytest.fixture(autouse=True)
def without_autoscaler(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the suite's Ray can start nothing, and says so only every five seconds."""

    def nothing(_report: bytes | None, _now: float) -> None: ...

    monkeypatch.setattr(cluster_view, "refused_by_report", nothing)


def in_pool(work: Callable[[WorkerPool], Awaitable[T]]) -> T:
    async def main() -> T:
        pool = WorkerPool(SETTINGS)
        try:
            async with asyncio.timeout(60):
                return await work(pool)
        finally:
            await pool.close()

    return asyncio.run(main())


def free(resource: str) -> float:
    return float(ray.available_resources().get(resource, 0))


class Told:
    """What a step was told about its place."""

    def __init__(self) -> None:
        self.all: list[tuple[str, ...]] = []
        self._news = asyncio.Event()

    def __call__(self, missing: tuple[str, ...] | None) -> None:
        self.all.append(missing or ())
        self._news.set()

    async def first(self) -> tuple[str, ...]:
        await self._news.wait()
        return self.all[0]


def test_a_step_that_no_node_can_hold_says_what_is_missing_and_starts_when_one_joins(cluster: Any) -> None:
    wanted = Resources(gpus=2, labels={"zone": "attic"}, label_fallbacks=({"zone": "in(cellar, loft)"},))

    async def work(pool: WorkerPool) -> tuple[StepOutcome, list[tuple[str, ...]], int]:
        told = Told()
        running = asyncio.ensure_future(pool.run(call("where_am_i", resources=wanted), told))
        await told.first()
        waiting = pool.unplaceable
        await asyncio.to_thread(cluster.add_node, num_cpus=1, num_gpus=2, labels={"zone": "cellar"})
        return await running, told.all, waiting

    outcome, told, waiting = in_pool(work)
    assert waiting == 1
    assert told[0] == (
        "a node labelled zone=attic: there is none",
        "a node labelled zone=in(cellar, loft): there is none",
    )
    assert not any(told[1:])
    assert outcome.output["gpus"] == "0,1"
    assert outcome.output["labels"]["zone"] == "cellar"


def test_the_end_of_another_cluster_in_this_process_hides_no_node(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(internal_kv, "global_gcs_client", None)  # as Ray's Cluster.shutdown leaves it
    assert cluster_view.look().nodes


def test_parts_of_a_gpu_are_shared_and_busy_is_not_missing(cluster: Any) -> None:
    part = Resources(gpus=0.5, labels={"zone": "shared"})

    async def work(pool: WorkerPool) -> tuple[list[Any], list[tuple[str, ...]]]:
        told = Told()
        await until(lambda: free("shared") == 1, "the node has joined")
        # Two fit at a time: the third waits, and nothing is missing.
        other = WorkerPool(SETTINGS)
        runs = [pool.run(call("where_am_i", {"seconds": 0.2}, resources=part), told) for _ in range(2)]
        outcomes = await asyncio.gather(*runs, other.run(call("where_am_i", resources=part), told))
        await other.close()
        assert [outcome.error for outcome in outcomes] == [None] * 3
        return [outcome.output["gpus"] for outcome in outcomes], told.all

    cluster.add_node(num_cpus=1, num_gpus=1, resources={"shared": 1}, labels={"zone": "shared"})
    gpus, told = in_pool(work)
    assert gpus == ["0"] * 3
    assert not any(told)


def test_steps_that_can_not_be_placed_use_up_nobody_elses_turn(cluster: Any) -> None:
    nowhere = Resources(custom={"no_such_thing": 1})

    async def work(pool: WorkerPool) -> Any:
        told = [Told(), Told()]
        lost = [asyncio.ensure_future(pool.run(call("where_am_i", resources=nowhere), one)) for one in told]
        for one in told:
            assert await one.first() == ("1 no_such_thing: no node has any",)
        with pytest.raises(Overloaded, match="can't be placed"):
            await pool.run(call("where_am_i", resources=nowhere))
        outcome = await pool.run(call("where_am_i", resources=Resources(cpus=1)))
        for one in lost:
            one.cancel()
        await asyncio.gather(*lost, return_exceptions=True)
        return outcome.output

    assert in_pool(work)["gpus"] == ""


def test_a_package_travels_to_the_machine_that_runs_it(cluster: Any, tmp_path: Path) -> None:
    blobs = BlobStore(f"file://{tmp_path}")
    package = blobs.put_bytes(
        build_package({"far.py": b"from tests.actors.sample_steps import *\n"}), MEDIA_TYPE
    )
    step = call(
        "far:where_am_i",
        code=Code(package=package.sha256),
        resources=Resources(cpus=1, labels={"zone": "abroad"}),
    )

    async def work() -> StepOutcome:
        pools = EnvironmentPools(SETTINGS, Environments(blobs))
        try:
            async with asyncio.timeout(60):
                return await pools.run(step)
        finally:
            await pools.close()

    cluster.add_node(num_cpus=1, labels={"zone": "abroad"})
    outcome = asyncio.run(work())
    assert outcome.error is None
    assert outcome.output["labels"]["zone"] == "abroad"


# --- executions ---------------------------------------------------------------------------------------

LATE = """
heliograph: 1
id: late
nodes:
  - id: trained
    kind: map
    over: "`[1, 2, 3]`"
    each:
      kind: python
      function: tests.actors.sample_steps:echo
      with: {value: "${item}"}
      resources: {custom: {tape: 1}}
"""


def told(home: Household, execution_id: str) -> list[tuple[str, Any]]:
    """What was recorded about places."""
    history = home.history(execution_id)
    return [(event.event, event.detail) for event in history if isinstance(event, events.NodeLogged)]


def test_an_execution_records_what_is_missing_once_for_all_its_items(cluster: Any, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Household(tmp_path) as home:
            host = home.host()
            execution_id = await start(home, host, home.publish(LATE))
            await home.recorded(execution_id, "node_logged")
            missing = "1 tape: no node has any"
            assert home.node(execution_id, "trained").missing == (missing,)
            await asyncio.to_thread(cluster.add_node, num_cpus=1, resources={"tape": 1})
            state = await home.ended(execution_id)
            assert state.output == {"results": [1, 2, 3], "errors": []}
            (first, *_) = recorded = told(home, execution_id)
            assert first == ("unschedulable", {"missing": [missing]})
            assert recorded[1:] == [("schedulable", None)]
            home.verified()

    run(scenario())


def test_a_host_that_takes_over_repeats_no_report_and_a_cancellation_leaves_none(
    cluster: Any, tmp_path: Path
) -> None:
    flow = LATE.replace("tape", "robot")

    async def scenario() -> None:
        async with Household(tmp_path) as home:
            host = home.host()
            execution_id = await start(home, host, home.publish(flow))
            await home.recorded(execution_id, "node_logged")
            await host.die()
            heir = home.host()
            await heir.status()
            await home.recorded(execution_id, "recovered")
            await cancel(heir, execution_id)
            state = await home.ended(execution_id)
            assert state.status == "cancelled"
            assert [event for event, _ in told(home, execution_id)] == ["unschedulable"]
            home.verified()

    run(scenario())


def test_an_execution_that_can_not_be_placed_keeps_no_other_from_beginning(
    cluster: Any, tmp_path: Path
) -> None:
    plain = "{heliograph: 1, id: plain, nodes: [{id: a, kind: template, template: done}]}"

    async def scenario() -> None:
        async with Household(tmp_path) as home:
            host = home.host(running_max=1)
            waiting = await start(home, host, home.publish(LATE.replace("tape", "cow")))
            await home.recorded(waiting, "node_logged")
            assert (await home.ended(await start(home, host, home.publish(plain)))).output == "done"
            await asyncio.to_thread(cluster.add_node, num_cpus=1, resources={"cow": 1})
            await home.recorded(waiting, "node_logged", 2)
            assert (await home.ended(waiting)).status == "completed"
            await until(lambda: host.places_taken() == 0, "its place is free")
            home.verified()

    run(scenario())


# --- dedicated hosts ----------------------------------------------------------------------------------

DEDICATED = """
heliograph: 1
id: {flow}
placement: dedicated
resources: {resources}
nodes:
  - {{id: ask, kind: http_request, url: "{url}/{flow}"}}
  - {{id: where, kind: python, function: tests.actors.sample_steps:where_am_i, needs: [ask]}}
"""


class OwnRay(Supervisor):
    """Finds Ray running already."""

    def _start_ray(self) -> None:
        assert ray.is_initialized()

    async def end(self) -> None:
        """With all hosts, which would otherwise live as long as the Ray of the suite."""
        handles: list[Any] = list(self._roster.handles.values())
        await self.close()
        for handle in handles:
            await asyncio.to_thread(cast(Any, ray).kill, handle)


class Town(Household):
    """A log, a supervisor with one pooled host, a client and a desk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        blobs = f"file://{folder}/blobs"
        self.client = ExecutionClient(self.log, BlobStore(blobs))
        config = HostConfig(name="", store=self.env, blob_url=blobs, egress_allow="127.0.0.1")
        self.supervisor = OwnRay(RaySettings(hosts=1), config, self.log, self.client)
        self.desk = Desk()

    async def begin(self, flow: str, resources: str) -> str:
        """Start an execution of a dedicated flow that asks the desk first, and then says where it is."""
        self.publish(DEDICATED.format(flow=flow, resources=resources, url=self.desk.url))
        command = start_message(self, flow, placement="dedicated").command
        await self.client.start(command)
        return command.execution_id


@asynccontextmanager
async def town(folder: Path) -> AsyncGenerator[Town]:
    async with Town(folder) as home, home.desk:
        ready = asyncio.Event()
        home.supervisor.open(ready.set)
        async with asyncio.timeout(60):
            await ready.wait()
        try:
            yield home
        finally:
            await home.supervisor.end()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules with short bounds; the Ray of the suite is not ours to end."""
    monkeypatch.setattr(supervision, "INSPECT_SECONDS", 0.2)
    monkeypatch.setattr(supervision, "RENEW_SECONDS", 1.0)
    monkeypatch.setattr(adoption, "DEDICATED_SECONDS", 20.0)
    monkeypatch.setattr(supervision, "_shutdown_ray", lambda: None)


@pytest.mark.usefixtures("quick")
def test_a_dedicated_host_holds_its_flows_resources_until_its_execution_ends(
    cluster: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with town(tmp_path) as home:
            await asyncio.to_thread(
                cluster.add_node, num_cpus=1, num_gpus=2, resources={"oven": 2}, labels={"zone": "kitchen"}
            )
            await until(lambda: free("oven") == 2, "the node has joined")
            home.desk.hold("/bake")
            execution_id = await home.begin("bake", "{gpus: 1, custom: {oven: 2}, labels: {zone: kitchen}}")
            await home.desk.asked("/bake")
            assert home.state(execution_id).owner.startswith(f"execution-{execution_id}/")
            await until(lambda: free("oven") == 0, "the host holds what its flow declares")
            home.desk.release("/bake")
            output = (await home.ended(execution_id)).output
            assert output["gpus"] in ("0", "1")
            assert output["labels"]["zone"] == "kitchen"
            await until(lambda: free("oven") == 2, "they are given back")
            home.verified()

    run(scenario())


@pytest.mark.usefixtures("quick")
def test_a_dedicated_flow_without_room_is_accepted_at_once_and_says_what_is_missing(
    cluster: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with town(tmp_path) as home:
            execution_id = await home.begin("lift", "{custom: {crane: 1}}")
            await home.recorded(execution_id, "node_logged")
            assert home.state(execution_id).owner.startswith("host-0/")
            assert home.node(execution_id, "where").missing == ("1 crane: no node has any",)
            other = await home.begin("walk", "{cpus: 0.5}")
            assert (await home.ended(other)).status == "completed"
            await asyncio.to_thread(cluster.add_node, num_cpus=1, resources={"crane": 1})
            state = await home.ended(execution_id)
            assert (state.status, state.error) == ("completed", None)
            home.verified()

    run(scenario())


@pytest.mark.usefixtures("quick")
def test_a_dedicated_host_comes_back_on_another_node_when_its_own_is_lost(
    cluster: Any, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with town(tmp_path) as home:
            node = await asyncio.to_thread(cluster.add_node, num_cpus=1, resources={"raft": 1})
            await until(lambda: free("raft") == 1, "the node has joined")
            home.desk.hold("/sail")
            execution_id = await home.begin("sail", "{custom: {raft: 1}}")
            await home.desk.asked("/sail")
            await asyncio.to_thread(cluster.add_node, num_cpus=1, resources={"raft": 1})
            await asyncio.to_thread(cluster.remove_node, node)
            await home.desk.asked("/sail", 2)
            assert home.state(execution_id).owner.startswith(f"execution-{execution_id}/")
            home.desk.release("/sail")
            assert (await home.ended(execution_id)).status == "completed"
            assert home.kinds(execution_id).count("recovered") == 1
            home.verified()

    run(scenario())
