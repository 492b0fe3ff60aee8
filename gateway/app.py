"""Where the parts are put together. Nothing else opens anything; importing this opens nothing.

`create_app(settings)` gives the ASGI application. Its lifespan opens the log, the read store and the
blobs, then starts Ray and the hosts in a thread: `/health` answers meanwhile, and a request that needs the
hosts gets 503 with Retry-After.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import structlog
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from actors.egress import EgressGuard, EgressRules
from gateway import health, openapi, telemetry
from gateway.agent_runs import AgentRuns
from gateway.batches import Batches
from gateway.catalogue import Catalogue
from gateway.chassis import Chassis
from gateway.context import Gateway, now
from gateway.dialects import CALLBACK_BODIES, CALLBACK_URLS, DIALECTS
from gateway.hops import Hops
from gateway.host_metrics import HostMetrics
from gateway.hosts import Connect, connect_ray
from gateway.idempotency import CREATE as CREATE_IDEMPOTENCY
from gateway.idempotency import Idempotency
from gateway.keys import Keys, NewKey
from gateway.limits import Limits
from gateway.log_metrics import LogMetrics
from gateway.mcp_servers import McpServers
from gateway.metrics import Metrics
from gateway.reads import Reads
from gateway.registry import CREATE as CREATE_NAMES
from gateway.registry import Registry
from gateway.reruns import Reruns
from gateway.routes import Dialect
from gateway.secrets import Secrets
from gateway.settings import SettingFault, Settings
from gateway.store_pulse import StorePulse
from gateway.webhook_signing import Signatures, stored_secret
from gateway.webhooks import CREATE as CREATE_CLAIMS
from gateway.webhooks import Callbacks
from projections.runner import Runner
from projections.store import ReadStore
from runtime.blob_store import BlobStore
from runtime.errors import Unavailable
from runtime.event_log import EventLog
from runtime.vault import Vault, load_key

log = structlog.get_logger("gateway.app")

UPKEEP_SECONDS = 3_600.0
"""Partitions are made at least a day ahead."""

STORE_THREADS = 4
"""Questions to a store over a network at a time, of each kind; one in this process answers one at a time."""

_ALLOWED_HEADERS = ("X-API-Key", "Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID")
_SHOWN_HEADERS = (
    "X-Correlation-Id",
    "Location",
    "Retry-After",
    "Idempotency-Replayed",
    "X-Ability-Request-Id",
    "X-Total-Count",
    "X-API-Version",
    "RateLimit-Limit",
    "RateLimit-Remaining",
    "RateLimit-Reset",
    "RateLimit-Policy",
)


class GatewayApp(Starlette):
    """The chassis in place of Starlette's stack of middleware, and FastAPI's pages behind it."""

    def __init__(
        self,
        settings: Settings,
        dialects: tuple[Dialect, ...],
        metrics: Metrics,
        traced: Callable[[ASGIApp], ASGIApp],
        lifespan: Lifespan[Starlette],
    ) -> None:
        super().__init__(lifespan=lifespan)
        self.settings = settings
        self.dialects = dialects
        self.metrics = metrics
        self._traced = traced
        self._pages: ASGIApp | None = None

    def build_middleware_stack(self) -> ASGIApp:
        inner = self._serve_what_no_contract_owns
        chassis = Chassis(inner, self.state, self.dialects, self.metrics, self.settings.log_requests)
        stack = self._traced(chassis)
        origins = self.settings.cors_origins
        if not origins:
            return stack
        return CORSMiddleware(
            stack,
            allow_origins=origins,
            allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=_ALLOWED_HEADERS,
            expose_headers=_SHOWN_HEADERS,
            max_age=600,
        )

    async def _serve_what_no_contract_owns(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.router(scope, receive, send)
            return
        if self._pages is None:
            self._pages = await asyncio.to_thread(self._load_pages)
        await self._pages(scope, receive, send)

    def _load_pages(self) -> ASGIApp:
        from gateway.api_pages import api_pages  # takes a quarter of a second; no start should wait for it

        return api_pages(self.openapi, _version())

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document of all contracts."""
        return openapi.document(self.dialects, _version())


def create_app(
    settings: Settings,
    *,
    connect: Connect = connect_ray,
    on_open: Callable[[Gateway, NewKey | None], None] | None = None,
    on_ready: Callable[[Gateway], None] | None = None,
) -> GatewayApp:
    """The whole gateway. ``on_open`` gets the first key when one was made; ``on_ready``: hosts are up."""
    metrics = Metrics()
    dialects = (health.dialect(settings), *(build(settings) for build in DIALECTS))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        gateway, first_key = await asyncio.to_thread(_open, settings, metrics)
        app.state.gateway = gateway
        callbacks = await asyncio.to_thread(_callbacks, gateway)
        runner = Runner(gateway.log, gateway.store)
        metrics.registry.register(LogMetrics(gateway.store, runner))
        metrics.registry.register(HostMetrics(gateway))
        runner.start()
        if on_open is not None:
            on_open(gateway, first_key)
        tasks = [
            asyncio.create_task(_connect(gateway, connect, on_ready)),
            *_pulse(gateway),
            asyncio.create_task(gateway.idempotency.purge_regularly()),
            asyncio.create_task(_keep_up(gateway)),
            asyncio.create_task(callbacks.run()),
            asyncio.create_task(gateway.agent_runs.memories.run()),
            asyncio.create_task(gateway.batches.run()),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if gateway.runtime is not None:
                await gateway.runtime.close()
            await asyncio.to_thread(runner.stop)
            await asyncio.to_thread(_close, gateway)

    return GatewayApp(settings, dialects, metrics, telemetry.tracing(os.environ), lifespan)


def _open(settings: Settings, metrics: Metrics) -> tuple[Gateway, NewKey | None]:
    if not settings.store or not settings.blobs:
        os.makedirs(settings.data_dir, exist_ok=True)
    env = settings.store_env
    event_log = EventLog.open(env)
    store = ReadStore.over(event_log)
    # Exclusively, for PostgreSQL refuses one of two who make the same table at once, if it exists or not.
    with store.transaction(exclusive=True) as transaction:
        for statement in (*CREATE_IDEMPOTENCY, *CREATE_CLAIMS, *CREATE_NAMES):
            transaction.execute(statement)
    keys = Keys(event_log, store)
    first_key = keys.ensure_first(now())
    threads = STORE_THREADS if settings.is_on_postgres else 1
    registry = Registry(event_log, store, threads=threads)
    secrets = Secrets(_vault(settings), registry)
    gateway = Gateway(
        settings=settings,
        store_env=env,
        log=event_log,
        store=store,
        blobs=BlobStore(settings.blobs_url),
        catalogue=Catalogue(event_log, store),
        registry=registry,
        secrets=secrets,
        mcp_servers=McpServers(registry, secrets),
        keys=keys,
        limits=Limits(settings, store, metrics),
        idempotency=Idempotency(store, settings.idempotency_hours),
        reads=Reads(store),
        hops=Hops(threads),
        log_hops=Hops(threads),
        metrics=metrics,
        egress=EgressGuard(_egress_rules("HELIOGRAPH_CALLBACK_ALLOW", settings.callback_allow)),
    )
    gateway.agent_runs = AgentRuns(gateway)
    gateway.batches = Batches(gateway)
    gateway.reruns = Reruns(gateway)
    _egress_rules("HELIOGRAPH_HTTP_ALLOW", settings.http_allow)  # the hosts read it; a fault is told here
    return gateway, first_key


def _vault(settings: Settings) -> Vault:
    """The key is made here at an installation's first start: hosts only ever read it."""
    given = os.environ.get("HELIOGRAPH_SECRET_KEY", "")
    try:
        key = load_key(given, settings.secret_key_file, create=True)
    except ValueError as error:
        # The value is left out: a secret has no place in a log.
        name = "HELIOGRAPH_SECRET_KEY" if given.strip() else settings.secret_key_file
        raise SettingFault(name, "...", str(error)) from None
    return Vault(settings.blobs_url, key)


def _egress_rules(key: str, entries: tuple[str, ...]) -> EgressRules:
    listed = ",".join(entries)
    try:
        return EgressRules.parse(listed)
    except ValueError as error:
        raise SettingFault(key, listed, str(error)) from None


def _callbacks(gateway: Gateway) -> Callbacks:
    secrets = gateway.settings.webhook_secrets or (stored_secret(gateway.settings.data_dir),)
    try:
        signatures = Signatures(secrets)
    except ValueError as error:
        # The value is left out: a secret has no place in a log.
        raise SettingFault("HELIOGRAPH_WEBHOOK_SECRETS", "...", str(error)) from None
    bodies = {source: partial(render, gateway) for source, render in CALLBACK_BODIES.items()}
    choosers = {source: partial(choose, gateway) for source, choose in CALLBACK_URLS.items()}
    return Callbacks(gateway.log, gateway.store, gateway.egress, signatures, bodies, choosers)


async def _keep_up(gateway: Gateway) -> None:
    """The log's own upkeep, as often as it may be needed."""
    while True:
        await asyncio.sleep(UPKEEP_SECONDS)
        try:
            await asyncio.to_thread(gateway.log.upkeep)
        except Unavailable as error:
            log.warning("upkeep_failed", error=str(error))


async def _connect(gateway: Gateway, connect: Connect, on_ready: Callable[[Gateway], None] | None) -> None:
    try:
        await connect(gateway, lambda: on_ready(gateway) if on_ready is not None else None)
    except Exception as error:
        gateway.startup_fault = f"failed: {error or type(error).__name__}"
        log.exception("runtime_start_failed")


def _pulse(gateway: Gateway) -> list[asyncio.Task[None]]:
    """A file on this machine either answers or fails; a server may do neither."""
    if not gateway.settings.is_on_postgres:
        return []
    gateway.pulse = StorePulse(lambda: gateway.store.query("SELECT 1"))
    return [asyncio.create_task(gateway.pulse.run())]


def _close(gateway: Gateway) -> None:
    if gateway.pulse is not None:
        gateway.pulse.close()
    gateway.egress.close()
    for each in (gateway.reads, gateway.hops, gateway.log_hops, gateway.registry):
        each.close()
    gateway.log.close()


def _version() -> str:
    try:
        return version("heliograph")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0"
