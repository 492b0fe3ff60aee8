"""A Ray cluster of processes of our own: a head with its autoscaler, and nodes that join it.

What `ray up` runs on each machine. Each node is a session of processes, so a test can kill a whole one. Ray's
own class for a cluster with an autoscaler stops every Ray of the machine first.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.cluster import ray_node

START_SECONDS = 60.0
STOP_SECONDS = 15.0
TOKEN = "7d" * 32
HEAD_ID = "f" * 51 + "00000"
"""The id Ray's fake provider of nodes expects the head to have."""

_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""``0`` keeps every node where it is told to be."""


class RayProcesses:
    """``node_types``: what the autoscaler may start, by name; there is no autoscaler without any.
    ``environment``: of every node beside what Ray needs, e.g. the keys of an object store."""

    def __init__(self, folder: Path, node_types: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._port = _free_port()
        self._sessions: dict[str, subprocess.Popen[bytes]] = {}
        self._names: dict[str, str] = {}
        self._environment = {
            **os.environ,
            _LOOPBACK: "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_prestart_worker_first_driver": "0",
            "RAY_enable_worker_prestart": "0",
            **environment,
        }
        self._autoscaling: tuple[str, ...] = ()
        folder.mkdir(parents=True)
        if node_types:
            autoscaling = folder / "autoscaling.json"
            autoscaling.write_text(json.dumps(self._autoscaler(node_types)))
            self._autoscaling = (str(autoscaling),)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to join."""
        return {name: self._environment[name] for name in (_LOOPBACK, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}

    def start_head(self) -> None:
        """Start the head, or start it again: its state lies on disk, and it is another node then. The
        autoscaler does not come back: Ray's fake provider knows one id of a head only."""
        is_first = HEAD_ID not in self._names
        autoscaling = self._autoscaling if is_first else ()
        self._start(
            "head",
            ["head", str(self._port), str(self._folder / "ray"), "0", *autoscaling],
            HEAD_ID if is_first else _new_id(),
            RAY_FAKE_CLUSTER="1",
            AUTOSCALER_UPDATE_INTERVAL_S="1",
            RAY_CLOUD_INSTANCE_ID=HEAD_ID,
            RAY_gcs_storage="rocksdb",
            RAY_gcs_storage_path=str(self._folder / "state"),
        )

    def start_node(self, name: str, cpus: int) -> None:
        self._start(name, ["node", self.address, str(cpus)], _new_id())

    def name_of(self, node_id: str) -> str:
        """The name a node was started with, by Ray's id of it."""
        return self._names[node_id]

    def processes(self, node_id: str) -> list[psutil.Process]:
        """All of a node's, hosts and workers included."""
        return _session(self._sessions[self.name_of(node_id)].pid)

    def kill(self, name: str) -> None:
        """`kill -9` of every process of the node, as when its machine loses power."""
        process = self._sessions.pop(name)
        for one in _session(process.pid):
            one.kill()
        process.wait(STOP_SECONDS)

    def close(self) -> None:
        for name in tuple(self._sessions):
            self.kill(name)
        deadline = time.monotonic() + STOP_SECONDS
        # Nodes that the autoscaler started, and workers that noticed the end of their node by themselves.
        while left := _of_folder(self._folder):
            assert time.monotonic() < deadline, f"{left} outlive their cluster"
            for one in left:
                one.kill()
            psutil.wait_procs(left, timeout=1)

    def _start(self, name: str, arguments: list[str], node_id: str, **environment: str) -> None:
        self._names[node_id] = name
        output = self._folder / f"{name}.out"
        with output.open("wb") as log:
            self._sessions[name] = subprocess.Popen(
                [sys.executable, "-m", ray_node.__name__, *arguments],
                env={**self._environment, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node_id, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while ray_node.READY not in output.read_text():
            assert self._sessions[name].poll() is None, output.read_text()[-2_000:]
            assert time.monotonic() < deadline, output.read_text()[-2_000:]
            time.sleep(0.1)

    def _autoscaler(self, node_types: Mapping[str, Any]) -> dict[str, Any]:
        head = "ray.head.default"
        empty: dict[str, Any] = {
            name: []
            for name in (
                "cluster_synced_files",
                "head_setup_commands",
                "head_start_ray_commands",
                "initialization_commands",
                "rsync_exclude",
                "rsync_filter",
                "setup_commands",
                "worker_setup_commands",
                "worker_start_ray_commands",
            )
        }
        return {
            **empty,
            "cluster_name": "test",
            "max_workers": 4,
            "idle_timeout_minutes": 0.05,
            "upscaling_speed": 1,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": self.address,
                "head_node_id": HEAD_ID,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "launch_multiple": True,
                "use_node_id_as_ip": True,
            },
            "auth": {},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            "head_node_type": head,
            "available_node_types": {
                head: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                **node_types,
            },
        }


def _new_id() -> str:
    return secrets.token_hex(len(HEAD_ID) // 2)


def _session(leader: int) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _session_of(process.pid) == leader]


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def _of_folder(folder: Path) -> list[psutil.Process]:
    """Processes of Ray whose command names the folder."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline"]):
        command: list[str] = process.info["cmdline"] or []
        if any(str(folder) in part for part in command) and process.pid != os.getpid():
            found.append(process)
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
