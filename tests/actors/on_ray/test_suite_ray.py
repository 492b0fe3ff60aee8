"""The Ray that this folder's tests join."""

from __future__ import annotations

import psutil
import pytest

from tests.sandbox import Sandbox


def add(left: int, right: int) -> int:
    return left + right


@pytest.mark.ray
@pytest.mark.slow
def test_the_local_ray_runs_a_task_and_listens_on_loopback_only(ray_cluster: str, sandbox: Sandbox) -> None:
    import ray

    assert ray_cluster.startswith("127.0.0.1:")
    assert ray.get(ray.remote(add).remote(1, 2)) == 3
    listening = {
        connection.laddr.ip
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}
    assert (sandbox.ray_folder / "suite").is_dir()
