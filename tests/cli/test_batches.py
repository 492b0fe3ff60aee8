"""Batches from the command line, against a server that `heliograph serve` started."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.command import Served, environment

HELLO = '{"name": "Ada"}\n{"name": 7}\n{"name": "Grace"}\n'


@pytest.fixture
def people(flow_files: Path) -> Path:
    file = flow_files / "people.jsonl"
    file.write_text(HELLO)
    return file


def test_a_file_is_submitted_watched_listed_and_its_results_fetched(
    served: Served, people: Path, flow_files: Path
) -> None:
    ended = served.run("submit", "hello", "--inputs", str(people), "--name", "people", "--watch")
    batch = ended.out.strip()
    # One row is nothing the flow can take: a failed item, which the exit code tells.
    assert ended.code == 1
    assert "1 of 3 items failed" in ended.err
    assert f"heliograph batches retry {batch}" in ended.err
    assert any(line.startswith("completed  3 of 3") for line in ended.err.splitlines())
    shown = served.ok("batches", "show", batch, "--json").json()
    assert (shown["name"], shown["status"]) == ("people", "completed")
    [row] = [line for line in served.ok("batches", "list").out.splitlines() if batch in line]
    assert row.split("\t")[1:6] == ["hello", "completed", "2", "1", "3"]
    failed = served.ok("batches", "failed", batch).out
    assert failed.startswith("1\t")
    assert '{"name": 7}' in failed
    results = served.ok("batches", "results", batch).out.splitlines()
    assert [json.loads(line).get("output") for line in results] == ["Hello Ada", None, "Hello Grace"]
    target = flow_files / "results.parquet"
    assert "wrote" in served.ok("batches", "results", batch, "--output", str(target)).err
    assert target.read_bytes()[:4] == b"PAR1"
    again = served.run("batches", "retry", batch, "--watch")
    assert "runs again what failed: 1 item\n" in again.err
    assert (again.code, "1 of 3 items failed" in again.err) == (1, True)


PICKY = """\
heliograph: 1
id: picky
nodes:
  - id: each
    kind: map
    over: inputs.items
    chunk: {size: 2}
    each: {kind: template, template: "{{ 10 // item }}"}
"""


def test_the_failed_items_of_a_map_are_listed_and_run_again(served: Served, flow_files: Path) -> None:
    file = flow_files / "picky.yaml"
    file.write_text(PICKY)
    ran = served.run("run", str(file), "--input", "items=[1,0,5]", "--json", "--quiet")
    execution = ran.json()["execution_id"]
    rows = served.ok("failed-items", execution).out.splitlines()
    assert [row.split("\t")[0] for row in rows] == ["1"]
    assert "ZeroDivisionError" in rows[0]
    again = served.ok("rerun", execution)
    assert "each goes over what failed: 1 item" in again.err
    assert again.out.strip() != execution


@contextmanager
def _watching(served: Served, batch: str) -> Generator[subprocess.Popen[str]]:
    """`batches watch` as a terminal would start it: Ctrl-C reaches it."""
    # A shell has what it starts in the background ignore Ctrl-C, and every process hands that on; a signal
    # that is handled starts afresh in a new process.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "batches", "watch", batch],
            env=environment(served.folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            process.kill()  # does nothing to one that has ended


def test_ctrl_c_leaves_a_batch_running_and_says_how_to_come_back(served: Served, flow_files: Path) -> None:
    file = flow_files / "two.jsonl"
    file.write_text("{}\n{}\n")
    batch = served.ok("submit", "waiting", "--inputs", str(file)).out.strip()
    with _watching(served, batch) as watching:
        assert watching.stderr is not None
        assert watching.stderr.readline()  # the first line of progress
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=30)
    assert watching.returncode == 130
    assert f"heliograph batches watch {batch}" in said
    assert served.ok("batches", "show", batch, "--json").json()["status"] == "running"
    assert "is paused" in served.ok("batches", "pause", batch).err
    assert "cancel" in served.ok("batches", "cancel", batch).err


def test_what_does_not_fit_a_batch_is_a_mistake_in_the_command(served: Served, people: Path) -> None:
    mixed = served.run("submit", "hello", "--inputs", str(people), "--input", "name=Ada")
    assert (mixed.code, mixed.out) == (2, "")
    assert "are for batches" in mixed.err
    absent = served.run("submit", "hello", "--inputs", str(people.with_name("gone.jsonl")))
    assert absent.code == 2
    assert "gone.jsonl" in absent.err
    alone = served.run("submit", "hello", "--concurrency", "3")
    assert alone.code == 2
    people.write_text('{"name": "Ada"}\n{"name"\n')
    broken = served.run("submit", "hello", "--inputs", str(people))
    assert broken.code == 1
    assert "people.jsonl, line 2" in broken.err
