"""Starts Ray and the hosts, and sees to it that every open execution has a host that lives.

    down --start--> up --(a host is unreachable for LOST_SECONDS)--> its executions are adopted
                     ^---------------------------------------------- it answers again

Ray restarts a host whose process died (its new incarnation recovers by itself). A host whose node is
gone, or that no longer exists in this set-up, never answers: another one adopts what it held. Adopting
is safe even when the lost host is merely slow, because the take-over event makes its writes conflict.

Ray's ports run code for whoever may talk to them, so the local cluster always gets token authentication
with a token of its own, and joining a cluster without it is refused (DESIGN 5).
"""

import asyncio
import ipaddress
import os
import secrets
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import ray
import structlog
from ray.exceptions import RayError

from actors import messages
from actors.client import ExecutionClient, HostLink
from actors.host import ExecutionHost, HostConfig
from runtime.errors import DomainError, Unavailable
from runtime.event_log import EventLog
from runtime.ids import HostName

log = structlog.get_logger(__name__)

NAMESPACE = "heliograph"
LOST_SECONDS = 10.0
"""A host silent for this long has its executions adopted by another."""

INSPECT_SECONDS = 2.0
OBJECT_STORE_BYTES = 128 * 1024 * 1024
"""Of a local cluster: payloads travel through the log and the blob store, not through Ray's."""

CALLS_AT_ONCE_MAX = 1_000


class RaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """``address`` empty: a cluster of our own on this machine, ended with this process.

    ``hosts`` 0: one for every two CPUs, at least one. ``cpus`` 0: what this process may use.
    """

    address: str = ""
    hosts: int = 0
    cpus: int = 0
    temp_dir: str = ""


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """``hosts``: name to reachable. ``problem`` says in one sentence why it is not ready."""

    ray: bool
    hosts: dict[str, bool]
    problem: str = ""

    @property
    def is_ready(self) -> bool:
        return self.ray and bool(self.hosts) and all(self.hosts.values())


class Supervisor:
    """Lives on the gateway's loop; everything of Ray that blocks happens on threads."""

    def __init__(
        self, settings: RaySettings, host: HostConfig, event_log: EventLog, client: ExecutionClient
    ) -> None:
        self._settings = settings
        self._host = host
        self._log = event_log
        self._client = client
        self._links: dict[HostName, HostLink] = {}
        self._handles: dict[HostName, Any] = {}
        self._silent_since: dict[HostName, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_up = False
        self._problem = "Ray is starting"
        self._gateway_id = uuid.uuid4().hex

    def open(self, on_ready: Callable[[], None] | None = None) -> None:
        """Begin starting, in the background; ``readiness`` tells how far it is."""
        self._task = asyncio.get_running_loop().create_task(self._run(on_ready))

    def readiness(self) -> Readiness:
        hosts = {str(name): link.is_reachable for name, link in self._links.items()}
        return Readiness(ray=self._is_up, hosts=hosts, problem=self._problem)

    async def close(self) -> None:
        """Let hosts write what they hold, then end what is ours."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for link in self._links.values():
            link.close()
        if self._is_up and not self._settings.address:
            closings = [handle.close.remote() for handle in self._handles.values()]
            if closings:
                await asyncio.to_thread(ray.wait, closings, num_returns=len(closings), timeout=10)
        if self._is_up:
            await asyncio.to_thread(ray.shutdown)

    async def _run(self, on_ready: Callable[[], None] | None) -> None:
        try:
            await asyncio.to_thread(self._start_ray)
        except (RayError, OSError, RuntimeError, ConnectionError, ValueError, Unavailable) as error:
            self._problem = f"Ray did not start: {error}"
            log.error("ray did not start", error=str(error))
            return
        self._is_up = True
        self._problem = "hosts are starting"
        for number in range(self._host_count()):
            self._add_host(HostName(f"host-{number}"))
        self._client.connect(self._links)
        while not all(link.is_reachable for link in self._links.values()):
            await asyncio.sleep(0.02)
        self._problem = ""
        if on_ready is not None:
            on_ready()
        while True:
            try:
                await self._inspect()
            except (DomainError, RayError) as error:
                log.warning("inspection failed, trying again", error=str(error))
            await asyncio.sleep(INSPECT_SECONDS)

    def _start_ray(self) -> None:
        settings = self._settings
        if settings.address:
            if os.environ.get("RAY_AUTH_MODE") == "disabled" and not _is_loopback(settings.address):
                raise Unavailable("refusing a Ray cluster beyond loopback without RAY_AUTH_MODE=token")
            ray.init(
                address=settings.address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False
            )
            return
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Prestarted workers would idle at 45 MB each: hosts and workers are started when work needs them.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        os.environ.setdefault("RAY_maximum_gcs_destroyed_actor_cached_count", "1000")
        options: dict[str, Any] = {"_temp_dir": settings.temp_dir} if settings.temp_dir else {}
        ray.init(
            num_cpus=settings.cpus or len(os.sched_getaffinity(0)),
            namespace=NAMESPACE,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _system_config={"enable_worker_prestart": False},
            **options,
        )

    def _host_count(self) -> int:
        if self._settings.hosts:
            return self._settings.hosts
        cpus = int(ray.cluster_resources().get("CPU", 1))
        return max(1, cpus // 2)

    def _add_host(self, name: HostName, *, dedicated: bool = False) -> HostLink:
        config = msgspec.structs.replace(self._host, name=name, dedicated=dedicated)
        detached = {"lifetime": "detached"} if self._settings.address else {}
        handle = ExecutionHost.options(  # pyright: ignore[reportAttributeAccessIssue]  # made by ray.remote
            name=name,
            namespace=NAMESPACE,
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=CALLS_AT_ONCE_MAX,
            enable_task_events=False,
            **detached,
        ).remote(msgspec.json.encode(config))
        link = HostLink(name, handle, self._gateway_id)
        link.open()
        self._handles[name] = handle
        self._links[name] = link
        return link

    async def _inspect(self) -> None:
        """Find open executions whose host does not answer, and give them to one that does."""
        now = asyncio.get_running_loop().time()
        living = [link for link in self._links.values() if link.is_reachable]
        for name, link in self._links.items():
            if link.is_reachable:
                self._silent_since.pop(name, None)
            else:
                self._silent_since.setdefault(name, now)
        if not living:
            return
        owners = await asyncio.to_thread(self._log.owners)
        for owner in owners:
            silent_since = self._silent_since.get(owner)
            is_known = owner in self._links
            if is_known and (silent_since is None or now - silent_since < LOST_SECONDS):
                continue
            heir = living[hash(owner) % len(living)]
            log.warning("adopting the executions of a lost host", owner=owner, heir=heir.name)
            await heir.send(messages.Adopt(owner))


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]").removeprefix("ray://")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
