"""A server that dies on purpose, and is started again by whoever keeps it."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from projections.store import ReadStore
from runtime.event_log import EventLog, store_env
from tests.contracts.live_server import LiveServer
from tests.faults.crash_points import EXIT_CODE, KEY, CrashPoints

SETTLED_SECONDS = 60.0
LOOK_SECONDS = 0.02

Order = tuple[str, int]
"""A point and the occurrence at which the process ends there."""


class FaultyServer(LiveServer):
    """``local``: gateway and host in one process, without Ray."""

    module = "tests.faults.crashing_server"

    def __init__(
        self, folder: Path, *, local: bool, store: str = "", impatient: bool = False, **settings: str
    ) -> None:
        super().__init__(folder, **settings)
        self.points = CrashPoints(folder)
        self.store_url = store or f"sqlite:///{folder / 'heliograph.db'}"
        self.exits: list[int] = []
        self.sessions: set[int] = set()
        self._failure: BaseException | None = None
        if store:
            self.settings["store"] = store
        self.environment = {KEY: str(folder)}
        if local:
            self.environment["FAULT_HOSTS"] = "local"
        if impatient:
            self.environment["FAULT_IMPATIENT"] = "yes"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self, **settings: str) -> None:
        try:
            super().start(**settings)
        finally:
            self.sessions.add(self.process.pid)

    @contextmanager
    def kept(self, orders: Sequence[Order] = ()) -> Generator[None]:
        """Start it again whenever it ends; give the next of ``orders`` before each start."""
        stopping = threading.Event()
        left = list(orders)

        def keep() -> None:
            while not stopping.is_set():
                code = self.process.poll()
                if code is None:
                    time.sleep(LOOK_SECONDS)
                    continue
                self.exits.append(code)
                if left:
                    self.points.order(*left.pop(0))
                try:
                    self.start()
                except AssertionError as error:
                    if self.process.poll() not in (EXIT_CODE, -signal.SIGKILL):
                        self._failure = error
                        return

        if left:
            self.points.order(*left.pop(0))
        keeper = threading.Thread(target=keep)
        keeper.start()
        try:
            yield
        finally:
            stopping.set()
            keeper.join()
        if self._failure is not None:
            raise self._failure

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SETTLED_SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"{what}, after {SETTLED_SECONDS:g} s"
            assert self._failure is None, self._failure
            time.sleep(LOOK_SECONDS)

    def _log(self) -> EventLog:
        return EventLog.open(store_env(self.store_url))

    @contextmanager
    def log(self) -> Generator[EventLog]:
        log = self._log()
        try:
            yield log
        finally:
            log.close()

    def settle(self, expected_callbacks: int) -> None:
        """Wait until every execution has ended and every callback was delivered."""
        with self.log() as log:
            store = ReadStore.over(log)
            try:
                self.until(lambda: not log.owners(), "executions are still open")
            except AssertionError as error:
                raise AssertionError(f"{error}: {_open(store)}") from None

            def delivered() -> bool:
                [(count,)] = store.query("SELECT COUNT(*) FROM callbacks WHERE status = 'delivered'")
                return count >= expected_callbacks

            self.until(delivered, f"less than {expected_callbacks} callbacks were delivered")


def _open(store: ReadStore) -> list[tuple[object, ...]]:
    """Executions without an end, for whoever must find out why."""
    return store.query(
        "SELECT execution_id, parent_id, status, current_node, owner, version, wake_at FROM executions"
        " WHERE ended_at IS NULL"
    )
