"""The gateway's way to Ray and the execution hosts, opened once the event loop runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from importlib import import_module

from actors.ray_settings import RaySettings, prepare_environment
from gateway.context import Gateway

Connect = Callable[[Gateway, Callable[[], None]], Awaitable[None]]
"""Sets `client` and `runtime` of the gateway and begins to start what they need; the second argument is
called when executions can start. On the event loop; must not block it."""


async def connect_ray(gateway: Gateway, on_ready: Callable[[], None]) -> None:
    """The hosts of `settings.ray_address`, or of a Ray started here."""
    settings = gateway.settings
    ray = RaySettings(
        address=settings.ray_address,
        hosts=settings.hosts,
        cpus=settings.cpus,
        temp_dir=settings.ray_temp_dir,
        app_dir=settings.app_dir,
    )
    prepare_environment(ray)
    # Importing Ray takes about a second of CPU: in a thread, so that /health answers meanwhile.
    await asyncio.to_thread(import_module, "actors.supervision")
    from actors.client import ExecutionClient
    from actors.host import HostConfig
    from actors.supervision import Supervisor

    client = ExecutionClient(gateway.log, gateway.blobs)
    supervisor = Supervisor(
        ray,
        HostConfig(
            name="",
            store=gateway.store_env,
            blob_url=settings.blobs_url,
            running_max=settings.running_max,
            queued_max=settings.queued_max,
            files_root=settings.files_root,
            egress_allow=",".join(settings.http_allow),
            # A cluster's hosts may live on other machines: there Ray keeps their logs.
            log_file="-"
            if settings.ray_address
            else os.path.join(os.path.abspath(settings.data_dir), "logs"),
            log_level=settings.log_level,
        ),
        gateway.log,
        client,
    )
    supervisor.open(on_ready)
    gateway.client = client
    gateway.runtime = supervisor
