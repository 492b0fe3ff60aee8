"""A real server process with a data folder of its own: what the contract tests talk to."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import msgspec

from gateway.catalogue import Catalogue
from gateway.keys import key_hash, new_secret
from projections.store import ReadStore
from runtime.administration import Cause, create_key, fold_key
from runtime.event_log import Append, Chain, EventLog, store_env
from runtime.ids import KeyId, Micros, TenantId, key_stream
from tests.sandbox import REPOSITORY

READY_SECONDS = 90.0
STOP_SECONDS = 40.0
END_SECONDS = 60.0
"""How long an execution of a test may take to reach what the test waits for."""


class LiveServer:
    """One data folder; the server over it may be started, stopped, killed and started again."""

    module = "gateway.serve"

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.settings = settings
        self.environment: dict[str, str] = {}
        self.url = ""
        self.first_key = ""
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    # --- the process --------------------------------------------------------------------------------

    def start(self, **settings: str) -> None:
        """Start it and wait until executions can start."""
        env = {
            **os.environ,
            "HELIOGRAPH_PORT": "0",
            "HELIOGRAPH_DATA_DIR": str(self.folder),
            "PYTHONPATH": str(REPOSITORY),
            **self.environment,
            **{f"HELIOGRAPH_{name.upper()}": value for name, value in (self.settings | settings).items()},
        }
        with self._output.open("wb") as output, self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        self._wait(self._is_ready)

    @property
    def _output(self) -> Path:
        return self.folder / "server.out"

    @property
    def _errors(self) -> Path:
        return self.folder / "server.err"

    def printed(self) -> str:
        return self._output.read_text()

    def errors(self) -> str:
        """The end of what it wrote to standard error, over all its lives."""
        return self._errors.read_text()[-3000:]

    def _is_ready(self) -> bool:
        printed = self.printed()
        found = re.search(r"heliograph serves on (\S+)", printed)
        if found is None:
            return False
        self.url = found[1]
        key = re.search(r"first API key .*: (\S+)", printed)
        if key is not None:
            self.first_key = key[1]
        try:
            return httpx.get(f"{self.url}/ready", timeout=5).is_success
        except httpx.TransportError:
            return False

    def _wait(self, holds: Any) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not holds():
            assert self._process is not None
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                state = "took too long" if ended is None else f"exited with {ended}"
                raise AssertionError(f"the server {state}:\n{self.errors()}")
            time.sleep(0.05)

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.wait(STOP_SECONDS)

    def ended(self) -> int:
        """Wait until it has ended by itself; its exit code."""
        assert self._process is not None
        process, self._process = self._process, None
        return process.wait(STOP_SECONDS)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """`kill -9` of the server and of all it started."""
        assert self._process is not None
        process, self._process = self._process, None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_SECONDS)

    def close(self) -> None:
        if self._process is not None:
            self.stop()

    # --- what stands in its store -------------------------------------------------------------------

    def _log(self) -> EventLog:
        return EventLog.open(store_env(f"sqlite:///{self.folder / 'heliograph.db'}"))

    def publish(self, *documents: Mapping[str, Any], tenant: str = "default") -> None:
        async def all_of_them(catalogue: Catalogue) -> None:
            for document in documents:
                await catalogue.publish(tenant, document, Cause(at=_now()))

        log = self._log()
        try:
            asyncio.run(all_of_them(Catalogue(log, ReadStore.over(log))))
        finally:
            log.close()

    def make_key(self, *scopes: str, tenant: str = "default", revoke: bool = False, **limits: Any) -> str:
        """A key's secret."""
        secret = new_secret()
        key_id = KeyId(secret[-12:])
        events = create_key(
            None, key_id, key_hash(secret), TenantId(tenant), "test", scopes, Cause(at=_now()), **limits
        )
        log = self._log()
        try:
            log.append([Append(key_stream(key_id), events, fold_key(events), Chain())])
        finally:
            log.close()
        return secret

    def stored_execution_ids(self, flow_id: str) -> list[str]:
        log = self._log()
        try:
            sql = "SELECT execution_id FROM executions WHERE flow_id = ? ORDER BY created_at"
            return [row[0] for row in ReadStore.over(log).query(sql, (flow_id,))]
        finally:
            log.close()

    # --- clients ------------------------------------------------------------------------------------

    def client(self, key: str | None = None) -> httpx.Client:
        """A client with the key given, or with the first one."""
        headers = {"X-API-Key": self.first_key if key is None else key}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30.0)


def _now() -> Micros:
    return Micros(time.time_ns() // 1000)


def flow(flow_id: str, *nodes: Mapping[str, Any], output: Any = None, **fields: Any) -> dict[str, Any]:
    """A flow document."""
    document: dict[str, Any] = {"heliograph": 1, "id": flow_id, **fields, "nodes": list(nodes)}
    if output is not None:
        document["output"] = output
    return document


def poll(client: httpx.Client, url: str, until: Any) -> dict[str, Any]:
    """The first answer of `GET url` for which ``until(answer)`` holds."""
    deadline = time.monotonic() + END_SECONDS
    while True:
        response = client.get(url)
        assert response.status_code == 200, response.text
        body = msgspec.json.decode(response.content)
        if until(body):
            return body
        assert time.monotonic() < deadline, f"still {body}"
        time.sleep(0.02)
