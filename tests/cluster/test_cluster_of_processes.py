"""`heliograph serve --address` on a cluster of processes, with PostgreSQL and an object store that speaks S3:
the same flows, waiting work that brings nodes up, and a head that is lost."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, cast

import boto3
import httpx
import psutil
import pytest
import yaml
from moto.server import ThreadedMotoServer

from runtime.event_log import EventLog, store_env
from tests.cluster.ray_processes import RayProcesses
from tests.contracts.live_server import LiveServer, poll
from tests.sandbox import REPOSITORY, Sandbox

pytestmark = [pytest.mark.ray, pytest.mark.postgres, pytest.mark.slow, pytest.mark.acceptance]

BUCKET = "heliograph-test"
PAUSES = 60
PAUSE_SECONDS = 0.2
PAGE_LETTERS = 100_000
WAIT_SECONDS = 60.0

SPECIAL: dict[str, Any] = {
    "heliograph": 1,
    "id": "special",
    "nodes": [
        {
            "id": "page",
            "kind": "python",
            "function": "tests.cluster.steps:page",
            "with": {"letters": 3},
            "resources": {"cpus": 1, "custom": {"special": 1}},
        }
    ],
}
TICKING: dict[str, Any] = {
    "heliograph": 1,
    "id": "ticking",
    "nodes": [
        *(
            {
                "id": f"pause_{number}",
                "kind": "sleep",
                "seconds": PAUSE_SECONDS,
                "needs": [f"pause_{number - 1}"] if number else [],
            }
            for number in range(PAUSES)
        ),
        {
            "id": "page",
            "kind": "python",
            "function": "tests.cluster.steps:page",
            "with": {"letters": 3},
            "needs": [f"pause_{PAUSES - 1}"],
            # No worker process can be placed while there is no head.
            "retry": {"attempts": 20, "backoff_seconds": 1, "backoff_factor": 1},
        },
    ],
}
PAGE: dict[str, Any] = {
    "heliograph": 1,
    "id": "page",
    "nodes": [
        {
            "id": "page",
            "kind": "python",
            "function": "tests.cluster.steps:page",
            "with": {"letters": PAGE_LETTERS},
        }
    ],
}


class ClusterServer(LiveServer):
    """A gateway of the cluster; its store is PostgreSQL, so it is looked at through HTTP and the log."""

    def __init__(self, cluster: RayProcesses, nodes: Any, store: str, sandbox: Sandbox) -> None:
        super().__init__(
            sandbox.root / "gateway",
            ray_address=cluster.address,
            store=store,
            blobs=f"s3://{BUCKET}/heliograph",
            hosts="1",
            shutdown_seconds="2",
        )
        self.cluster = cluster
        self.store_url = store
        self.environment = {**cluster.environment, **nodes}

    def _log(self) -> EventLog:
        return EventLog.open(store_env(self.store_url))

    def events(self, execution_id: str) -> list[str]:
        log = self._log()
        try:
            return [recorded.topic for recorded in log.read(execution_id)]
        finally:
            log.close()


@pytest.fixture(scope="module")
def object_store() -> Iterator[dict[str, str]]:
    """A server that speaks S3, with one bucket; the environment that reaches it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
    }
    s3(environment).create_bucket(Bucket=BUCKET)
    try:
        yield environment
    finally:
        server.stop()


def s3(environment: dict[str, str]) -> Any:
    make: Any = cast("Any", boto3).client
    return make(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )


@pytest.fixture(scope="module")
def server(
    sandbox: Sandbox, module_postgres_url: str, object_store: dict[str, str]
) -> Iterator[ClusterServer]:
    """A head without CPUs, one node of two, a gateway beside them."""
    types = {"special": {"resources": {"CPU": 1, "special": 1}, "node_config": {}, "max_workers": 1}}
    everywhere = {**object_store, "PYTHONPATH": str(REPOSITORY)}
    cluster = RayProcesses(sandbox.root / "cl", types, everywhere)
    server = ClusterServer(cluster, everywhere, module_postgres_url, sandbox)
    try:
        cluster.start_head()
        cluster.start_node("worker", cpus=2)
        server.start()
        server.publish(SPECIAL, TICKING, PAGE, *map(example, ("hello", "fanout")))
        yield server
    finally:
        server.close()
        cluster.close()
        shutil.rmtree(server.folder, ignore_errors=True)
        shutil.rmtree(sandbox.root / "cl", ignore_errors=True)


def example(name: str) -> dict[str, Any]:
    return cast("dict[str, Any]", yaml.safe_load((REPOSITORY / "flows" / f"{name}.yaml").read_text()))


def start(client: httpx.Client, flow: str, **inputs: Any) -> str:
    response = client.post(f"/v1/executions/{flow}/async", json={"input_data": inputs})
    assert response.status_code == 202, response.text
    return str(response.json()["execution_id"])


def result(client: httpx.Client, execution_id: str) -> Any:
    """Its final output, once it has completed."""
    terminal = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}

    def has_ended(body: dict[str, Any]) -> bool:
        return body["status"] in terminal

    body = poll(client, f"/v1/executions/{execution_id}", has_ended)
    assert body["status"] == "COMPLETED", body
    return body["final_output"]


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"{what}, after {WAIT_SECONDS:g} s"
        time.sleep(0.1)


def raylets(server: ClusterServer) -> int:
    folder = str(server.folder.parent / "cl")
    found = 0
    for process in psutil.process_iter(["name"]):
        with suppress(psutil.NoSuchProcess):  # it ends at this moment, or has and is not reaped yet
            found += process.info["name"] == "raylet" and folder in " ".join(process.cmdline())
    return found


def test_the_examples_run_as_on_one_machine(server: ClusterServer) -> None:
    with server.client() as client:
        assert result(client, start(client, "hello", who="Ada"))["output"].startswith("Hello Ada!")
        numbered = result(client, start(client, "fanout", words=["one", "two"]))
    assert numbered == {"text": "1. One\n2. Two", "count": 2, "failed": 0}


def test_large_outputs_lie_in_the_object_store(server: ClusterServer, object_store: dict[str, str]) -> None:
    with server.client() as client:
        assert result(client, start(client, "page"))["output"] == "x" * PAGE_LETTERS
    stored = s3(object_store).list_objects_v2(Bucket=BUCKET, Prefix="heliograph/")["Contents"]
    assert PAGE_LETTERS + 2 in [one["Size"] for one in stored]


def test_waiting_work_brings_a_node_up_and_idleness_takes_it_down(server: ClusterServer) -> None:
    assert raylets(server) == 2
    with server.client() as client:
        execution_id = start(client, "special")
        until(lambda: raylets(server) == 3, "no node came up for waiting work")
        assert result(client, execution_id)["output"] == "xxx"
    until(lambda: raylets(server) == 2, "an idle node stayed")


def test_an_execution_goes_on_while_the_head_is_lost_and_ends_after_it_is_back(server: ClusterServer) -> None:
    with server.client() as client:
        execution_id = start(client, "ticking")
        until(lambda: len(server.events(execution_id)) > 3, "nothing was recorded")
    server.cluster.kill("head")
    server.kill()
    recorded = len(server.events(execution_id))
    until(lambda: len(server.events(execution_id)) > recorded, "nothing was recorded without a head")
    server.cluster.start_head()
    server.start()
    with server.client() as client:
        assert result(client, execution_id)["output"] == "xxx"
    topics = server.events(execution_id)
    assert topics.count("execution.recovered") == 0, "its host lived on, and nobody took it over"
    assert topics.count("execution.node_completed") == PAUSES + 1
