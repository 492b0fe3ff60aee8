"""The Ray of our own: what it consists of, and that nothing of it outlives its process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from actors.ray_cluster import AGENTS, end_remains
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
ray_cluster.end_remains(sys.argv[2])
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
def test_a_ray_of_our_own_is_two_servers_that_end_with_their_process(
    how: str, sandbox: Sandbox, tmp_path: Path
) -> None:
    note = tmp_path / "agents.json"
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(sandbox.ray_folder / how), str(note)],
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
    # A raylet's agents don't see it killed: the next start of the same installation ends them.
    remains = {names[outlived.pid] for outlived in left}
    assert remains <= (set(AGENTS) if how == "killed" else set[str]())
    assert end_remains(str(tmp_path / "another.json")) == 0
    assert end_remains(str(note)) == len(left)
    _, left = psutil.wait_procs(left, 10)
    assert left == []
