"""The processes of a server that a test may kill or stop: those of the server's session, by what they are."""

from __future__ import annotations

import os
import time

import psutil

from tests.faults.server import FaultyServer

FOUND_SECONDS = 60.0
LOOK_SECONDS = 0.02

HOST = "ray::Host"
WORKER = "ray::StepWorker"


def of_session(session: int) -> list[psutil.Process]:
    """All living processes of the session that began with the process of this id."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.Error):
            continue
    return found


def named(server: FaultyServer, title: str) -> list[psutil.Process]:
    """Those of the server's processes whose title begins so, in the order of their ids."""
    found: list[psutil.Process] = []
    for process in of_session(server.process.pid):
        try:
            if process.name().startswith(title):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.pid)


def wait_for(server: FaultyServer, title: str, count: int = 1) -> list[psutil.Process]:
    """The first ``count`` of them, once they are there."""
    deadline = time.monotonic() + FOUND_SECONDS
    while len(found := named(server, title)) < count:
        assert time.monotonic() < deadline, f"no {title}"
        time.sleep(LOOK_SECONDS)
    return found[:count]


def kill(processes: list[psutil.Process]) -> None:
    """`kill -9` of each; one that ended meanwhile is as dead."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def kill_sessions(sessions: set[int]) -> None:
    """What servers that were killed left behind: parts of Ray that notice it late, or not at all."""
    for session in sessions:
        left = of_session(session)
        kill(left)
        psutil.wait_procs(left, timeout=10)
