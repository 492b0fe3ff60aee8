"""What it costs that a gateway's host is on another node: the same clients, the host here or there.

Two clusters of two nodes on this machine, one after the other; they differ in which node has the CPUs, and so
the host. The network between them is loopback: what is measured is Ray's way between nodes, without the wire.
"""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from bench import progress
from bench.flows import THREE_TEMPLATES
from bench.generator import generator
from bench.load_start_and_follow import Followed
from bench.processes import Cpu, cpu_between
from bench.report import Figure, figure, percentile
from bench.server import HOST, ROOT, Installation, ServerFault, StoreKind, installation, server_environment

WARM_UP = 100
EXECUTIONS = 1_000
NODE_SECONDS_MAX = 60.0
CPUS = 2
PORT = "6399"
READY = "the node is up"


async def remote_host(store: StoreKind) -> list[Figure]:
    figures: list[Figure] = []
    accepts: dict[str, float] = {}
    for where, head_cpus in (("same", CPUS), ("other", 0)):
        async with installation(store) as installed, _two_nodes(installed, head_cpus):
            await installed.publish_flows()
            await installed.start()
            followed, cpu = await _follow(installed)
        accepts[where] = percentile(followed.accept_ms, 0.5)
        figures += _figures(where, followed, cpu)
    figures.append(
        figure(
            "remote_host_added_p50",
            "start sent to 202, one client, p50: what it takes longer with the host on another node",
            [accepts["other"] - accepts["same"]],
            "ms",
            better="lower",
            same_node_ms=round(accepts["same"], 3),
            other_node_ms=round(accepts["other"], 3),
        )
    )
    progress.show(figures)
    return figures


async def _follow(installed: Installation) -> tuple[Followed, Cpu]:
    async with generator(
        installed, "start_and_follow", flow=THREE_TEMPLATES["id"], warm_up=WARM_UP, executions=EXECUTIONS
    ) as load:
        await load.mark("warm", 60)
        await load.mark("begin", 120)
        before = installed.sample()
        await load.mark("end", 300)
        cpu = cpu_between(before, installed.sample())
        followed: Followed = await load.result(Followed, 30)
    return followed, cpu


def _figures(where: str, followed: Followed, cpu: Cpu) -> list[Figure]:
    return [
        figure(
            f"remote_host_{where}_node_{name}_{label}",
            f"{what}, one client, host on the {where} node, {label}",
            [percentile(values, share)],
            "ms",
            better="lower",
            cpu_seconds=cpu.by_role,
            executions=EXECUTIONS,
        )
        for name, what, values in (
            ("accept", "start sent to 202 (durable)", followed.accept_ms),
            ("terminal_event", "start sent to terminal event on the stream", followed.terminal_event_ms),
        )
        for share, label in ((0.5, "p50"), (0.99, "p99"))
    ]


@asynccontextmanager
async def _two_nodes(installed: Installation, head_cpus: int) -> AsyncGenerator[None]:
    """A head, which the gateway is on, and a node; ``head_cpus`` of `CPUS` are the head's."""
    address = f"{HOST}:{PORT}"
    installed.settings |= {
        "HELIOGRAPH_RAY_ADDRESS": address,
        "HELIOGRAPH_HOSTS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # keeps every node on loopback
    }
    await _node(installed, "head", PORT, str(installed.folder / "r"), str(head_cpus))
    await _node(installed, "node", address, str(CPUS - head_cpus))
    yield  # the installation ends all processes below this one


async def _node(installed: Installation, *arguments: str) -> None:
    output = installed.folder / f"{arguments[0]}.out"
    with output.open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - forks and returns; ended with the installation
            [sys.executable, "-m", "tests.cluster.ray_node", *arguments],
            cwd=ROOT,
            env=server_environment(installed.settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + NODE_SECONDS_MAX
    while READY not in _text(output):
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServerFault(f"a node of Ray did not start:\n{_text(output)[-2_000:]}")
        await asyncio.sleep(0.1)


def _text(path: Path) -> str:
    return path.read_text("utf-8", "replace")
