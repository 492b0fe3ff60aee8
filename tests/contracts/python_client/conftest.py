"""Both clients of the suite's server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, cast

import pytest

from gateway.client import AsyncClient, Client
from tests.contracts.live_server import LiveServer, flow
from tests.contracts.python_client import authored
from tests.contracts.python_client.both import Awaiting

FLOWS = (
    flow(
        "py-chain",
        {"id": "greet", "kind": "template", "template": "Hello {{ inputs.who }}"},
        {"id": "shout", "kind": "select", "value": "${nodes.greet}"},
    ),
    flow("py-broken", {"id": "bad", "kind": "template", "template": "{{ 1 // inputs.zero }}"}),
    flow("py-waiting", {"id": "ask", "kind": "wait_for_signal", "signal": "go"}),
    flow("py-short", {"id": "ask", "kind": "wait_for_signal", "signal": "go"}, timeout_seconds=0.05),
    flow("py-large", {"id": "big", "kind": "template", "template": "{{ 'x' * 900000 }}"}),
    flow(
        "py-wide-broken",
        {
            "id": "wide",
            "kind": "map",
            "over": "inputs.items",
            "chunk": {"size": 10},
            "on_error": "keep",
            "each": {"kind": "template", "template": "{{ 1 // item }}"},
        },
    ),
    flow(
        "py-wide",
        {
            "id": "wide",
            "kind": "map",
            "over": "inputs.items",
            "chunk": {"size": 10},
            "each": {"kind": "select", "value": {"n": "${item}", "place": "${index}"}},
        },
    ),
)


@pytest.fixture(scope="package")
def python_server(live_server: LiveServer) -> LiveServer:
    live_server.publish(*FLOWS)
    with Client(live_server.url, live_server.first_key) as client:
        for written in (
            authored.hello,
            authored.values,
            authored.one_table,
            authored.picking,
            authored.approval,
        ):
            client.publish(written, modules=())  # the workers of the suite have this folder
    return live_server


@pytest.fixture(scope="package", params=["blocking", "asynchronous"])
def client(request: pytest.FixtureRequest, python_server: LiveServer) -> Iterator[Client]:
    """The blocking client, and the asynchronous one in its clothes."""
    if request.param == "blocking":
        with Client(python_server.url, python_server.first_key) as made:
            yield made
        return
    with asyncio.Runner() as runner:
        made_async: Any = AsyncClient(python_server.url, python_server.first_key)
        yield cast("Client", Awaiting(made_async, runner))
        runner.run(made_async.close())
