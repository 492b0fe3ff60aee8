"""What a host is told when it is made; travels as JSON, so it holds no secret beyond the store's address."""

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from actors.agents.home import AgentSettings
from actors.dedicated import devices_of
from actors.worker_pool import PoolSettings
from runtime.event_log import LONE_POOL_SIZE


class HostConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a host needs to know; travels as JSON.

    ``running_max``: executions admitted at once. ``queued_max``: accepted executions that wait for a
    place; beyond it a start is refused (``Overloaded``). ``tenant_running_max``: places one tenant may have,
    0 for all. ``egress_allow``: private networks and hosts that
    http_request nodes and sources of maps may reach, as ``EgressRules.parse`` reads it.
    ``sources_allow``: URL prefixes below which sources may lie. ``log_file``: empty leaves logging as it
    is. ``dedicated``: lives for one execution and ends with it. ``joined``: on a cluster that others started.
    """

    name: str
    store: dict[str, str]
    blob_url: str
    running_max: int = 1_000
    queued_max: int = 20_000
    tenant_running_max: int = 0
    files_root: str = ""
    egress_allow: str = ""
    sources_allow: tuple[str, ...] = ()
    log_file: str = ""
    log_level: str = "info"
    pool: PoolSettings = PoolSettings()
    agents: AgentSettings = AgentSettings()
    dedicated: bool = False
    joined: bool = False

    def worker_pool(self, environment: Mapping[str, str]) -> PoolSettings:
        """Of workers that open and store payloads where the host does, and use a dedicated host's devices."""
        devices = devices_of(environment) if self.dedicated else {}
        limits = replace(self.pool.limits, blob_url=self.blob_url, devices=devices)
        return replace(self.pool, limits=limits)

    @property
    def log_env(self) -> dict[str, str]:
        """What the log is opened with: a process with one execution holds fewer connections to a server."""
        grown = int(self.store.get("POSTGRES_MAX_OVERFLOW", 0))
        if not self.dedicated or grown < LONE_POOL_SIZE:
            return self.store
        return {**self.store, "POSTGRES_MAX_OVERFLOW": str(LONE_POOL_SIZE - 1)}
