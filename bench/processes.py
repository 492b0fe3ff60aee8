"""What processes cost, read from /proc: CPU of a whole process tree, ended children too, and memory.

The measuring process adopts orphans (`adopt_orphans`), so whatever a server starts stays below this
process, also after the server itself was killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
_SET_CHILD_SUBREAPER = 36

GATEWAY, HOST, WORKER, RAY, STORE, ENDED = "gateway", "host", "worker", "ray", "store", "ended"
SERVER_ROLES = (GATEWAY, HOST, WORKER, RAY, ENDED)
"""All but the store's own processes (PostgreSQL), which are told apart."""

_RAY_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


KILL_SECONDS_MAX = 30.0


class Outlived(Exception):
    """Processes that SIGKILL did not end in time."""


class Process(NamedTuple):
    """``own``: CPU seconds of all its threads; ``reaped``: of the children it has waited for."""

    pid: int
    parent: int
    started: int
    state: str
    own: float
    reaped: float


class Cpu(NamedTuple):
    """CPU seconds between two moments, by role; their sum is exact, ended children included."""

    by_role: dict[str, float]

    @property
    def server(self) -> float:
        return sum(self.by_role.get(role, 0.0) for role in SERVER_ROLES)

    @property
    def ray(self) -> float:
        return self.by_role.get(RAY, 0.0)

    @property
    def store(self) -> float:
        return self.by_role.get(STORE, 0.0)


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ended (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def all_processes() -> dict[int, Process]:
    found: dict[int, Process] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            process = _read(int(entry))
            if process is not None:
                found[process.pid] = process
    return found


def _read(pid: int) -> Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None  # ended between the listing and the look
    # The name in parentheses may hold spaces and parentheses: what follows the last one is plain.
    fields = text[text.rindex(b")") + 2 :].split()
    user, system, reaped_user, reaped_system = (int(field) for field in fields[11:15])
    return Process(
        pid,
        int(fields[1]),
        int(fields[19]),
        fields[0].decode(),
        (user + system) / _TICKS,
        (reaped_user + reaped_system) / _TICKS,
    )


def tree(root: int, without: Iterable[int] = ()) -> dict[int, Process]:
    """``root``'s living descendants, those of ``without`` and theirs left out."""
    everything = all_processes()
    children: dict[int, list[Process]] = {}
    for process in everything.values():
        children.setdefault(process.parent, []).append(process)
    found: dict[int, Process] = {}
    left_out = set(without)
    todo = [root]
    while todo:
        for child in children.get(todo.pop(), ()):
            if child.pid not in left_out and child.pid not in found:
                found[child.pid] = child
                todo.append(child.pid)
    return {pid: process for pid, process in found.items() if process.state != "Z"}


def role_of(pid: int, gateway: int) -> str:
    if pid == gateway:
        return GATEWAY
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ENDED
    if command.startswith("postgres") or "/postgres " in command:
        return STORE
    if command.startswith(_RAY_AGENTS):
        return RAY
    if command.startswith(("ray::Host", "ray::ExecutionHost")):
        return HOST
    if command.startswith("ray::"):
        return WORKER
    return RAY  # gcs_server, raylet, monitors: everything else that a gateway starts


class Sample(NamedTuple):
    """The tree at one moment."""

    processes: dict[int, Process]
    roles: dict[int, str]


def sample(root: int, gateway: int, without: Iterable[int] = ()) -> Sample:
    processes = tree(root, without)
    return Sample(processes, {pid: role_of(pid, gateway) for pid in processes})


def cpu_between(before: Sample, after: Sample) -> Cpu:
    """What the tree used meanwhile.

    A process that ended has its CPU in its parent's ``reaped``; what it had used before is subtracted with
    ``before``. That remainder is the role `ended`.
    """
    by_role: dict[str, float] = {}
    for pid, process in after.processes.items():
        earlier = before.processes.get(pid)
        is_same = earlier is not None and earlier.started == process.started
        used = process.own - (earlier.own if is_same and earlier is not None else 0.0)
        role = after.roles[pid]
        by_role[role] = by_role.get(role, 0.0) + used
    total = _sum(after) - _sum(before)
    by_role[ENDED] = by_role.get(ENDED, 0.0) + total - sum(by_role.values())
    if abs(by_role[ENDED]) < 1 / _TICKS:
        del by_role[ENDED]
    return Cpu(by_role)


def _sum(moment: Sample) -> float:
    return sum(process.own + process.reaped for process in moment.processes.values())


def pss_by_role(moment: Sample) -> dict[str, int]:
    """Proportional set size in bytes: shared pages counted once over all processes."""
    by_role: dict[str, int] = {}
    for pid, role in moment.roles.items():
        by_role[role] = by_role.get(role, 0) + _pss(pid)
    return by_role


def rss_by_role(moment: Sample) -> dict[str, int]:
    """Resident memory in bytes, pages shared with others included."""
    by_role: dict[str, int] = {}
    for pid, role in moment.roles.items():
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_bytes().split()[1])
        except OSError:
            continue  # ended meanwhile
        by_role[role] = by_role.get(role, 0) + pages * os.sysconf("SC_PAGESIZE")
    return by_role


def _pss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0  # ended meanwhile
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


async def kill_all(root: int, without: Iterable[int] = ()) -> None:
    """SIGKILL to ``root``'s descendants except stores, until none is left; orphans are collected.

    Raises: Outlived.
    """
    deadline = time.monotonic() + KILL_SECONDS_MAX
    spared = set(without)
    while left := [pid for pid in tree(root, spared) if role_of(pid, 0) != STORE]:
        for pid in left:
            _kill(pid)
        await asyncio.sleep(0.005)
        if time.monotonic() > deadline:
            raise Outlived(f"processes {left} outlive SIGKILL")
    for pid, process in all_processes().items():
        if process.parent == os.getpid() and process.state == "Z" and pid not in spared:
            try:
                os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - it is a zombie: answers at once
            except ChildProcessError:
                continue  # the one who started it was quicker


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # it ended by itself
