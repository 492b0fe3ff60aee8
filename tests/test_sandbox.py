"""The shared fixtures give what they say, and a run that leaves something behind fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.sandbox import REPOSITORY, Sandbox

RUN_SECONDS = 120

LEAVES_A_PROCESS = """
import subprocess, sys

def test_it():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)  # left"])
"""

# setsid and a second fork: neither a descendant any more, nor in this run's process group.
LEAVES_A_DAEMON = """
import os, subprocess, sys

def test_it():
    program = "import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(300)  # left"
    subprocess.run([sys.executable, "-c", program], check=True)
"""

LEAVES_A_PORT = """
import socket

kept = []

def test_it():
    server = socket.create_server(("127.0.0.1", 0))
    kept.append(server)
"""

LEAVES_A_FILE = """
import tempfile

def test_it():
    tempfile.mkstemp(prefix="forgotten-")
"""

LEAVES_NOTHING = """
def test_it():
    assert True
"""


def run_suite(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Run one test file under this suite's conftest, with nothing else of its configuration."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_subject.py").write_text(source)
    plugins = ["-p", "tests.conftest", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "--end-seconds=1", folder],
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "finding"),
    [
        (LEAVES_A_PROCESS, "process: "),
        (LEAVES_A_DAEMON, "process: "),
        (LEAVES_A_PORT, "listening port: "),
        (LEAVES_A_FILE, "temporary file: forgotten-"),
    ],
    ids=["process", "daemon", "port", "file"],
)
def test_a_run_that_leaves_something_behind_fails_and_names_it(
    tmp_path: Path, source: str, finding: str
) -> None:
    run = run_suite(tmp_path, source)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    assert finding in run.stdout
    assert "1 passed, 1 error" in run.stdout
    assert not [p for p in psutil.process_iter(["cmdline"]) if is_left_over(p)]


def is_left_over(process: psutil.Process) -> bool:
    command: list[str] = process.info["cmdline"] or []
    return any(part.endswith("time.sleep(300)  # left") for part in command)


def test_a_run_that_leaves_nothing_passes(tmp_path: Path) -> None:
    run = run_suite(tmp_path, LEAVES_NOTHING)
    assert run.returncode == pytest.ExitCode.OK, run.stdout
    assert "1 passed" in run.stdout


def test_an_invocation_that_runs_no_test_leaves_no_folder(sandbox: Sandbox) -> None:
    command = [sys.executable, "-m", "pytest", "--markers"]
    subprocess.run(command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, check=True, timeout=RUN_SECONDS)
    assert [path.name for path in sandbox.root.glob("hg-*")] == []


@pytest.mark.postgres
def test_each_test_gets_an_empty_postgres_database(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE mine (id int)")
        row = connection.execute("SELECT count(*) FROM pg_tables WHERE tablename = 'mine'")
        assert row.fetchone() == (1,)
        durable = connection.execute("SHOW fsync").fetchone()
    assert durable == ("on",)


@pytest.mark.postgres
def test_the_postgres_database_of_another_test_is_not_seen(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        row = connection.execute("SELECT count(*) FROM pg_tables WHERE tablename = 'mine'")
        assert row.fetchone() == (0,)
