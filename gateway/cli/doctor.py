"""`heliograph doctor`: what this machine and this environment lack, and what to do about it."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from gateway.cli.failures import CliFailure
from gateway.cli.options import AsJson

if TYPE_CHECKING:
    from gateway.settings import Settings

DISK_BYTES_MIN = 1_000_000_000
SHARED_MEMORY_BYTES_MIN = 512 * 1024 * 1024
RAY_SUPPORTED = (2, 60)


class Finding(NamedTuple):
    """``fix`` is empty when all is well. ``fatal``: the server can't run like this."""

    name: str
    found: str
    fix: str = ""
    fatal: bool = True


def doctor(as_json: AsJson = False) -> None:
    """Check Python, Ray, the store, the port, disk, blobs and the model, and say what to do."""
    from gateway.cli.connection import waiting
    from gateway.cli.output import print_json
    from gateway.cli.settings import load_settings

    settings = load_settings()
    with waiting("looking around"):
        findings = [check(settings) for check in CHECKS]
    if as_json:
        print_json([{**finding._asdict(), "ok": not finding.fix} for finding in findings])
    else:
        for finding in findings:
            mark = "ok  " if not finding.fix else "FAIL" if finding.fatal else "warn"
            typer.echo(f"{mark}  {finding.name:<14} {finding.found}")
            if finding.fix:
                typer.echo(f"      {'':<14} -> {finding.fix}")
    broken = [finding.name for finding in findings if finding.fix and finding.fatal]
    if broken:
        raise CliFailure(f"not ready to run: {', '.join(broken)}")


def _python(_: Settings) -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", found, "" if sys.version_info >= (3, 11) else "Install Python 3.11 or newer.")


def _ray(_: Settings) -> Finding:
    # The distribution's version, not `import ray`: importing takes seconds and may start threads.
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("ray")
    except PackageNotFoundError:
        return Finding("Ray", "not installed", "pip install ray")
    numbers = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    fix = "" if numbers >= RAY_SUPPORTED else "pip install -U ray (2.60 or newer)"
    return Finding("Ray", found, fix)


def _ray_cluster(settings: Settings) -> Finding:
    if not settings.ray_address:
        return Finding("Ray cluster", "started here by `heliograph serve`")
    host, _, port = settings.ray_address.rpartition("://")[2].partition(":")
    if not host or host == "auto":
        return Finding("Ray cluster", f"found by Ray itself ({settings.ray_address})")
    return _reachable("Ray cluster", settings.ray_address, host, int(port or 6379), "HELIOGRAPH_RAY_ADDRESS")


def _reachable(name: str, shown: str, host: str, port: int, key: str) -> Finding:
    import socket

    try:
        socket.create_connection((host, port), timeout=3.0).close()
    except OSError as error:
        return Finding(name, f"{shown}: {error.strerror or error}", f"Start it, or correct {key}.")
    return Finding(name, f"{shown} answers")


def _store(settings: Settings) -> Finding:
    url, shown = settings.store_url, without_password(settings.store_url)
    if settings.is_on_postgres:
        from importlib.util import find_spec
        from urllib.parse import urlsplit

        if find_spec("psycopg") is None:
            fix = "pip install 'heliograph[postgres]'"
            return Finding("Store", "the PostgreSQL driver is missing", fix)
        parts = urlsplit(url)
        if parts.hostname and "host=" not in parts.query:
            # Asked first, because opening the store tries for a long time.
            reached = _reachable("Store", shown, parts.hostname, parts.port or 5432, "HELIOGRAPH_STORE")
            if reached.fix:
                return reached
    return _opened_store(settings, shown)


def _opened_store(settings: Settings, shown: str) -> Finding:
    from runtime.errors import DomainError
    from runtime.event_log import EventLog

    url = settings.store_url
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return Finding("Store", f"{shown}: will be created")  # looking must not create it
    try:
        log = EventLog.open(settings.store_env)
        try:
            return Finding("Store", f"{shown}: opens, the last event is at position {log.max_position()}")
        finally:
            log.close()
    except (DomainError, ValueError) as error:
        fix = "Correct HELIOGRAPH_STORE, or the permissions of what it names."
        return Finding("Store", f"{shown}: {error}", fix)


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    from urllib.parse import urlsplit, urlunsplit

    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, _, place = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{place}"))


def _port(settings: Settings) -> Finding:
    from gateway.cli.connection import Server
    from gateway.cli.server import refuse_taken_port
    from gateway.target import Target

    try:
        refuse_taken_port(settings)
    except CliFailure as failure:
        server = Server(Target(f"http://{settings.host}:{settings.port}", "", True))
        try:
            if server.is_up():
                return Finding("Port", f"{settings.port}: a Heliograph server is running there")
        finally:
            server.close()
        return Finding("Port", failure.message, failure.hint)
    return Finding("Port", f"{settings.host}:{settings.port} is free")


def _hosts(settings: Settings) -> Finding:
    """Of the server that runs here: whether its hosts answer."""
    import httpx

    url = f"http://{settings.host}:{settings.port}/ready"
    try:
        answer = httpx.get(url, timeout=3.0).json()
        parts: dict[str, str] = answer["parts"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return Finding("Hosts", "no server runs here to ask for its hosts")
    bad = {name: state for name, state in parts.items() if state != "ok"}
    if bad:
        found = "; ".join(f"{name}: {state}" for name, state in bad.items())
        return Finding("Hosts", found, "`heliograph hosts` and the server's log say more.", fatal=False)
    count = sum(name.startswith("host-") for name in parts)
    return Finding("Hosts", f"{count} of them take executions")


def _disk(settings: Settings) -> Finding:
    folder = _existing(Path(settings.data_dir))
    free = shutil.disk_usage(folder).free
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding("Disk", f"{folder}: {error.strerror}", "Set HELIOGRAPH_DATA_DIR to a writable folder.")
    fix = "" if free >= DISK_BYTES_MIN else "Free some space, or set HELIOGRAPH_DATA_DIR to another disk."
    return Finding("Disk", f"{free / 1e9:.1f} GB free at {folder}", fix, fatal=False)


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _shared_memory(_: Settings) -> Finding:
    path = Path("/dev/shm")
    if not path.exists():
        return Finding("Shared memory", "no /dev/shm on this system; Ray uses its temporary folder")
    free = shutil.disk_usage(path).free
    fix = "" if free >= SHARED_MEMORY_BYTES_MIN else "In a container: start it with --shm-size=1g."
    return Finding("Shared memory", f"{free / 1e9:.1f} GB free", fix, fatal=False)


def _blobs(settings: Settings) -> Finding:
    from importlib.util import find_spec

    url = settings.blobs_url
    if "://" not in url or url.startswith("file://"):
        return Finding("Blobs", f"folder {url}")
    scheme = url.partition("://")[0]
    from fsspec.registry import known_implementations

    known: dict[str, dict[str, str]] = known_implementations
    if scheme not in known:
        return Finding(
            "Blobs", f"{url}: unknown scheme", "Correct HELIOGRAPH_BLOBS; for example s3://bucket/prefix."
        )
    module = known[scheme]["class"].split(".")[0]
    if find_spec(module) is None:
        install = "pip install 'heliograph[objectstores]'" if scheme == "s3" else f"pip install {module}"
        return Finding("Blobs", f"{url}: {module} is missing", install)
    return Finding("Blobs", url)


def _model(settings: Settings) -> Finding:
    from gateway.cli.model_check import check_model

    # Never fatal: without a model the server runs everything but agents.
    return Finding("Model", *check_model(settings), fatal=False)


CHECKS: tuple[Callable[[Settings], Finding], ...] = (
    _python,
    _ray,
    _ray_cluster,
    _store,
    _port,
    _hosts,
    _disk,
    _shared_memory,
    _blobs,
    _model,
)
