"""What the suite leaves behind: nothing.

A run has one sandbox folder, kept short because AF_UNIX socket paths end at 107 bytes. Everything
temporary is created below it, and every process the suite starts inherits a mark in its environment.
When the run ends, a process still alive, a port still listening in this process, a file left in the
sandbox or a new file in the source tree makes the run fail.

A process is ours when it bears the mark, descends from this one, or holds a file of the sandbox
open; each alone has a gap: setproctitle overwrites the environment, orphans change their parent,
and not every process opens a file.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
MARK = "HELIOGRAPH_TEST_RUN"
# Ray's processes notice one after another that their raylet or GCS is gone.
PROCESS_END_SECONDS = 20.0
# Written by tools beside the suite, and by nothing of ours.
_TOOL_FOLDERS = frozenset(
    {".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis", "node_modules"}
)


@dataclass(frozen=True)
class Sandbox:
    """The folder and the mark of one run, and the source tree as the run found it."""

    root: Path
    mark: str
    tree_before: frozenset[str]

    @property
    def ray_folder(self) -> Path:
        """Where Ray keeps its sessions: removed at the end of the run without complaint, because a
        Ray that was killed cannot tidy up after itself."""
        return self.root / "ray"


def open_sandbox(tree: Path = REPOSITORY) -> Sandbox:
    """Create the sandbox and point this process, and so all its children, at it."""
    outside = tempfile.gettempdir()
    root = Path(tempfile.mkdtemp(prefix="hg-", dir=outside))
    sandbox = Sandbox(root=root, mark=secrets.token_hex(8), tree_before=frozenset(_files(tree)))
    for name in [name for name in os.environ if name.startswith("HELIOGRAPH_")]:
        del os.environ[name]  # the settings of whoever runs the tests are not the tests' settings
    os.environ.pop("RAY_ADDRESS", None)
    os.environ |= {
        MARK: sandbox.mark,
        "TMPDIR": str(root),
        "XDG_RUNTIME_DIR": str(root),
        "RAY_TMPDIR": str(sandbox.ray_folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    # pytest's own folder stays outside, so that the files of a failed test outlive the run.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", outside)
    tempfile.tempdir = None  # forget the folder read from the environment before
    return sandbox


def close_sandbox(
    sandbox: Sandbox, tree: Path = REPOSITORY, end_seconds: float = PROCESS_END_SECONDS
) -> list[str]:
    """End what is left, remove the folder, and say one line for each thing that was left behind."""
    left = [*_end_processes(sandbox, end_seconds), *_listening_here(), *_new_files(sandbox, tree)]
    shutil.rmtree(sandbox.ray_folder, ignore_errors=True)
    left += [f"temporary file: {path.name}" for path in sorted(sandbox.root.iterdir())]
    shutil.rmtree(sandbox.root, ignore_errors=True)
    os.environ.pop("TMPDIR", None)
    tempfile.tempdir = None
    return left


def own_processes(sandbox: Sandbox) -> list[psutil.Process]:
    """Living processes of this run, without this process itself."""
    here = psutil.Process()
    family = {here.pid} | {process.pid for process in here.children(recursive=True)}
    return [
        process
        for process in psutil.process_iter()
        if process.pid != here.pid
        and _is_alive(process)
        and (process.pid in family or _bears_mark(process, sandbox) or _holds(process, sandbox))
    ]


def wait_until_gone(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those of `processes` still alive after at most `seconds`."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [process for process in alive if _is_alive(process)]


def _end_processes(sandbox: Sandbox, end_seconds: float) -> list[str]:
    left = wait_until_gone(own_processes(sandbox), end_seconds)
    lines = [f"process: {_describe(process)}" for process in left]
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue  # it ended by itself between the look and the kill
    wait_until_gone(left, PROCESS_END_SECONDS)
    return lines


def _listening_here() -> list[str]:
    return [
        f"listening port: {connection.laddr}"
        for connection in psutil.Process().net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def _new_files(sandbox: Sandbox, tree: Path) -> list[str]:
    # A new .py file is somebody at work in the tree during the run; the suite writes none.
    new = sorted(set(_files(tree)) - sandbox.tree_before)
    return [f"file in the source tree: {name}" for name in new if not name.endswith(".py")]


def _files(tree: Path) -> Iterator[str]:
    for folder, subfolders, names in os.walk(tree):
        subfolders[:] = [name for name in subfolders if name not in _TOOL_FOLDERS]
        for name in names:
            yield str((Path(folder) / name).relative_to(tree))


def _is_alive(process: psutil.Process) -> bool:
    try:
        # A zombie has ended; only its parent has not looked yet.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _bears_mark(process: psutil.Process, sandbox: Sandbox) -> bool:
    try:
        return process.environ().get(MARK) == sandbox.mark
    except (psutil.Error, OSError):
        return False  # another user's process, or one that has just ended


def _holds(process: psutil.Process, sandbox: Sandbox) -> bool:
    try:
        return any(file.path.startswith(f"{sandbox.root}/") for file in process.open_files())
    except (psutil.Error, OSError):
        return False


def _describe(process: psutil.Process) -> str:
    try:
        ports = [
            connection.laddr
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        command = " ".join(process.cmdline())[:160] or process.name()
    except psutil.Error:
        return f"{process.pid} (ended while being described)"
    return f"{process.pid} {command}" + (f" listening on {ports}" if ports else "")
