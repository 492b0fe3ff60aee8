"""The Ray of our own: what it consists of, and that nothing of it outlives its process."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.conftest import Sandbox

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ENDED_SECONDS = {"asked": 30.0, "killed": 10.0}

SCRIPT = """
import json, sys, time
from actors.ray_settings import RaySettings, prepare_environment
settings = RaySettings(cpus=1, temp_dir=sys.argv[1])
prepare_environment(settings)
from actors import ray_cluster
ray_cluster.start(settings)
import psutil, ray
children = psutil.Process().children(recursive=True)
print(json.dumps({
    "servers": sorted(child.name() for child in psutil.Process().children()),
    "pids": [child.pid for child in children],
    "answer": ray.get(ray.remote(lambda: 42).remote()),
}), flush=True)
sys.stdin.read()
ray_cluster.shutdown()
"""


@pytest.mark.parametrize("how", ["asked", "killed"])
def test_a_ray_of_our_own_is_two_servers_that_end_with_their_process(how: str, sandbox: Sandbox) -> None:
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(sandbox.ray_folder / how)],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process:
        said = json.loads(process.stdout.readline())
        assert said["servers"] == ["gcs_server", "raylet"]
        assert said["answer"] == 42
        started = [psutil.Process(pid) for pid in said["pids"] if psutil.pid_exists(pid)]
        names = {each.pid: each.name() for each in started}
        if how == "killed":
            process.send_signal(signal.SIGKILL)
        process.stdin.close()
        _, left = psutil.wait_procs(started, ENDED_SECONDS[how])
    for outlived in left:
        outlived.kill()
    # Ray's own doing, ray.init's too: its agents hold each other's pipe, so they don't see a raylet killed.
    excused = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"} if how == "killed" else set[str]()
    assert {names[outlived.pid] for outlived in left} <= excused
