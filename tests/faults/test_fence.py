"""Two owners at once: a host that was only stopped wakes up after another one took over what it held."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psutil
import pytest

from runtime.event_log import EventLog
from runtime.events import Recovered
from runtime.ids import Position
from runtime.verification import pages
from tests.contracts.executions.flows import sleep
from tests.contracts.executions.wire import start, wait_for
from tests.contracts.live_server import flow
from tests.faults import victims
from tests.faults.journal import Journal, findings
from tests.faults.server import FaultyServer
from tests.sandbox import Sandbox

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.acceptance, pytest.mark.ray]

STEPS = 14
EXECUTIONS = 8

# Each pause is short enough to be waited for in memory, so a host that wakes up has overdue timers of all
# its executions, and records at once what it makes of them.
PATIENT = flow(
    "patient",
    *(sleep(f"n{number}", 0.8, needs=[f"n{number - 1}"] if number else []) for number in range(STEPS)),
)


@pytest.fixture
def server(sandbox: Sandbox) -> Iterator[FaultyServer]:
    server = FaultyServer(
        sandbox.root / "fence", local=False, impatient=True, hosts="2", shutdown_seconds="1"
    )
    server.start()
    server.publish(PATIENT)
    try:
        yield server
    finally:
        server.close()
        victims.kill_sessions(server.sessions)
        shutil.rmtree(server.folder)


def test_a_stopped_owner_that_wakes_after_its_take_over_records_nothing_more(server: FaultyServer) -> None:
    journal = Journal()
    [stopped, _] = victims.wait_for(server, victims.HOST, 2)
    with server.client() as client, server.log() as log:
        ids = [start(client, "patient") for _ in range(EXECUTIONS)]
        for execution_id in ids:
            journal.was_accepted(execution_id, execution_id, has_callback=False)
            wait_for(client, execution_id, "RUNNING")
        held = log.owners()
        assert set(held.values()) == {EXECUTIONS // 2}
        started = stopped.create_time()
        stopped.send_signal(signal.SIGSTOP)
        try:
            server.until(lambda: len(log.owners()) == 1, "nothing was taken over")
        finally:
            stopped.send_signal(signal.SIGCONT)
        taken_at = log.max_position()
        server.until(lambda: _fenced(server) >= EXECUTIONS // 2, "the woken host was not held off")
        with ThreadPoolExecutor(EXECUTIONS) as pool:
            shown = list(pool.map(partial(_end_of, server), ids))
        assert [one["status"] for one in shown] == ["COMPLETED"] * EXECUTIONS
        assert [one["completed_nodes"] for one in shown] == [STEPS] * EXECUTIONS
        for execution_id in ids:
            journal.saw(execution_id, "COMPLETED")
        assert findings(journal, log, []) == []
        assert _taken_over(log, taken_at) >= EXECUTIONS // 2
        # It lived through all of it: what held it off was not its death.
        assert psutil.Process(stopped.pid).create_time() == started


def _fenced(server: FaultyServer) -> int:
    """How often a host says that its write came too late."""
    logs = (server.folder / "logs").glob("host-*.log")
    return sum(log.read_text().count('"event": "fenced"') for log in logs)


def _end_of(server: FaultyServer, execution_id: str) -> dict[str, object]:
    with server.client() as client:
        return wait_for(client, execution_id)


def _taken_over(log: EventLog, until: Position) -> int:
    """How many executions another host had taken over by then."""
    return len(
        {
            recorded.originator_id
            for recorded in pages(log.feed)
            if recorded.position <= until and isinstance(recorded.event(), Recovered)
        }
    )
