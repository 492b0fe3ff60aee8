"""Commands that start something here: serve, demo, and a runtime of its own for one `run`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.failures import CliFailure, usage

if TYPE_CHECKING:
    from gateway.settings import Settings

READY_SECONDS_MAX = 90.0
"""How long an embedded runtime may take to come up; Ray on a busy machine needs about 10 s."""
STOP_SECONDS_MAX = 30.0
"""How long it may take to stop before it is killed; everything acknowledged is durable anyway."""

Host = Annotated[
    str | None, typer.Option(help="Address to listen on [default: 127.0.0.1].", show_default=False)
]
Port = Annotated[int | None, typer.Option(help="Port to listen on [default: 8080].", show_default=False)]
DataDir = Annotated[
    Path | None, typer.Option(help="Where the store lives [default: heliograph-data].", show_default=False)
]
Store = Annotated[
    str | None,
    typer.Option(help="postgresql://... in place of the embedded store.", show_default=False),
]
Blobs = Annotated[
    str | None,
    typer.Option(help="s3://bucket/path or another fsspec URL in place of a folder.", show_default=False),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="host:port of a running Ray cluster to join in place of starting Ray.", show_default=False
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Default model of agents: a name at HELIOGRAPH_MODEL_URL, provider:name, or offline.",
        show_default=False,
    ),
]


def serve(
    host: Host = None,
    port: Port = None,
    data_dir: DataDir = None,
    store: Store = None,
    blobs: Blobs = None,
    address: Address = None,
    model: Model = None,
) -> None:
    """Start the server: gateway, Ray and the store in one process tree, or a gateway of a running cluster."""
    from gateway.cli.output import note
    from gateway.cli.settings import load_settings

    folder = None if data_dir is None else str(data_dir)
    settings = load_settings(
        host=host, port=port, data_dir=folder, store=store, blobs=blobs, ray_address=address, model=model
    )
    _refuse_one_machines_stores(settings)
    refuse_taken_port(settings)
    _refuse_unusable_store(settings)

    from gateway.credentials import Credentials, read_credentials, write_credentials
    from gateway.keys import NewKey
    from gateway.serve import serve as serve_here

    def keep(url: str, first_key: NewKey) -> None:
        path = write_credentials(settings.data_dir, Credentials(url=url, api_key=first_key.secret))
        note(f"kept for the command line in {path}; nothing else to set up")

    kept = read_credentials(settings.data_dir)
    if kept is not None and settings.port:
        # The server may have moved since its first start; commands should follow it.
        shown = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host
        moved = Credentials(url=f"http://{shown}:{settings.port}", api_key=kept.api_key)
        write_credentials(settings.data_dir, moved)
    serve_here(settings, on_first_key=keep)


def demo() -> None:
    """Run a real job durably, kill its host half way, and watch it finish."""
    from gateway.demo import run_demo

    code: int | None = run_demo()
    if code:
        raise typer.Exit(code)


def refuse_taken_port(settings: Settings) -> None:
    """Raises: CliFailure when the address can't be listened on; asked before Ray starts, so at once."""
    if settings.port == 0:
        return
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except PermissionError:
            raise CliFailure(
                f"port {settings.port} needs privileges this user lacks",
                "Choose one above 1023: `heliograph serve --port 8080`.",
            ) from None
        except OSError as error:
            if error.errno == _ADDRESS_IN_USE:
                raise CliFailure(
                    f"port {settings.port} on {settings.host} is in use",
                    "Is a server running already? Else choose another: "
                    f"`heliograph serve --port {settings.port + 1}`.",
                ) from None
            raise CliFailure(
                f"can't listen on {settings.host}:{settings.port}: {error.strerror or error}",
                "Name an address of this machine with --host or HELIOGRAPH_HOST.",
            ) from None


_ADDRESS_IN_USE = 98 if sys.platform == "linux" else 48


def _refuse_one_machines_stores(settings: Settings) -> None:
    """Raises: CliFailure for a cluster of several machines whose stores only this one could open."""
    from gateway.hosts import is_on_this_machine

    if not settings.ray_address or is_on_this_machine(settings.ray_address):
        return
    if not settings.is_on_postgres:
        raise usage(
            f"a cluster at {settings.ray_address} needs a store that every machine reaches",
            "Name one: --store postgresql://user:password@host/dbname (or HELIOGRAPH_STORE).",
        )
    if "://" not in settings.blobs or settings.blobs.startswith("file:"):
        raise usage(
            f"a cluster at {settings.ray_address} needs a blob store that every machine reaches",
            "Name one: --blobs s3://bucket/path (or HELIOGRAPH_BLOBS).",
        )


def _refuse_unusable_store(settings: Settings) -> None:
    """Raises: CliFailure when the store can't be opened; asked before Ray starts."""
    from gateway.cli.connection import waiting
    from gateway.cli.doctor import without_password
    from runtime.errors import Unavailable
    from runtime.event_log import EventLog

    shown = without_password(settings.store_url)
    try:
        if not settings.store:
            Path(settings.data_dir).mkdir(parents=True, exist_ok=True)
        with waiting(f"opening {shown}"):
            EventLog.open(settings.store_env | _whole_pool(settings)).close()
    except ValueError as error:
        raise usage(f"HELIOGRAPH_STORE: {error}") from None
    except (OSError, Unavailable) as error:
        hint = "`heliograph doctor` says what to correct."
        raise CliFailure(f"the store {shown} can't be used: {error}", hint) from None


def _whole_pool(settings: Settings) -> dict[str, str]:
    """Opening the log with all that this server and its own hosts may come to hold, it is refused at once."""
    hosts = 0 if settings.ray_address else max(1, settings.hosts)
    return {"POSTGRES_MAX_OVERFLOW": str(settings.store_pool * (1 + hosts) - 1)}


def free_port() -> int:
    """A port nobody listens on now, on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def embedded_runtime() -> Generator[tuple[str, str]]:
    """A server of our own while the block runs; its address and key.

    Raises: CliFailure with what its log says when it doesn't come up.
    """
    from gateway.cli.connection import waiting
    from gateway.cli.settings import load_settings

    settings = load_settings()
    folder = Path(settings.data_dir)
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = folder / "run.log"
    env = os.environ | {"HELIOGRAPH_HOST": "127.0.0.1", "HELIOGRAPH_PORT": str(port)}
    with log.open("wb") as output:
        # A session of its own: Ctrl-C in the terminal reaches this command, which then stops the server.
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", "serve"],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=env,
            start_new_session=True,
        )
    try:
        with waiting("no server is running: starting the runtime for this run"):
            key = _wait_until_ready(process, url, folder, log)
        yield url, key
    finally:
        with waiting("stopping the runtime"):
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, folder: Path, log: Path) -> str:
    import httpx

    from gateway.credentials import read_credentials

    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise CliFailure(f"the runtime did not start: {_last_line(log)}", f"All of its log: {log}")
        try:
            if httpx.get(f"{url}/ready", timeout=2.0).is_success:
                kept = read_credentials(folder)
                return os.environ.get("HELIOGRAPH_API_KEY") or (kept.api_key if kept else "")
        except httpx.HTTPError:
            pass  # not listening yet
        time.sleep(0.1)
    raise CliFailure(f"the runtime was not ready within {READY_SECONDS_MAX:g} s", f"Its log: {log}")


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "it wrote no log"


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
