"""The model server on a real loopback socket: in a thread of the test's process, or in its own process."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

import httpx
import msgspec
import uvicorn

from tests.model_server.app import ModelApp
from tests.model_server.journal import Exchange, Journal
from tests.model_server.script import Rule, RuleFunction
from tests.sandbox import REPOSITORY

HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 10.0
READY_LINE = "model server on "


class ModelServer:
    """In a thread. Whoever starts it closes it; it is a context manager too."""

    def __init__(self, *script: RuleFunction) -> None:
        self._app = ModelApp(script)
        self._socket = listening(0)
        self._server = uvicorn.Server(config(self._app))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="model server")
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._server.started:
            assert self._thread.is_alive()
            assert time.monotonic() < deadline, "the model server did not start"
            time.sleep(0.005)

    def _run(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            await self._server.serve(sockets=[self._socket])

        asyncio.run(serve())

    @property
    def port(self) -> int:
        return self._socket.getsockname()[1]

    @property
    def url(self) -> str:
        """The base URL for clients of the protocol: ``http://127.0.0.1:<port>/v1``."""
        return f"http://{HOST}:{self.port}/v1"

    @property
    def journal(self) -> Journal:
        return self._app.journal

    def play(self, *script: RuleFunction) -> None:
        """From now on answer by these rules; the first that fits counts."""
        self._app.script = script

    def release(self, gate: str) -> None:
        """Answers that hang at this gate go on, and later ones don't stop there."""
        self._call(self._app.gates.release, gate)

    def reset(self) -> None:
        """Forget every exchange; what still hangs is let go, and the gates are closed again."""

        def let_go() -> None:
            self._app.gates.release_all()
            self._app.gates = type(self._app.gates)()

        self._call(let_go)
        self.journal.until_settled()
        self.journal.clear()

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        """Run it in the server's loop, and return when that was done."""
        assert self._loop is not None
        done = threading.Event()

        def call() -> None:
            function(*arguments)
            done.set()

        self._loop.call_soon_threadsafe(call)
        assert done.wait(STOP_SECONDS), "the model server's loop is stuck"

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._call(self._app.gates.release_all)
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS)
        assert not self._thread.is_alive(), "the model server did not stop"
        self._socket.close()

    def __enter__(self) -> ModelServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ModelServerProcess:
    """``python -m tests.model_server`` as a child of this process, looked into over HTTP."""

    def __init__(self, folder: Path, script: Sequence[Rule]) -> None:
        file = folder / "model-script.json"
        file.write_bytes(msgspec.json.encode(script))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.model_server", "--port", "0", "--script", str(file)],
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        found = re.search(f"{READY_LINE}(\\S+)", line)
        if found is None:
            self.close()
            raise AssertionError(f"the model server said {line!r} instead of where it is")
        self.url = found[1]
        self._root = self.url.removesuffix("/v1")

    def exchanges(self) -> list[Exchange]:
        body = httpx.get(f"{self._root}/journal", timeout=30).raise_for_status().content
        return msgspec.json.decode(body, type=list[Exchange])

    def play(self, *script: Rule) -> None:
        body = msgspec.json.encode(script)
        httpx.put(f"{self._root}/script", content=body, timeout=30).raise_for_status()

    def release(self, gate: str) -> None:
        httpx.post(f"{self._root}/release/{gate}", timeout=30).raise_for_status()

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()


def listening(port: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind((HOST, port))
    opened.listen(2048)
    return opened


def config(app: ModelApp) -> uvicorn.Config:
    return uvicorn.Config(
        app.asgi,
        lifespan="off",
        log_config=None,
        # A cut connection is an exception of the application by design; nobody needs its traceback.
        log_level="critical",
        access_log=False,
        ws="none",
        timeout_graceful_shutdown=1,
    )
