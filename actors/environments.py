"""A flow's code on the cluster: its package and its requirements, as environments of Ray's workers.

    package from the blob store ----------> zip --+
    requirements, installed once ---------> zip --+--> Ray's control store --> the nodes that need it

Both zips travel as ``py_modules`` of a ``runtime_env``: each process of an environment finds them first on
its path, and no other process sees them. Ray's own ``pip`` environments are not used: on a machine where
Python runs from a virtual environment they copy all of it for each flow (0.9 GB and 40 s measured here), on
every node. Requirements are installed from wheels only, so that installing runs nobody's code.

Ray forgets a zip when no living process refers to it, so it is offered again for processes that start later.
"""

import asyncio
import io
import os
import shutil
import signal
import sys
import tempfile
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog
from ray._private.runtime_env import packaging
from ray.exceptions import RayError

from actors.step_worker import NOT_FOR_FUNCTIONS
from runtime.blob_store import BlobStore
from runtime.errors import DomainError
from runtime.events import BlobRef
from runtime.packages import MEDIA_TYPE, OURS, PACKAGE_BYTES_MAX, Code

log = structlog.get_logger(__name__)

INSTALL_SECONDS_MAX = 300.0
SETUP_SECONDS_MAX = 120
"""What a node may take to fetch and unpack an environment."""

SITE_BYTES_MAX = 256 * 1024 * 1024
"""Of installed requirements, zipped. What is larger belongs into the image of the nodes."""

SITES_MAX = 64
"""Installed requirements a host remembers the place of; the one used longest ago is installed anew."""

INSTALLS_AT_ONCE = 1
FAILED_SECONDS = 30.0
"""For so long an environment that could not be made is not tried again."""

OFFER_SECONDS = 60.0
"""What was offered to Ray so recently is still there: it keeps it for ten minutes in any case."""

REASON_CHARS_MAX = 2_000


class EnvironmentFailed(Exception):
    """A flow's code can't be brought to a worker; the message says why."""


class Environments:
    """One host's; lives on its loop."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._sites: OrderedDict[tuple[str, ...], BlobRef] = OrderedDict()
        self._making: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        self._offered: dict[str, float] = {}
        self._installs = asyncio.Semaphore(INSTALLS_AT_ONCE)

    async def runtime_env(self, code: Code) -> dict[str, Any]:
        """Ray's ``runtime_env`` for processes that run this code, all of it in Ray's reach.

        Raises: EnvironmentFailed.
        """
        name = code.environment
        failed_at, reason = self._failed.get(name, (0.0, ""))
        if reason and asyncio.get_running_loop().time() - failed_at < FAILED_SECONDS:
            raise EnvironmentFailed(reason)
        making = self._making.get(name)
        if making is None:
            making = self._making[name] = asyncio.get_running_loop().create_task(self._make(code))
            making.add_done_callback(lambda done: self._made(name, done))
        return await asyncio.shield(making)

    async def close(self) -> None:
        making = tuple(self._making.values())
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)

    def _made(self, name: str, made: "asyncio.Task[dict[str, Any]]") -> None:
        self._making.pop(name, None)
        self._failed.pop(name, None)
        error = None if made.cancelled() else made.exception()
        if isinstance(error, EnvironmentFailed):
            if len(self._failed) >= SITES_MAX:
                del self._failed[next(iter(self._failed))]
            self._failed[name] = (asyncio.get_running_loop().time(), str(error))

    async def _make(self, code: Code) -> dict[str, Any]:
        try:
            uris: list[str] = []
            if code.package:
                package = await asyncio.to_thread(self._blobs.find, code.package, MEDIA_TYPE)
                uris.append(await self._offer(package, PACKAGE_BYTES_MAX))
            if code.requirements:
                site = await self._site(code.requirements)
                uris.append(await self._offer(site, SITE_BYTES_MAX))
        except (DomainError, OSError, RayError, RuntimeError, ValueError) as error:
            raise EnvironmentFailed(f"the flow's code can't be loaded: {error}"[:REASON_CHARS_MAX]) from error
        return {"py_modules": uris, "config": {"setup_timeout_seconds": SETUP_SECONDS_MAX}}

    async def _offer(self, zipped: BlobRef, limit: int) -> str:
        """Have Ray hold the zip; where nodes find it."""
        uri = f"gcs://heliograph_{zipped.sha256}.zip"
        now = asyncio.get_running_loop().time()
        if now - self._offered.get(uri, -OFFER_SECONDS) >= OFFER_SECONDS:
            await asyncio.to_thread(self._upload, uri, zipped, limit)
            self._offered = {known: at for known, at in self._offered.items() if now - at < OFFER_SECONDS}
            self._offered[uri] = now
        return uri

    def _upload(self, uri: str, zipped: BlobRef, limit: int) -> None:
        packaging.pin_runtime_env_uri(uri)  # until the process that is about to start refers to it
        if not packaging.package_exists(uri):
            packaging.upload_package_to_gcs(uri, self._blobs.get_bytes(zipped, limit))

    async def _site(self, requirements: tuple[str, ...]) -> BlobRef:
        """The installed requirements as a zip in the blob store."""
        known = self._sites.get(requirements)
        if known is not None and await asyncio.to_thread(self._blobs.exists, known):
            self._sites.move_to_end(requirements)
            return known
        async with self._installs:
            folder = await asyncio.to_thread(tempfile.mkdtemp, prefix="heliograph-site-")
            try:
                await _install(requirements, folder)
                data = await asyncio.to_thread(_zip_site, Path(folder, "site"))
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, True)
        site = await asyncio.to_thread(self._blobs.put_bytes, data, MEDIA_TYPE)
        self._sites[requirements] = site
        if len(self._sites) > SITES_MAX:
            self._sites.popitem(last=False)
        log.info("requirements installed", requirements=requirements, bytes=site.size)
        return site


async def _install(requirements: tuple[str, ...], folder: str) -> None:
    """Install into ``folder/site``. Raises: EnvironmentFailed with what pip said."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += [
        "--no-compile",
        "--only-binary=:all:",
        "--target",
        os.path.join(folder, "site"),
        *requirements,
    ]
    variables = {name: value for name, value in os.environ.items() if name not in NOT_FOR_FUNCTIONS}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=variables,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(INSTALL_SECONDS_MAX):
            output, _ = await process.communicate()
    except TimeoutError:
        raise EnvironmentFailed(
            f"installing the requirements took longer than {INSTALL_SECONDS_MAX:g} s"
        ) from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        said = [line for line in output.decode(errors="replace").splitlines() if "ERROR" in line] or [
            "no reason given"
        ]
        raise EnvironmentFailed(f"the requirements can't be installed: {' '.join(said)}"[:REASON_CHARS_MAX])


def _zip_site(site: Path) -> bytes:
    """The folder as a zip, the same bytes for the same files. Raises: EnvironmentFailed above the bound."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(path for path in site.rglob("*") if path.is_file()):
            name = path.relative_to(site)
            if name.parts[0] in OURS:
                continue  # a requirement's requirement; the workers go on with theirs
            entry = zipfile.ZipInfo(str(name))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o755 << 16
            archive.writestr(entry, path.read_bytes())
            if buffer.tell() > SITE_BYTES_MAX:
                bound = f"{SITE_BYTES_MAX // (1024 * 1024)} MiB"
                raise EnvironmentFailed(f"the installed requirements are larger than {bound}: bake them in")
    return buffer.getvalue()
