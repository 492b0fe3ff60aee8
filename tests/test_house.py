"""The rules of the house hold for every file, and each rule can fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.house_rules import (
    MODULE_LINES_MAX,
    ROOM_NAMES,
    Module,
    loose_constraints,
    machine_traces,
    oversize,
    refused_calls,
    refused_imports,
    refused_name,
)
from tests.sandbox import REPOSITORY

IMPORT_SECONDS = 60


def modules(*folders: str) -> Iterator[Module]:
    """The Python files of the named folders of the repository."""
    for folder in folders:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            yield Module(name, path.read_text(encoding="utf-8"), is_package)


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    names = [Path(name) for name in listing.stdout.split("\0") if name]
    return [name for name in names if (REPOSITORY / name).is_file()]


def findings(check: Callable[[Module], list[str]], *folders: str) -> list[str]:
    return [line for module in modules(*folders) for line in check(module)]


# -- the repository keeps the rules ------------------------------------------------------------


def test_every_room_has_modules_to_check() -> None:
    assert {module.room for module in modules(*ROOM_NAMES)} == set(ROOM_NAMES)


def test_imports_follow_the_directions_between_rooms() -> None:
    assert findings(refused_imports, *ROOM_NAMES) == []


def test_the_runtime_neither_opens_files_nor_reads_the_clock() -> None:
    assert findings(refused_calls, "runtime") == []


def test_no_module_is_too_large() -> None:
    assert findings(oversize, *ROOM_NAMES, "tests", "bench", "flows") == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    python = [path for path in tracked_files() if path.suffix == ".py"]
    assert [line for path in python for line in refused_name(path)] == []


def test_no_tracked_file_names_this_machine_or_a_registry() -> None:
    lines: list[str] = []
    for path in tracked_files():
        lines += machine_traces(path, (REPOSITORY / path).read_text(encoding="utf-8", errors="replace"))
    assert lines == []


def test_constraints_are_names_and_versions_only() -> None:
    path = REPOSITORY / "constraints.txt"
    assert loose_constraints(Path(path.name), path.read_text(encoding="utf-8")) == []


# Imports every module of one room and reports what that opened or dragged in. The audit hook sees
# what Python itself does, so a library cannot hide a connection from it.
PROBE = """
import importlib, pkgutil, sys, threading

opened = []

def probes_for_ipv6():
    # urllib3, which ray brings, binds a socket on ::1 for an instant to learn whether IPv6 works.
    frame = sys._getframe(2)
    return frame.f_globals.get("__name__") == "urllib3.util.connection"

def watch(event, args):
    if event == "socket.bind" and probes_for_ipv6():
        return
    if event in ("socket.connect", "socket.bind", "sqlite3.connect", "subprocess.Popen", "os.system"):
        opened.append(event)
    elif event == "open" and isinstance(args[1], str) and any(mode in args[1] for mode in "wax+"):
        opened.append(f"open {args[0]} {args[1]}")

sys.dont_write_bytecode = True
sys.addaudithook(watch)
room = importlib.import_module(sys.argv[1])
names = [found.name for found in pkgutil.walk_packages(room.__path__, sys.argv[1] + ".")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
dragged = [name for name in sys.argv[2:] if name in sys.modules]
print(*opened, *threads, *dragged, sep="\\n", end="")
"""


def probe(package: str, refused: tuple[str, ...], folder: Path = REPOSITORY) -> list[str]:
    """What importing every module of `package` opened, started, or loaded of `refused`."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE, package, *refused],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=IMPORT_SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_importing_the_runtime_opens_nothing_and_loads_no_infrastructure() -> None:
    refused = (
        "ray",
        "fastapi",
        "starlette",
        "sqlite3",
        "psycopg",
        "httpx",
        "actors",
        "projections",
        "gateway",
    )
    assert probe("runtime", refused) == []


@pytest.mark.parametrize("room", ["actors", "projections", "gateway"])
def test_importing_a_room_opens_nothing(room: str) -> None:
    assert probe(room, ()) == []


# -- each rule can fail ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source", "finding"),
    [
        ("runtime.x", "import ray", "imports ray"),
        ("runtime.x", "def f():\n    import fastapi.routing", "imports fastapi.routing"),
        ("runtime.x", "import sqlite3", "imports sqlite3"),
        ("runtime.x", "from os import environ", "imports os.environ"),
        ("runtime.x", "from time import time", "imports time.time"),
        ("runtime.x", "import random", "imports random"),
        ("runtime.x", "import socket", "imports socket"),
        ("runtime.x", "import importlib\nimportlib.import_module('psycopg')", "imports psycopg"),
        ("runtime.x", "from eventsourcing import persistence", "imports eventsourcing.persistence"),
        ("runtime.x", "from actors import client", "imports actors.client"),
        ("runtime.kinds.x", "from . import kind\nimport gateway", "imports gateway"),
        ("actors.x", "import projections.runner", "imports projections.runner"),
        ("actors.x", "from gateway import app", "imports gateway.app"),
        ("actors.x", "from fastapi import FastAPI", "imports fastapi.FastAPI"),
        ("projections.x", "import ray", "imports ray"),
        ("projections.x", "from actors.client import Client", "imports actors.client.Client"),
        ("projections.x", "from gateway import settings", "imports gateway.settings"),
        ("gateway.x", "from actors.execution_actor import ExecutionActor", "imports actors.execution_actor"),
        ("gateway.x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray", "imports ray"),
        ("gateway.dialects.one", "from gateway.dialects import two", "another (two)"),
        ("gateway.dialects.one", "from .two import wire", "another (two)"),
        ("gateway.dialects.one.routes", "from ..two.wire import Reply", "another (two)"),
        ("gateway.dialects.one", "import ray.actor", "imports ray.actor"),
    ],
)
def test_an_import_across_a_wall_is_found(name: str, source: str, finding: str) -> None:
    found = refused_imports(Module(name, source))
    assert len(found) == 1
    assert finding in found[0]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("runtime.x", "import json, msgspec\nfrom eventsourcing.domain import ProgrammingError"),
        ("runtime.x", "from uuid import UUID\nfrom pathlib import PurePosixPath"),
        ("runtime.event_log", "from eventsourcing.persistence import Mapper"),
        ("actors.x", "import asyncio, os, time\nimport ray\nfrom runtime import events"),
        ("projections.x", "import sqlite3\nfrom eventsourcing.sqlite import SQLiteDatastore"),
        ("gateway.app", "from actors.client import Client\nfrom .dialects import DIALECTS"),
        ("gateway.dialects.one.routes", "from .wire import Reply\nfrom gateway.sse import stream"),
    ],
)
def test_an_import_within_the_rules_is_not_a_finding(name: str, source: str) -> None:
    assert refused_imports(Module(name, source)) == []


def test_a_relative_import_of_a_package_counts_from_the_package_itself() -> None:
    registry = Module("gateway.dialects", "from . import one, two", is_package=True)
    assert refused_imports(registry) == []


@pytest.mark.parametrize(
    "source",
    ["open('x')", "import datetime\ndatetime.datetime.now()", "from datetime import date\ndate.today()"],
)
def test_a_call_that_looks_outside_is_found(source: str) -> None:
    assert len(refused_calls(Module("runtime.x", source))) == 1


def test_a_method_called_open_or_now_is_not_a_finding() -> None:
    assert refused_calls(Module("runtime.x", "door.open()\nclock.now()")) == []


def test_a_module_is_too_large_from_one_line_past_the_bound() -> None:
    assert oversize(Module("runtime.x", "\n" * MODULE_LINES_MAX)) == []
    assert len(oversize(Module("runtime.x", "\n" * (MODULE_LINES_MAX + 1)))) == 1


@pytest.mark.parametrize("path", ["actors/utils.py", "gateway/common/errors.py", "runtime/manager.py"])
def test_a_name_that_says_nothing_is_found(path: str) -> None:
    assert len(refused_name(Path(path))) == 1


def test_a_name_that_only_contains_a_refused_word_is_not_a_finding() -> None:
    assert refused_name(Path("runtime/common_ancestor.py")) == []


# In two pieces each, because this file is one of those that are searched.
@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("see /wo", "rk/shared/notes"),
        ("path = '/ro", "ot/.cache/x'"),
        ("cd /ho", "me/alice/heliograph"),
        ("index = https://py", "pi.org/simple"),
        ("pip install --find", "-links x"),
        ("heliograph @ fi", "le:///src"),
    ],
)
def test_a_trace_of_one_machine_is_found(start: str, end: str) -> None:
    assert len(machine_traces(Path("x"), start + end)) == 1


def test_an_ordinary_path_is_not_a_trace() -> None:
    assert machine_traces(Path("x"), "GET /api/work/1 and ~/.ray/auth_token and https://ray.io/") == []


@pytest.mark.parametrize("line", ["ray>=2.60", "-e .", "heliograph @ https://example.org/x.whl", ""])
def test_a_loose_constraint_is_found(line: str) -> None:
    assert len(loose_constraints(Path("x"), f"{line}\n")) == 1


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        ("import sqlite3\nsqlite3.connect(':memory:')", "sqlite3.connect"),
        ("import socket\nsocket.socket().bind(('127.0.0.1', 0))", "socket.bind"),
        (
            "from threading import Event, Thread\nThread(target=Event().wait, daemon=True, name='t').start()",
            "t",
        ),
        ("import httpx", "httpx"),
    ],
)
def test_an_import_that_opens_something_is_found(tmp_path: Path, source: str, finding: str) -> None:
    package = tmp_path / "subject"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text(source)
    assert finding in probe("subject", ("httpx",), tmp_path)
