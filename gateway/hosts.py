"""The gateway's way to Ray and the execution hosts, opened once the event loop runs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module

from actors.ray_settings import RaySettings, is_loopback, prepare_environment
from gateway.context import Gateway

GRACE_SECONDS = 10.0
"""What a running function gets to stop in after a cancellation, before it is killed (gateway rule G7)."""

Connect = Callable[[Gateway, Callable[[], None]], Awaitable[None]]
"""Sets `client` and `runtime` of the gateway and begins to start what they need; the second argument is
called when executions can start. On the event loop; must not block it."""


def is_on_this_machine(ray_address: str) -> bool:
    """Whether every node of the cluster at this address is on this machine, and may use its files."""
    return is_loopback(ray_address)


def _end_without_ray(reason: str) -> None:
    """Nothing brings a Ray of our own back in this process. Whoever runs servers starts another, which takes
    every execution over from the log; one that stayed would only refuse. Nothing here is worth closing:
    what was acknowledged is in the log, and the kernel ends what is left of Ray."""
    sys.stderr.write(f"error: {reason}; start the server again, and every execution goes on from the log\n")
    sys.stderr.flush()
    os._exit(1)


async def connect_ray(gateway: Gateway, on_ready: Callable[[], None]) -> None:
    """The hosts of `settings.ray_address`, or of a Ray started here."""
    settings = gateway.settings
    ray = RaySettings(
        address=settings.ray_address,
        hosts=settings.hosts,
        hosts_min=settings.hosts_min,
        hosts_max=settings.hosts_max,
        drain_seconds=settings.drain_seconds,
        cpus=settings.cpus,
        temp_dir=settings.ray_temp_dir,
        app_dir=settings.app_dir,
        agents_file=settings.agents_file,
    )
    prepare_environment(ray)
    # Importing Ray takes about half a second of CPU: in a thread, so that /health answers meanwhile.
    cluster = await asyncio.to_thread(import_module, "actors.ray_cluster")
    # Ray's start is mostly waiting for its servers: what they need from here is imported meanwhile.
    ray_start = asyncio.create_task(asyncio.to_thread(cluster.start, ray))
    await asyncio.to_thread(import_module, "actors.supervision")
    from actors.agents.home import AgentSettings
    from actors.client import ExecutionClient
    from actors.heap import settle
    from actors.host_config import HostConfig
    from actors.step_call import WorkerLimits
    from actors.supervision import Supervisor
    from actors.worker_pool import PoolSettings

    client = ExecutionClient(gateway.log, gateway.blobs, gateway.log_hops.run)
    supervisor = Supervisor(
        ray,
        HostConfig(
            name="",
            store=gateway.store_env,
            blob_url=settings.blobs_url,
            running_max=settings.running_max,
            queued_max=settings.queued_max,
            tenant_running_max=settings.tenant_running_max,
            files_root=settings.files_root,
            egress_allow=",".join(settings.http_allow),
            sources_allow=settings.sources_allow,
            joined=bool(settings.ray_address),
            pool=PoolSettings(
                workers_max=settings.workers_max,
                limits=WorkerLimits(
                    memory_max_mb=settings.worker_memory_max_mb,
                    grace_seconds=GRACE_SECONDS,
                    object_cache_bytes_max=settings.object_cache_bytes_max,
                ),
            ),
            agents=AgentSettings(
                model=settings.model,
                model_url=settings.model_url,
                models_file=settings.models_path,
                secret_key_file=settings.secret_key_file,
                checkouts=settings.checkouts,
                tool_allow=",".join(settings.tool_allow),
                model_calls_max=settings.model_calls_max,
                mcp_processes_max=settings.mcp_processes_max,
                checkout_bytes_max=settings.checkout_bytes_max,
                checkout_seconds_max=settings.checkout_seconds_max,
            ),
            log_file=settings.host_logs,
            log_level=settings.log_level,
        ),
        gateway.log,
        client,
        _end_without_ray,
    )

    def ready() -> None:
        settle()
        on_ready()

    supervisor.open(ready, ray_start)
    gateway.client = client
    gateway.runtime = gateway.cluster = supervisor
