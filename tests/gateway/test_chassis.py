"""The chassis: order of checks, envelopes by prefix, crashes, CORS, readiness, keys, reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from starlette.responses import Response

from gateway.call import Call
from gateway.context import Gateway
from gateway.envelopes import HOUSE
from gateway.keys import STALE_SECONDS
from gateway.routes import Dialect, Doc, Operation, Resource, RouteTable
from projections import execution_summary
from runtime.administration import Cause, fold_key, revoke_key
from runtime.errors import InvariantViolated
from runtime.event_log import Append, Chain
from runtime.ids import KeyId, key_stream
from tests.gateway.running_app import running


async def _unused(_: Call) -> Response:
    return Response()


def _resource(path: str) -> Resource:
    return Resource(path, {"GET": Operation(handler=_unused, scope="", doc=Doc(summary=""))})


def test_a_literal_segment_wins_and_a_dead_end_falls_back_to_the_parameter() -> None:
    paths = ("/a/{x}", "/a/b", "/a/b/c", "/a/{x}/d")
    table = RouteTable([Dialect("t", HOUSE, tuple(_resource(path) for path in paths))])

    def found(path: str) -> tuple[str, dict[str, str]] | None:
        match = table.match(path)
        return None if match is None else (match.resource.path, dict(match.values))

    assert found("/a/b") == ("/a/b", {})
    assert found("/a/b/") == ("/a/b", {})
    assert found("/a/z") == ("/a/{x}", {"x": "z"})
    assert found("/a/b/d") == ("/a/{x}/d", {"x": "b"})
    for path in ("/a/b//", "/a//d", "/", "/a", "/a/b/c/d", "//a/b"):
        assert found(path) is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/executions/a/b/c", b'{"detail":"Not found."}'),
        ("/v1/executionsX", b'{"error":{"code":"not_found","message":"Not found."}}'),
        ("/nowhere", b'{"error":{"code":"not_found","message":"Not found."}}'),
    ],
)
def test_the_prefix_of_an_unmatched_path_chooses_the_envelope(path: str, body: bytes) -> None:
    async def scenario() -> None:
        async with running() as app:
            answer = await app.client.get(path)
            assert (answer.status_code, answer.content) == (404, body)

    asyncio.run(scenario())


def test_a_crash_is_a_500_of_fixed_text(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with running() as app:

            async def crash(_: str) -> None:
                raise InvariantViolated("secret inside")

            monkeypatch.setattr(app.gateway.reads, "execution", crash)
            answer = await app.client.get("/v1/executions/x")
            assert (answer.status_code, answer.json()) == (500, {"detail": "An unexpected error occurred."})
            assert answer.headers["x-correlation-id"]

    asyncio.run(scenario())


def test_checks_come_in_the_order_of_the_gateway_rules() -> None:
    async def scenario() -> None:
        async with running(body_bytes_max=10) as app:
            url, large = "/v1/executions/greeting/async", b"x" * 11
            nobody = {"X-API-Key": "hg_nobody"}
            statuses = [
                (await app.client.put(url, content=large, headers=nobody)).status_code,
                (await app.client.post(url, content=large, headers=nobody)).status_code,
                (await app.client.post("/v1/executions/unknown/async", headers=nobody)).status_code,
                (await app.client.post("/v1/executions/unknown/async", content=b"{")).status_code,
                (await app.client.post(url, content=b"{")).status_code,
            ]
            assert statuses == [405, 413, 401, 404, 415]

    asyncio.run(scenario())


def test_cors_is_off_unless_set() -> None:
    preflight = {"origin": "https://app.example", "access-control-request-method": "POST"}

    async def scenario() -> None:
        async with running() as app:
            off = await app.client.options("/v1/executions/greeting/async", headers=preflight)
            assert off.status_code == 405
            assert "access-control-allow-origin" not in off.headers
        async with running(cors_origins=("https://app.example",)) as app:
            asked = preflight | {
                "access-control-request-headers": "x-api-key, idempotency-key, last-event-id"
            }
            on = await app.client.options("/v1/executions/greeting/async", headers=asked | {"X-API-Key": ""})
            assert on.status_code == 200
            assert on.headers["access-control-allow-origin"] == "https://app.example"

    asyncio.run(scenario())


def test_health_answers_before_the_hosts_are_up_and_starts_are_503() -> None:
    async def scenario() -> None:
        up = asyncio.Event()

        async def wait_for_ray(_: Gateway, __: Callable[[], None]) -> None:
            await up.wait()

        async with running(connect=wait_for_ray) as app:
            assert (await app.client.get("/health")).status_code == 200
            ready = await app.client.get("/ready")
            assert ready.status_code == 503
            assert ready.json()["parts"] == {"store": "ok", "runtime": "starting"}
            refused = await app.client.post("/v1/executions/greeting/async")
            assert (refused.status_code, refused.json()) == (503, {"detail": "Service unavailable."})
            assert refused.headers["retry-after"] == "1"
            assert app.gateway.store.query("SELECT COUNT(*) FROM executions") == [(0,)]

    asyncio.run(scenario())


def test_a_runtime_that_fails_to_start_is_named_by_ready() -> None:
    async def fail(_: Gateway, __: Callable[[], None]) -> None:
        raise OSError("no room for Ray")

    async def scenario() -> None:
        async with running(connect=fail) as app:
            ready = await app.client.get("/ready")
            assert (ready.status_code, ready.json()["parts"]["runtime"]) == (503, "failed: no room for Ray")

    asyncio.run(scenario())


def test_ready_and_metrics_speak_of_what_runs() -> None:
    async def scenario() -> None:
        async with running() as app:
            ready = await app.client.get("/ready")
            assert ready.json() == {"ready": True, "parts": {"store": "ok", "ray": "ok", "host-0": "ok"}}
            await app.client.get("/v1/executions/x")
            text = (await app.client.get("/metrics")).text
            assert 'heliograph_http_requests_total{dialect="executions",status="404"} 1.0' in text

    asyncio.run(scenario())


def test_a_revoked_key_stops_working_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with running() as app:
            assert (await app.client.get("/v1/executions/x")).status_code == 404
            log = app.gateway.log
            stream = key_stream(KeyId("first"))
            recorded = log.read(stream)
            events = [each.event() for each in recorded]
            revoked = revoke_key(fold_key(events), Cause(at=app.gateway.clock()))
            log.append([Append(stream, revoked, fold_key([*events, *revoked]), Chain(recorded[-1].hash()))])
            monkeypatch.setattr("gateway.keys.time.monotonic", _later(STALE_SECONDS + 1))
            assert (await app.client.get("/v1/executions/x")).status_code == 401

    asyncio.run(scenario())


def _later(seconds: float) -> Callable[[], float]:
    import time

    ahead = time.monotonic() + seconds
    return lambda: ahead


def test_an_installation_has_one_first_key() -> None:
    async def scenario() -> None:
        async with running() as app:
            assert app.gateway.keys.ensure_first(app.gateway.clock()) is None
            [(key_hash, scopes)] = app.gateway.store.query("SELECT key_hash, scopes FROM api_keys")
            assert len(key_hash) == 64
            assert scopes == '["admin"]'
            assert "ratelimit-limit" not in (await app.client.get("/v1/executions/x")).headers

    asyncio.run(scenario())


def test_reads_that_wait_share_one_query(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = execution_summary.get_many

    def counted(store: execution_summary.Reader, ids: list[str]) -> dict[str, execution_summary.ExecutionRow]:
        asked.append(len(ids))
        return real(store, ids)

    async def scenario() -> None:
        async with running() as app:
            started = await app.client.post("/v1/executions/greeting/async")
            execution_id = started.json()["execution_id"]
            monkeypatch.setattr(execution_summary, "get_many", counted)
            names = [f"unknown-{number}" for number in range(50)]
            first, *others = await asyncio.gather(
                *(app.gateway.reads.execution(name) for name in (execution_id, *names, *names))
            )
            assert first is not None
            assert others == [None] * 100
            assert sum(asked) <= 51
            assert len(asked) <= 2

    asyncio.run(scenario())


def test_the_openapi_document_names_every_route() -> None:
    async def scenario() -> None:
        async with running() as app:
            document = (await app.client.get("/openapi.json")).json()
            assert {"get", "delete"} <= set(document["paths"]["/v1/executions/{execution_id}"])
            assert "ExecutionStatus" in document["components"]["schemas"]

    asyncio.run(scenario())
