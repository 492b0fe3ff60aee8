"""The copy of a repository that one run works in: fetched, watched in size and time, removed with the run.

    <checkouts>/<execution>/<node>-<conversation>-<random>/
        lock    held while the run has the copy: what nobody holds is a dead process's and is removed
        home/   empty, for git
        work/   the copy

Only http and https, never a local path: a repository's URL comes from a caller, and the host's own files are
no business of theirs. The host name is looked up and vetted here, and git is told to dial exactly these
addresses.
"""

import asyncio
import base64
import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path

import msgspec

from actors.agents.home import AgentSettings
from actors.agents.tools.credentials import Credentials
from actors.agents.tools.git_command import GitFailed, run_git
from actors.agents.tools.interface import ToolsUnavailable
from actors.egress import EgressGuard, EgressRefused, destination
from actors.step_journal import StepJournal
from runtime.agent_spec import Repository

WATCH_SECONDS = 0.25
LEFT_SECONDS = 3_600.0
"""Age from which a copy without an owner is removed, whosever it was."""

SWEPT_MAX = 200
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_NO_SHALLOW = "does not support shallow"
_UNASKED = ("not our ref", "unadvertised object", "no such remote ref")


class CheckoutTooLarge(Exception):
    pass


class Checkout(msgspec.Struct, frozen=True):
    """``folder``: the copy; ``commit``: what it was made of, in full."""

    folder: Path
    home: Path
    commit: str
    branch: str


@asynccontextmanager
async def check_out(
    repository: Repository,
    commit: str,
    settings: AgentSettings,
    guard: EgressGuard,
    credentials: Credentials,
    journal: StepJournal,
) -> AsyncGenerator[Checkout]:
    """A copy of ``repository`` at its branch, or at ``commit`` when a run goes on. Leaving it removes it.

    Raises: ToolsUnavailable of kind RepositoryUnavailable, RepositoryTooLarge, TimeoutError, SecretNotFound.
    """
    config = await _access(repository, guard, credentials)
    claiming = asyncio.create_task(asyncio.to_thread(_claim, settings.checkouts, journal))
    try:
        place, lock = await asyncio.shield(claiming)
    except asyncio.CancelledError:
        with suppress(ToolsUnavailable):
            await _to_its_end(_release, *await claiming)
        raise
    try:
        yield await _fetch(repository, commit, place, config, settings, credentials)
    finally:
        await _to_its_end(_release, place, lock)


async def _to_its_end(work: Callable[[Path, int], None], place: Path, lock: int) -> None:
    """In a thread, since it may take long; waited for by a cancelled run too: nothing is left behind."""
    task = asyncio.create_task(asyncio.to_thread(work, place, lock))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


def _release(place: Path, lock: int) -> None:
    shutil.rmtree(place, ignore_errors=True)
    os.close(lock)
    with suppress(OSError):  # others of the same execution may still be there
        place.parent.rmdir()


async def _access(
    repository: Repository, guard: EgressGuard, credentials: Credentials
) -> list[tuple[str, str]]:
    """What git must be told to reach the repository: vetted addresses, and the token."""
    try:
        where = destination(repository.url)
        addresses = await guard.vet(where)
    except EgressRefused as error:
        raise _unavailable(f"{repository.url[:200]}: {error.reason}") from None
    config: list[tuple[str, str]] = []
    if where.literal is None:
        dialled = ",".join(f"[{address}]" if address.version == 6 else str(address) for address in addresses)
        config.append(("http.curloptResolve", f"{where.host}:{where.port}:{dialled}"))
    if repository.secret:
        token = await credentials.value(repository.secret)
        # The user name that GitHub asks for; GitLab and others take any.
        basic = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        credentials.redactor.add(basic)
        config.append(("http.extraHeader", f"Authorization: Basic {basic}"))
    return config


def _claim(checkouts: str, journal: StepJournal) -> tuple[Path, int]:
    """A new folder for this run, locked; what dead processes left is removed."""
    if not checkouts:
        raise _unavailable("no folder for copies of repositories is configured")
    conversation = sha256(journal.key("tool-repository").encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{journal.node_id}-{conversation}")
    parent = Path(checkouts).absolute() / re.sub(r"[^A-Za-z0-9_-]", "_", journal.execution.execution_id)
    try:
        _sweep(parent.parent)
        for left in parent.glob(f"{name}-*"):
            _remove_if_left(left)
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        place = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
        lock = os.open(place / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (place / "home").mkdir()
        (place / "work").mkdir()
    except OSError as error:
        raise _unavailable(f"its copy can't be stored: {error.strerror}") from None
    return place, lock


def _sweep(root: Path) -> None:
    before = time.time() - LEFT_SECONDS
    for place in list(root.glob("*/*"))[:SWEPT_MAX]:
        with suppress(OSError):
            if place.stat().st_mtime < before:
                _remove_if_left(place)
                place.parent.rmdir()


def _remove_if_left(place: Path) -> None:
    try:
        lock = os.open(place / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        shutil.rmtree(place, ignore_errors=True)
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(place, ignore_errors=True)
    except BlockingIOError:
        return  # its owner lives
    finally:
        os.close(lock)


async def _fetch(
    repository: Repository,
    commit: str,
    place: Path,
    config: list[tuple[str, str]],
    settings: AgentSettings,
    credentials: Credentials,
) -> Checkout:
    fetching = _Fetching(place, config, settings.checkout_bytes_max)
    try:
        async with asyncio.timeout(settings.checkout_seconds_max):
            found = await fetching.run(repository, commit)
    except TimeoutError:
        seconds = settings.checkout_seconds_max
        raise ToolsUnavailable(
            "TimeoutError", f"copying {repository.url} took longer than {seconds:g} s"
        ) from None
    except CheckoutTooLarge:
        limit = settings.checkout_bytes_max
        message = f"{repository.url} is larger than the {limit} bytes a copy may have"
        raise ToolsUnavailable("RepositoryTooLarge", message) from None
    except GitFailed as error:
        raise _unavailable(credentials.redactor.text(f"{repository.url}: {error}")) from None
    return Checkout(place / "work", place / "home", found, repository.branch)


class _Fetching:
    def __init__(self, place: Path, config: list[tuple[str, str]], bytes_max: int) -> None:
        self._place = place
        self._config = config
        self._bytes_max = bytes_max

    async def run(self, repository: Repository, commit: str) -> str:
        """Fill the folder; the commit that is in it."""
        if commit and not _COMMIT.fullmatch(commit):
            raise GitFailed("the recorded commit is none")
        await self._git("init", "--quiet")
        branch = f"refs/heads/{repository.branch}" if repository.branch else "HEAD"
        await self._get(repository.url, branch, commit)
        await self._git("checkout", "--quiet", "--detach", commit or "FETCH_HEAD")
        if await asyncio.to_thread(_size, self._place) > self._bytes_max:
            raise CheckoutTooLarge
        return (await self._git("rev-parse", "HEAD")).decode().strip()

    async def _get(self, url: str, branch: str, commit: str) -> None:
        fetch = ("fetch", "--quiet", "--no-tags", "--no-recurse-submodules")
        try:
            await self._git(*fetch, "--depth", "1", "--", url, commit or branch)
        except GitFailed as error:
            text = str(error)
            # A server of plain files gives only everything; some give no commit by name.
            if _NO_SHALLOW not in text and not (commit and any(reason in text for reason in _UNASKED)):
                raise
            await self._git(*fetch, "--", url, branch)

    async def _git(self, *arguments: str) -> bytes:
        output = await run_git(
            arguments,
            str(self._place / "work"),
            str(self._place / "home"),
            seconds=3_600.0,  # the bound on all of them together is the caller's
            config=self._config,
            watch=self._watch(),
        )
        return output.stdout

    async def _watch(self) -> None:
        # Nothing tells when a folder has grown, so it is looked at (hence the noqa).
        while await asyncio.to_thread(_size, self._place) <= self._bytes_max:  # noqa: ASYNC110
            await asyncio.sleep(WATCH_SECONDS)
        raise CheckoutTooLarge


def _size(folder: Path) -> int:
    """Bytes below ``folder``; what vanishes meanwhile doesn't count."""
    total = 0
    for parent, _, names in os.walk(folder, onerror=None):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def _unavailable(message: str) -> ToolsUnavailable:
    return ToolsUnavailable("RepositoryUnavailable", f"the repository can't be had: {message}"[:2_000])
