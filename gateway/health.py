"""`/health`, `/ready`, `/metrics`: for whoever runs the server.

No key is asked for, and nothing secret is shown.
"""

from __future__ import annotations

import asyncio

import msgspec
from starlette.responses import Response

from gateway.call import Call
from gateway.envelopes import HOUSE
from gateway.routes import Dialect, Doc, Operation, Resource
from gateway.settings import Settings
from runtime.errors import DomainError

_encode = msgspec.json.Encoder().encode

STORE_SECONDS = 2.0
"""A store that doesn't answer within this long is not ready."""

_NO_STORE = {"cache-control": "no-store"}


async def health(call: Call) -> Response:
    """The process serves requests; says nothing about Ray."""
    return Response(_encode({"status": "ok"}), 200, _NO_STORE, "application/json")


async def ready(call: Call) -> Response:
    """200 once executions can be started, else 503 with what is missing."""
    parts = {"store": await _store_state(call), **_runtime_state(call)}
    is_ready = all(state == "ok" for state in parts.values())
    body = _encode({"ready": is_ready, "parts": parts})
    return Response(body, 200 if is_ready else 503, _NO_STORE, "application/json")


async def _store_state(call: Call) -> str:
    if call.gateway.pulse is not None and call.gateway.pulse.is_away:
        return "unavailable: gives no answer"
    try:
        async with asyncio.timeout(STORE_SECONDS):
            await asyncio.to_thread(call.gateway.store.query, "SELECT 1")
    except (DomainError, TimeoutError) as error:
        return f"unavailable: {error or type(error).__name__}"
    return "ok"


def _runtime_state(call: Call) -> dict[str, str]:
    gateway = call.gateway
    if gateway.startup_fault:
        return {"runtime": gateway.startup_fault}
    if gateway.runtime is None:
        return {"runtime": "starting"}
    readiness = gateway.runtime.readiness()
    parts = {"ray": "ok" if readiness.ray else readiness.problem or "starting"}
    for name, is_reachable in readiness.hosts.items():
        parts[name] = "ok" if is_reachable else "unreachable"
    if not readiness.is_ready and all(state == "ok" for state in parts.values()):
        parts["hosts"] = readiness.problem or "starting"
    return parts


async def metrics(call: Call) -> Response:
    text = await asyncio.to_thread(call.gateway.metrics.text)
    return Response(text, 200, _NO_STORE, "text/plain; version=0.0.4; charset=utf-8")


def dialect(settings: Settings) -> Dialect:
    return Dialect(
        "operations",
        HOUSE,
        (
            Resource(
                "/health", {"GET": Operation(handler=health, scope="", doc=Doc(summary="The process serves"))}
            ),
            Resource(
                "/ready", {"GET": Operation(handler=ready, scope="", doc=Doc(summary="Executions can start"))}
            ),
            Resource(
                "/metrics",
                {"GET": Operation(handler=metrics, scope="", doc=Doc(summary="Prometheus metrics"))},
            ),
        ),
    )
