"""The real command as a process, and a server it started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from gateway.credentials import Credentials, read_credentials
from tests.sandbox import REPOSITORY

COMMAND_SECONDS = 120.0
READY_SECONDS = 90.0
STOP_SECONDS = 60.0


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def environment(folder: Path, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a command sees: no setting of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HELIOGRAPH_")}
    mine = {"PYTHONPATH": str(REPOSITORY), "HELIOGRAPH_DATA_DIR": str(folder), "COLUMNS": "100"}
    return kept | mine | dict(extra or {})


def heliograph(folder: Path, *arguments: str, env: Mapping[str, str] | None = None, stdin: str = "") -> Ended:
    """Run one command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", *arguments],
        env=environment(folder, env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Served:
    """`heliograph serve` over a data folder of its own."""

    def __init__(self, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "serve.log").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway.cli", "serve", "--port", "0"],
                env=environment(self.folder, {"HELIOGRAPH_SHUTDOWN_SECONDS": "2", **self._env}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            assert self._process.poll() is None, self.printed()
            assert time.monotonic() < deadline, self.printed()
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        kept = read_credentials(self.folder)
        if kept is None:
            return False
        try:
            return httpx.get(f"{kept.url}/ready", timeout=5).is_success
        except httpx.TransportError:
            return False

    def printed(self) -> str:
        return (self.folder / "serve.log").read_text()

    def credentials(self) -> Credentials:
        kept = read_credentials(self.folder)
        assert kept is not None
        return kept

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, stdin: str = "") -> Ended:
        return heliograph(self.folder, *arguments, env=env, stdin=stdin)

    def ok(self, *arguments: str) -> Ended:
        """A command that must work."""
        ended = self.run(*arguments)
        assert ended.code == 0, ended
        return ended

    def close(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(STOP_SECONDS)
