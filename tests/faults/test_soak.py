"""Random `kill -9` of everything a server consists of, while clients come and go; printed with its seed.

`FAULT_SOAK_SECONDS` makes it longer, `FAULT_SEED` repeats one: its choices, not the machine's timing.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contracts.ability.wire import RECEIVER_ADDRESS, Receiver
from tests.faults import victims
from tests.faults.customers import Customer, Watching
from tests.faults.flows import ALL, output_of
from tests.faults.journal import Journal, findings
from tests.faults.server import FaultyServer
from tests.sandbox import Sandbox

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.acceptance, pytest.mark.ray]

SOAK_SECONDS = float(os.environ.get("FAULT_SOAK_SECONDS", "40"))
SEED = int(os.environ.get("FAULT_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
CLIENTS = 4
PAUSE_SECONDS = (1.0, 5.0)
AGAIN_SECONDS = (0.05, 1.5)
"""After how long a second kill follows the first, into the recovery."""


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[FaultyServer]:
    server = FaultyServer(
        sandbox.root / "soak",
        local=False,
        callback_allow=RECEIVER_ADDRESS,
        hosts="1",
        keep_alive_seconds="0.3",
        shutdown_seconds="1",
    )
    server.start()
    server.publish(*ALL)
    try:
        yield server
    finally:
        server.close()
        victims.kill_sessions(server.sessions)
        shutil.rmtree(server.folder)


class Killer:
    """Kills something, waits a while, and so on; sometimes at once again."""

    def __init__(self, server: FaultyServer) -> None:
        self._server = server
        self._random = random.Random(SEED)
        self.killed: list[str] = []

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            time.sleep(min(self._random.uniform(*PAUSE_SECONDS), max(0.0, until - time.monotonic())))
            # Ray takes seconds to start; what is not there can't be killed.
            while time.monotonic() < until and not victims.named(self._server, victims.HOST):
                time.sleep(victims.LOOK_SECONDS)
            self._kill(self._random.choice(("host", "host", "worker", "gateway", "everything")))
            if self._random.random() < 0.4:
                time.sleep(self._random.uniform(*AGAIN_SECONDS))
                self._kill(self._random.choice(("host", "gateway")))

    def _kill(self, what: str) -> None:
        match what:
            case "host":
                processes = victims.named(self._server, victims.HOST)
            case "worker":
                processes = victims.named(self._server, victims.WORKER)
            case "gateway":
                gateway = self._server.process.pid
                processes = [each for each in victims.of_session(gateway) if each.pid == gateway]
            case _:
                processes = victims.of_session(self._server.process.pid)
        victims.kill(processes)
        self.killed.append(f"{what} ({len(processes)})")


@pytest.mark.timeout(SOAK_SECONDS + 240)
def test_random_kills_lose_nothing_double_nothing_and_change_no_end(
    server: FaultyServer, receiver: Receiver
) -> None:
    journal = Journal()
    killer = Killer(server)
    until = time.monotonic() + SOAK_SECONDS
    names: list[str] = []

    def come_and_go(number: int) -> None:
        watching: tuple[tuple[Watching, str], ...] = (
            ("status", receiver.url),
            ("contract", ""),
            ("log", receiver.url),
        )
        visit = 0
        while time.monotonic() < until:
            visit += 1
            name = f"c{number}-{visit}"
            names.append(name)
            Customer(server, journal, name, *watching[(number + visit) % len(watching)]).visit()

    print(f"\nseed {SEED}, {SOAK_SECONDS:g} s")  # noqa: T201 - a failure can only be repeated with it
    with server.kept(), ThreadPoolExecutor(CLIENTS + 1) as threads:
        # The killer's end is waited for like the clients': it must not outlive the server it kills.
        for work in [
            threads.submit(killer.run, until),
            *(threads.submit(come_and_go, number) for number in range(CLIENTS)),
        ]:
            work.result()
        server.settle(len(journal.with_callback))
    print(f"killed: {', '.join(killer.killed)}; {len(names)} executions")  # noqa: T201
    assert {name: journal.outputs[name] for name in names} == {name: output_of(name) for name in names}
    with server.log() as log:
        assert findings(journal, log, receiver.wait_for(receiver.count)) == []
    assert len(killer.killed) >= 3
