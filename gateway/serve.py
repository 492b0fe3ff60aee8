"""The server process: one socket, one event loop, uvicorn, and what a person sees of its start and end.

    starting: the socket is bound, the store opened, /health answers
    ready:    Ray and the hosts are up; executions start
    stopping: no new connection; open requests get `shutdown_seconds`; streams end at once and can resume

Whatever was acknowledged is in the log before this process could tell anybody, so stopping loses nothing.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import uvicorn

from gateway.app import create_app
from gateway.context import Gateway
from gateway.hosts import Connect, connect_ray
from gateway.keys import NewKey
from gateway.settings import SettingFault, Settings
from gateway.telemetry import configure_logging
from runtime.errors import DomainError

BACKLOG = 2048

FirstKeyMade = Callable[[str, NewKey], None]


def serve(
    settings: Settings, *, connect: Connect = connect_ray, on_first_key: FirstKeyMade | None = None
) -> None:
    """Serve until a signal ends it; exits 1, with one line, when it can't start.

    ``on_first_key`` gets the server's URL and the first key, once, on an installation's first start.
    """
    configure_logging(settings)
    # uvicorn raises the signal again once it has shut down: by default, a clean end would look like a kill.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    listener = _listen(settings)
    url = address_of(settings, listener)

    def opened(gateway: Gateway, first_key: NewKey | None) -> None:
        _say(f"heliograph serves on {url}")
        if first_key is not None:
            _say(f"first API key (admin, shown only now): {first_key.secret}")
            if on_first_key is not None:
                on_first_key(url, first_key)
        _say("starting Ray and the execution hosts ...")

    def ready(gateway: Gateway) -> None:
        _say(f"ready: {url}")

    try:
        app = create_app(settings, connect=connect, on_open=opened, on_ready=ready)
        proxies = list(settings.trusted_proxies)
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=bool(proxies),
            forwarded_allow_ips=proxies or None,
            timeout_graceful_shutdown=max(1, int(settings.shutdown_seconds)),
            backlog=BACKLOG,
        )
        server = uvicorn.Server(config)
        with suppress(SystemExit):  # from `_end`
            server.run(sockets=[listener])
    except (SettingFault, DomainError, OSError, ValueError) as error:
        _fail(str(error) or type(error).__name__)
    if not server.started:
        _fail("the server did not start; the log above says why")
    _leave()


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Inherited by every connection: one whose peer takes nothing for so long is reset by the kernel,
        # also while it drains what was buffered before its stream was cut.
        milliseconds = int(settings.send_timeout_seconds * 2000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            _fail(f"port {settings.port} on {settings.host} is in use")
        _fail(f"can't listen on {settings.host}:{settings.port}: {error.strerror or error}")
    listener.set_inheritable(False)  # Ray's processes must not keep the port open
    return listener


def address_of(settings: Settings, listener: socket.socket) -> str:
    """What a person on this machine may open."""
    port = listener.getsockname()[1]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{port}"


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def _leave() -> NoReturn:
    """End with 0. Everything is closed; native threads of Ray outlive its shutdown and have been seen to
    abort the process while the interpreter is taken down, so it isn't."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _fail(line: str) -> NoReturn:
    sys.stderr.write(f"error: {line}\n")
    sys.stderr.flush()
    sys.exit(1)


def main() -> None:
    """Serve as the environment says."""
    try:
        settings = Settings.from_env(os.environ)
    except SettingFault as fault:
        _fail(str(fault))
    serve(settings)


if __name__ == "__main__":
    main()
