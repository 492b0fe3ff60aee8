"""The admin API, `/api/admin`: flows and their code, keys, secrets, MCP servers, executions, batches.

Scope: admin, but for batches and failed items, for which `run` and `read` will do. An admin key administers
the whole installation: every tenant's executions and keys, and, with `?tenant=`, other tenants' flows. The
gateway rules G1-G8 apply; failures are worded as `house_api` says.
"""

from __future__ import annotations

from gateway.dialects.admin import (
    batches,
    executions,
    failed_items,
    flows,
    hosts,
    keys,
    mcp_servers,
    packages,
    queues,
    secrets,
)
from gateway.envelopes import Fault
from gateway.house_api import envelope
from gateway.routes import Dialect
from gateway.settings import Settings

PREFIX = "/api/admin"

ENVELOPE = envelope(
    PREFIX,
    {
        "key_not_found": Fault(404, "API key not found.", "key_not_found"),
        "secret_not_found": Fault(404, "Secret not found.", "secret_not_found"),
        "host_not_found": Fault(404, "Host not found.", "host_not_found"),
        "package_not_found": Fault(404, "Package not found.", "package_not_found"),
        "batch_not_found": Fault(404, "Batch not found.", "batch_not_found"),
        "mcp_server_not_found": Fault(404, "MCP server not found.", "mcp_server_not_found"),
    },
)


def dialect(settings: Settings) -> Dialect:
    parts = (flows, packages, keys, secrets, mcp_servers, executions, failed_items, queues, hosts)
    found = tuple(resource for part in parts for resource in part.RESOURCES)
    return Dialect("admin", ENVELOPE, (*found, *batches.resources(settings)))
