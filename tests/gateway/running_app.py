"""The real application in the test's own event loop, over an in-memory log and an inline host."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import httpx

from gateway.app import create_app
from gateway.context import Gateway
from gateway.hosts import Connect
from gateway.keys import NewKey
from gateway.settings import Settings
from runtime.administration import Cause
from tests.gateway.inline_host import InlineHost, connect_inline

GREETING: dict[str, Any] = {
    "heliograph": 1,
    "id": "greeting",
    "nodes": [{"id": "hello", "kind": "template", "template": "Hello"}],
}


class Running(NamedTuple):
    gateway: Gateway
    host: InlineHost
    client: httpx.AsyncClient
    settings: Settings


@asynccontextmanager
async def running(connect: Connect = connect_inline, **settings: Any) -> AsyncGenerator[Running]:
    """The application with one published flow, `greeting`, and a client that holds the first key."""
    keys: list[NewKey] = []

    def opened(_: Gateway, first_key: NewKey | None) -> None:
        if first_key is not None:
            keys.append(first_key)

    with tempfile.TemporaryDirectory() as folder:
        given = Settings(store="memory://", blobs=str(Path(folder) / "blobs"), data_dir=folder, **settings)
        app = create_app(given, connect=connect, on_open=opened)
        async with app.router.lifespan_context(app):
            gateway: Gateway = app.state.gateway
            await gateway.catalogue.publish("default", GREETING, Cause(at=gateway.clock()))
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            headers = {"X-API-Key": keys[0].secret}
            async with httpx.AsyncClient(
                transport=transport, base_url="http://test", headers=headers
            ) as client:
                yield Running(gateway, cast("InlineHost", gateway.client), client, given)
