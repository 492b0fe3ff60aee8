"""The audit API, `/api/audit`: what happened, whatever the door it came in by. Scope: audit.

Read-only. A key sees its own tenant; an admin key sees all. The gateway rules G1-G5 and G8 apply;
failures are worded as `house_api` says.
"""

from __future__ import annotations

from gateway.dialects.audit import executions, feed, history, outputs
from gateway.house_api import envelope
from gateway.routes import Dialect
from gateway.settings import Settings

PREFIX = "/api/audit"

ENVELOPE = envelope(PREFIX)


def dialect(settings: Settings) -> Dialect:
    parts = (executions, history, outputs, feed)
    return Dialect("audit", ENVELOPE, tuple(resource for part in parts for resource in part.RESOURCES))
