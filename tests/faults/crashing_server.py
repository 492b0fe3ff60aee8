"""The server with crash points: the real one, put together with a store and wrappers that have them.

Its environment names, beside the settings, the folder of the orders (`crash_points.KEY`) and where hosts
live: `FAULT_HOSTS=local` keeps one in this process, so that a start takes a second instead of Ray's six and
everything dies together; otherwise they are Ray's. `FAULT_IMPATIENT` shortens the time to a take-over.
"""

from __future__ import annotations

import os
from typing import Any

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import gateway.app
import gateway.idempotency
import gateway.serve
import gateway.webhooks
import projections.runner
import runtime.event_log
from gateway.hosts import Connect, connect_ray
from gateway.settings import Settings
from runtime.event_log import store_env
from tests.faults import crash_points

POINTS = crash_points.crash_points(os.environ[crash_points.KEY])

LEASE_SECONDS = 1
"""How long what a gateway reserved or claimed outlives it; the length is not what is tested."""


READER_REST_SECONDS = 0.02
"""Pause between two commits of the read models, so that even a fast round makes several to die at."""

IMPATIENT_SECONDS = 1.0
"""With `FAULT_IMPATIENT` a host that says nothing for a few of these is lost, instead of after 8 s."""


def crashing_store_env(url: str, *args: Any, **options: Any) -> dict[str, str]:
    env = store_env(url, *args, **options)
    if env["PERSISTENCE_MODULE"] != "projections.stores.sqlite":
        return env
    return env | {
        "PERSISTENCE_MODULE": "tests.faults.crashing_store",
        crash_points.KEY: os.environ[crash_points.KEY],
    }


def crashing_client(guard: Any) -> httpx.AsyncClient:
    """The callbacks' client: a point before a request leaves, and one when its answer began."""

    async def before(_: httpx.Request) -> None:
        POINTS.reach("callback.before")

    async def after(_: httpx.Response) -> None:
        POINTS.reach("callback.after")

    client = _vetted_client(guard)
    client.event_hooks = {"request": [before], "response": [after]}
    return client


def crashing_app(settings: Settings, **options: Any) -> ASGIApp:
    """The application: points before and after each acknowledgement and each piece of a stream."""
    app = _create_app(settings, **options)

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        point = "ack" if scope["method"] == "POST" else "piece" if "/stream" in scope["path"] else "read"
        accepted = False

        async def watched(message: Message) -> None:
            nonlocal accepted
            if message["type"] == "http.response.start":
                accepted = message["status"] < 300
            is_whole = message["type"] == "http.response.body" and (
                point == "piece" or not message.get("more_body")
            )
            if accepted and message["type"] == "http.response.start":
                POINTS.reach(f"{point}.before")
            await send(message)
            if accepted and is_whole:
                POINTS.reach(f"{point}.after")

        await app(scope, receive, watched)

    return answer


def impatient(connect: Connect) -> Connect:
    """With `FAULT_IMPATIENT` set: shorten the time to a take-over."""

    async def connect_and_hurry(opened: Any, on_ready: Any) -> None:
        await connect(opened, on_ready)
        if os.environ.get("FAULT_IMPATIENT"):
            # Only now: importing these imports Ray, whose environment `connect` has prepared.
            import actors.adoption
            import actors.host_link
            import actors.supervision

            actors.host_link.SILENCE_SECONDS = actors.host_link.SILENCE_GRACE_SECONDS = IMPATIENT_SECONDS
            actors.host_link.ANSWER_SECONDS_MAX = 3 * IMPATIENT_SECONDS
            actors.supervision.RENEW_SECONDS = IMPATIENT_SECONDS
            actors.adoption.SILENT_SECONDS = actors.adoption.RESTART_SECONDS = IMPATIENT_SECONDS

    return connect_and_hurry


_vetted_client = gateway.webhooks.vetted_client
_create_app = gateway.app.create_app


def main() -> None:
    # The settings take it from there whenever they are asked.
    runtime.event_log.store_env = crashing_store_env
    gateway.webhooks.vetted_client = crashing_client
    gateway.idempotency.LEASE_SECONDS = LEASE_SECONDS
    gateway.webhooks.CLAIM_SECONDS = LEASE_SECONDS
    projections.runner.REST_SECONDS_MIN = READER_REST_SECONDS
    setattr(gateway.serve, "create_app", crashing_app)  # noqa: B010 - any ASGI application will do for uvicorn
    connect: Connect = connect_ray
    if os.environ.get("FAULT_HOSTS") == "local":
        from tests.faults.local_host import connect_local

        connect = connect_local
    gateway.serve.serve(Settings.from_env(os.environ), connect=impatient(connect))


if __name__ == "__main__":
    main()
