"""Runs git as a process that asks nobody, reads no configuration but ours, and ends with its caller.

No prompt, no hook, no template, no system or user configuration, no proxy of the environment, no detached
maintenance; http and https only. A token is given by the environment, so it stands in no argument list, URL
or file. Output is kept up to a bound. A command that takes too long, or whose caller is cancelled, is killed
with everything it started.
"""

import asyncio
import os
import signal
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

OUTPUT_BYTES_MAX = 16 * 1024 * 1024
STDERR_BYTES_MAX = 8 * 1024
_CONFIG = (
    ("core.hooksPath", "/dev/null"),
    ("core.symlinks", "false"),  # a link becomes a file that holds its target: nothing leads out
    ("core.fsmonitor", "false"),
    ("core.quotePath", "false"),
    ("init.templateDir", ""),
    ("init.defaultBranch", "main"),
    ("credential.helper", ""),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("http.followRedirects", "false"),  # another host would not be vetted, and would get the token
    ("http.lowSpeedLimit", "1"),
    ("http.lowSpeedTime", "60"),
    ("submodule.recurse", "false"),
    ("advice.detachedHead", "false"),
)


class GitFailed(Exception):
    """git ended with an error, or could not be run; the message is its own, bounded."""


class GitOutput(msgspec.Struct, frozen=True):
    """``is_whole``: False when more than the bound was written; the rest was dropped."""

    status: int
    stdout: bytes
    stderr: str
    is_whole: bool


async def run_git(
    arguments: Sequence[str],
    folder: str,
    home: str,
    *,
    seconds: float,
    config: Sequence[tuple[str, str]] = (),
    output_bytes_max: int = OUTPUT_BYTES_MAX,
    watch: Coroutine[Any, Any, None] | None = None,
    statuses: tuple[int, ...] = (0,),
) -> GitOutput:
    """Run ``git`` in ``folder``; ``home`` is an empty folder for it to find nothing in.

    ``watch`` runs beside it; what it raises ends the command. ``statuses``: those that are no failure.
    Raises: GitFailed; TimeoutError after ``seconds``; whatever ``watch`` raises.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            "git",
            *arguments,
            cwd=folder,
            env=_environment(home, config),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        if watch is not None:
            watch.close()
        raise GitFailed("git is not installed where the agent runs") from error
    watching = None if watch is None else asyncio.create_task(watch)
    reading = asyncio.create_task(_finish(process, output_bytes_max))
    tasks: list[asyncio.Task[Any]] = [reading] if watching is None else [reading, watching]
    try:
        async with asyncio.timeout(seconds):
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if watching is not None and watching.done():
                await watching  # raises: a watch has no other end
            output = await reading
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await process.wait()
    if output.status not in statuses:
        raise GitFailed(output.stderr.strip()[-1_000:] or f"git ended with status {output.status}")
    return output


def _environment(home: str, config: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    settings = (*_CONFIG, *config)
    numbered = {f"GIT_CONFIG_KEY_{at}": key for at, (key, _) in enumerate(settings)}
    numbered |= {f"GIT_CONFIG_VALUE_{at}": value for at, (_, value) in enumerate(settings)}
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": home,
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "true",  # answers every question with nothing
        "GIT_ALLOW_PROTOCOL": "http:https",
        "GIT_CEILING_DIRECTORIES": home,
        "GIT_CONFIG_COUNT": str(len(settings)),
        **numbered,
    }


async def _finish(process: asyncio.subprocess.Process, limit: int) -> GitOutput:
    if process.stdout is None or process.stderr is None:
        raise RuntimeError("git was started without pipes")
    (stdout, is_whole), (stderr, _) = await asyncio.gather(
        _read(process.stdout, limit), _read(process.stderr, STDERR_BYTES_MAX)
    )
    status = await process.wait()
    return GitOutput(status, stdout, stderr.decode(errors="replace"), is_whole)


async def _read(stream: asyncio.StreamReader, limit: int) -> tuple[bytes, bool]:
    """The first ``limit`` bytes; the rest is read and dropped, so that the writer comes to its end."""
    kept, is_whole = bytearray(), True
    while chunk := await stream.read(64 * 1024):
        room = limit - len(kept)
        is_whole = is_whole and len(chunk) <= room
        kept += chunk[:room]
    return bytes(kept), is_whole
