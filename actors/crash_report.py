"""Finds out when and why a worker process is gone: Ray knows that it ended, the process itself knows more.

Before it runs anything, a worker arranges that a fatal signal (``faulthandler``) and ``os._exit`` leave a
note in its own stderr file, which Ray keeps with its logs. The host reads it after the crash, if it is on
the same machine. A process killed from outside leaves no note.
"""

import asyncio
import faulthandler
import os
import re
import socket
import sys
from typing import NoReturn

from ray.exceptions import OutOfMemoryError, RayError, TaskCancelledError

from actors.step_call import WorkerAddress
from actors.step_execution import TRACEBACK_CHARS_MAX, bounded, format_stack, short_path
from runtime.events import StepError

CRASHED = "the worker process died while it ran the function"
NOTE_BYTES_MAX = 64 * 1024
KILL_SECONDS_MAX = 10.0
_LOOK_SECONDS = 0.01
_FATAL = "Fatal Python error: "
_EXIT = "Fatal call: "


def leave_last_words() -> str:
    """Make this process explain its end on its present stderr; returns that file's path, or ''."""
    fd = os.dup(2)
    faulthandler.enable(file=fd, all_threads=False)
    process, leave = os.getpid(), os._exit

    def note_and_leave(status: int) -> NoReturn:
        if os.getpid() == process:  # a forked child ends this way, too, and that is no crash
            stack = format_stack(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]  # its name
            os.write(fd, f"{_EXIT}os._exit({status})\n{stack}"[:NOTE_BYTES_MAX].encode())
        leave(status)

    os._exit = note_and_leave
    path = os.readlink(f"/proc/self/fd/{fd}")
    return path if os.path.isfile(path) else ""


def last_words(stderr_path: str) -> tuple[str, str] | None:
    """Cause and stack that a dead process noted in ``stderr_path``; None when there is no note."""
    try:
        with open(stderr_path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - NOTE_BYTES_MAX))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    at = max(text.rfind(_FATAL), text.rfind(_EXIT))
    if at < 0:
        return None
    cause, _, stack = text[at:].partition("\n")
    stack = stack.partition("\nExtension modules:")[0]
    # faulthandler prints the innermost frame first; after `execute` come only the worker's own.
    stack = re.split(r'\n[^\n]*step_execution\.py", line \d+ in execute', stack)[0]
    stack = re.sub(r'File "([^"]+)"', lambda found: f'File "{short_path(found[1])}"', stack)
    cause = cause.removeprefix(_FATAL).removeprefix(_EXIT)
    return cause, bounded(stack.strip() + "\n", TRACEBACK_CHARS_MAX)


async def wait_until_gone(address: WorkerAddress) -> bool:
    """Whether a killed worker really ended in time; Ray reports the death some 20 ms before it happens.

    Only known for a process of this machine; of another one the report has to do.
    """
    if address.host != socket.gethostname():
        return True
    for _ in range(int(KILL_SECONDS_MAX / _LOOK_SECONDS)):
        if not is_running(address.pid):
            return True
        await asyncio.sleep(_LOOK_SECONDS)
    return False


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            state = stat.read().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != b"Z"


def crash_error(error: RayError) -> StepError:
    """Why a process that ran a user's function is gone, as far as Ray knows."""
    if isinstance(error, TaskCancelledError):
        return StepError(type="WorkerCrashed", message="Ray cancelled the step's task")
    if isinstance(error, OutOfMemoryError):
        return StepError(
            type="WorkerCrashed",
            message=f"{CRASHED}: it was killed because its node ran out of memory",
        )
    detail = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
    detail = detail.partition("Some common causes")[0].strip()
    return StepError(
        type="WorkerCrashed",
        message=f"{CRASHED}: {detail}"[:4096],
    )
