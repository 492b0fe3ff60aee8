"""Batches over a real log, with a host that records what the test says: counts, rounds, items, results."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pyarrow.parquet
import pytest

from gateway.batch_documents import MAP_NODE
from gateway.batches import Batches
from gateway.keys import FIRST_TENANT
from projections.execution_summary import get
from projections.retention import ARCHIVE
from runtime import commands
from runtime.administration import Cause
from runtime.datasets import ItemFailure, write_failures, write_lines
from runtime.errors import Unavailable
from runtime.events import BlobRef, ChunkResult, FileDescriptor, StepError
from runtime.ids import SECOND, NodeId
from runtime.items_file import given_items
from tests.gateway.running_app import GREETING, Running, running

BATCHES = "/api/admin/batches"
NODE = NodeId(MAP_NODE)
WRONG = StepError(type="InvalidInput", message="who: is required")

Outcome = Any
"""A result, or `WRONG`."""


async def new_batch(app: Running, count: int = 4, **fields: Any) -> dict[str, Any]:
    body = {"flow": "greeting", "inputs": [{"n": n} for n in range(count)], **fields}
    answer = await app.client.post(BATCHES, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def shown(app: Running, batch_id: str) -> dict[str, Any]:
    answer = await app.client.get(f"{BATCHES}/{batch_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def begin(app: Running, execution_id: str) -> None:
    at = app.gateway.clock()
    await app.host.send(execution_id, commands.Admit(at=at))
    await app.host.send(execution_id, commands.StartNode(at=at, node_id=NODE))


async def record(
    app: Running, execution_id: str, first: int, outcomes: Sequence[Outcome], items: Sequence[Any] = ()
) -> None:
    """One chunk: ``items`` are the inputs of the failed ones, in order."""
    blobs = app.gateway.blobs
    inputs = iter(items)
    failures = [
        ItemFailure(index=first + at, error=one, item=msgspec.Raw(msgspec.json.encode(next(inputs, None))))
        for at, one in enumerate(outcomes)
        if isinstance(one, StepError)
    ]
    lines = [b"null" if isinstance(one, StepError) else msgspec.json.encode(one) for one in outcomes]
    chunk = ChunkResult(
        first=first,
        items=len(outcomes),
        failed=len(failures),
        results=write_lines(blobs, lines),
        errors=write_failures(blobs, failures) if failures else None,
    )
    at = app.gateway.clock()
    command = commands.RecordChunks(at=at, node_id=NODE, attempt=1, source="s", chunks=(chunk,))
    await app.host.send(execution_id, command)


async def complete(app: Running, execution_id: str) -> None:
    at = app.gateway.clock()
    await app.host.send(execution_id, commands.RecordCompleted(at=at, node_id=NODE, attempt=1, output={}))
    await app.host.send(execution_id, commands.Complete(at=at, output={}))


async def results(app: Running, batch_id: str) -> list[dict[str, Any]]:
    answer = await app.client.get(f"{BATCHES}/{batch_id}/results")
    assert answer.status_code == 200
    return [msgspec.json.decode(line) for line in answer.content.splitlines()]


async def failed(app: Running, batch_id: str, **query: Any) -> dict[str, Any]:
    return (await app.client.get(f"{BATCHES}/{batch_id}/items", params={"status": "failed", **query})).json()


def counts(batch: Mapping[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(batch["counts"][name] for name in names)


def test_counts_follow_the_recorded_chunks() -> None:
    async def scenario() -> None:
        async with running() as app:
            batch = await new_batch(app)
            assert counts(batch, "total", "queued", "completed") == (4, 4, 0)
            [execution] = batch["rounds"][0]["executions"]
            await begin(app, execution)
            await record(app, execution, 0, ["a", WRONG], [{"n": 1}])
            half = await shown(app, batch["batch_id"])
            assert half["status"] == "running"
            assert counts(half, "queued", "running", "completed", "failed") == (2, 0, 1, 1)
            await record(app, execution, 2, ["c", "d"])
            await complete(app, execution)
            whole = await shown(app, batch["batch_id"])
            assert whole["status"] == "completed"
            assert counts(whole, "queued", "completed", "failed", "cancelled") == (0, 3, 1, 0)
            assert whole["rate"] > 0

    asyncio.run(scenario())


def test_a_batch_whose_start_failed_is_started_by_whoever_follows_the_log() -> None:
    async def scenario() -> None:
        async with running() as app:
            app.host.fault = Unavailable("away")
            batch = await new_batch(app)
            assert batch["status"] == "queued"
            [execution] = batch["rounds"][0]["executions"]
            async with asyncio.timeout(20):
                while get(app.gateway.store, execution) is None:
                    await app.gateway.batches.follow_once()
            assert set(app.host.started) == {execution}

    asyncio.run(scenario())


def test_a_batch_whose_executions_were_archived_says_so_and_is_never_started_again() -> None:
    async def scenario() -> None:
        async with running() as app:
            batch = await new_batch(app)
            before = app.gateway.clock() + SECOND
            cause = Cause(at=app.gateway.clock())
            await app.gateway.registry.create(FIRST_TENANT, ARCHIVE, {"url": "file", "before": before}, cause)
            app.gateway.store.execute("DELETE FROM executions")
            started = list(app.host.started)
            assert (await shown(app, batch["batch_id"]))["status"] == "archived"
            for verb in ("pause", "cancel", "retry-failed"):
                answer = await app.client.post(f"{BATCHES}/{batch['batch_id']}/{verb}", json={})
                assert answer.status_code == 409
                assert "archived" in answer.json()["error"]["message"]
            # Another gateway that reads the log from its beginning.
            other = Batches(app.gateway)
            other._following._reader = "other"  # pyright: ignore[reportPrivateUsage]
            while await other.follow_once():
                pass
            assert app.host.started == started

    asyncio.run(scenario())


def test_the_same_key_gives_the_same_batch_and_one_execution() -> None:
    async def scenario() -> None:
        async with running() as app:
            app.client.headers["Idempotency-Key"] = "may"
            one, two = await new_batch(app), await new_batch(app)
            assert one["batch_id"] == two["batch_id"]
            del app.client.headers["Idempotency-Key"]
            listed = (await app.client.get(BATCHES)).json()
            assert listed["total"] == 1
            assert len(set(app.host.started)) == 1

    asyncio.run(scenario())


def test_retried_items_take_the_place_of_the_failed_ones() -> None:
    async def scenario() -> None:
        async with running() as app:
            batch_id = (batch := await new_batch(app, 5))["batch_id"]
            [first] = batch["rounds"][0]["executions"]
            await begin(app, first)
            # Chunks are recorded as they end, not in the order of items.
            await record(app, first, 3, [WRONG, "e"], [{"n": 3}])
            await record(app, first, 0, ["a", WRONG, WRONG], [{"n": 1}, {"n": 2}])
            early = await app.client.post(f"{BATCHES}/{batch_id}/retry-failed", json={})
            assert early.status_code == 409
            await complete(app, first)
            assert [item["index"] for item in (await failed(app, batch_id))["items"]] == [1, 2, 3]

            again = (await app.client.post(f"{BATCHES}/{batch_id}/retry-failed", json={})).json()
            assert counts(again, "total", "queued", "completed", "failed") == (5, 3, 2, 0)
            [second] = again["rounds"][1]["executions"]
            row = get(app.gateway.store, second)
            assert row is not None
            [file] = msgspec.json.decode(row.files, type=tuple[FileDescriptor, ...])
            ref = BlobRef(sha256=file.sha256, size=file.size, media_type=file.content_type)
            assert app.gateway.blobs.get_bytes(ref) == b'{"n":1}\n{"n":2}\n{"n":3}\n'
            await begin(app, second)
            await record(app, second, 0, ["B", WRONG], [{"n": 2}])
            assert (await failed(app, batch_id))["items"] == [
                {
                    "index": 2,
                    "input": {"n": 2},
                    "error": {"type": "InvalidInput", "message": "who: is required"},
                    "status": "failed",
                }
            ]
            # The rest of the round never runs: its item is as it was.
            await app.host.send(second, commands.RequestCancel(at=app.gateway.clock()))
            await app.host.send(second, commands.ConfirmCancelled(at=app.gateway.clock()))
            ended = await shown(app, batch_id)
            assert ended["status"] == "cancelled"
            assert counts(ended, "queued", "completed", "failed", "cancelled") == (0, 3, 2, 0)
            assert [item["index"] for item in (await failed(app, batch_id))["items"]] == [2, 3]
            assert [(one["index"], one.get("output")) for one in await results(app, batch_id)] == [
                (0, "a"),
                (1, "B"),
                (2, None),
                (3, None),
                (4, "e"),
            ]

    asyncio.run(scenario())


def test_results_of_several_hosts_come_in_the_order_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.batch_documents.SHARD_ITEMS_MIN", 1)

    async def scenario() -> None:
        async with running() as app:
            monkeypatch.setattr(type(app.host), "hosts", {"host-0": True, "host-1": True})
            batch = await new_batch(app, 5)
            even, odd = batch["rounds"][0]["executions"]
            for execution, outcomes in ((odd, ["1", WRONG]), (even, ["0", "2", WRONG])):
                await begin(app, execution)
                await record(app, execution, 0, outcomes, [{}])
                await complete(app, execution)
            found = await results(app, batch["batch_id"])
            assert [one.get("output") for one in found] == ["0", "1", "2", None, None]
            page = await failed(app, batch["batch_id"], limit=1)
            assert [item["index"] for item in page["items"]] == [3]
            following = await failed(app, batch["batch_id"], after=page["next_after"])
            assert [item["index"] for item in following["items"]] == [4]
            assert following["next_after"] is None

    asyncio.run(scenario())


def test_results_as_parquet_have_a_row_for_each_item() -> None:
    async def scenario() -> None:
        async with running() as app:
            batch = await new_batch(app, 2)
            [execution] = batch["rounds"][0]["executions"]
            await begin(app, execution)
            await record(app, execution, 0, [{"a": 1}, WRONG], [{}])
            answer = await app.client.get(f"{BATCHES}/{batch['batch_id']}/results?format=parquet")
            parquet: Any = pyarrow.parquet
            rows = parquet.read_table(io.BytesIO(answer.content)).to_pylist()
            assert rows == [
                {"index": 0, "output": '{"a":1}', "error_type": None, "error_message": None},
                {
                    "index": 1,
                    "output": None,
                    "error_type": "InvalidInput",
                    "error_message": "who: is required",
                },
            ]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("name", "content", "items", "rule"),
    [
        ("a.jsonl", b'{"n":1}\n\n{"n":2}\n', 2, ""),
        ("a.csv", b'n,text\n1,"two\nlines"\n2,b\n', 2, ""),
        ("a.jsonl", b'{"n":1}\n{"n"\n', None, "a.jsonl, line 2"),
        ("a.txt", b"x", None, "name the format"),
    ],
)
def test_an_uploaded_file_is_counted_and_one_that_can_not_be_read_is_refused(
    name: str, content: bytes, items: int | None, rule: str
) -> None:
    async def scenario() -> None:
        async with running() as app:
            files = {"inputs": (name, content)}
            answer = await app.client.post(BATCHES, data={"flow": "greeting"}, files=files)
            if rule:
                assert answer.status_code == 422
                assert rule in answer.json()["error"]["message"]
                assert app.host.started == []
            else:
                assert answer.status_code == 201, answer.text
                assert answer.json()["counts"]["total"] == items
                assert answer.json()["source"] == name

    asyncio.run(scenario())


TYPED: dict[str, Any] = {
    **GREETING,
    "id": "typed",
    "inputs": {
        "type": "object",
        "properties": {
            "n": {"type": "integer"},
            "tags": {"type": ["array", "null"]},
            "code": {"type": "string"},
        },
    },
}


def test_columns_of_csv_become_what_the_flows_schema_wants() -> None:
    async def scenario() -> None:
        async with running() as app:
            await app.gateway.catalogue.publish("default", TYPED, Cause(at=app.gateway.clock()))
            content = b'n,tags,code,other\n1,"[""a""]",007,5\nx,,,\n'
            files = {"inputs": ("rows.csv", content)}
            answer = await app.client.post(BATCHES, data={"flow": "typed"}, files=files)
            assert answer.json()["counts"]["total"] == 2
            row = get(app.gateway.store, answer.json()["rounds"][0]["executions"][0])
            assert row is not None
            [file] = msgspec.json.decode(row.files, type=tuple[FileDescriptor, ...])
            ref = BlobRef(sha256=file.sha256, size=file.size, media_type=file.content_type)
            rows = app.gateway.blobs.get_bytes(ref).splitlines()
            assert [msgspec.json.decode(each) for each in rows] == [
                {"n": 1, "tags": ["a"], "code": "007", "other": "5"},
                {"n": "x", "code": "", "other": ""},
            ]

    asyncio.run(scenario())


def test_a_file_above_the_bound_is_refused() -> None:
    async def scenario() -> None:
        async with running(batch_bytes_max=100) as app:
            files = {"inputs": ("a.jsonl", b'{"n":1}\n' * 100)}
            answer = await app.client.post(BATCHES, data={"flow": "greeting"}, files=files)
            assert answer.status_code == 413

    asyncio.run(scenario())


async def key_of(app: Running, tenant: str, *scopes: str) -> dict[str, str]:
    """Headers with a new key."""
    body = {"name": "test", "tenant": tenant, "scopes": scopes}
    answer = await app.client.post("/api/admin/keys", json=body)
    assert answer.status_code == 201, answer.text
    return {"X-API-Key": answer.json()["secret"]}


def test_what_another_tenant_owns_answers_like_what_does_not_exist() -> None:
    async def scenario() -> None:
        async with running() as app:
            batch = await new_batch(app)
            theirs = await key_of(app, "other", "run", "read")
            for method, path in (("GET", ""), ("GET", "/items"), ("GET", "/results"), ("POST", "/cancel")):
                url = f"{BATCHES}/{batch['batch_id']}{path}"
                answer = await app.client.request(method, url, headers=theirs)
                assert answer.status_code == 404
                assert answer.json()["error"]["code"] == "batch_not_found"

    asyncio.run(scenario())


def test_a_source_of_the_servers_takes_an_admin_key_and_inputs_one_that_runs() -> None:
    async def scenario() -> None:
        async with running() as app:
            runner = await key_of(app, "default", "run")
            body = {"flow": "greeting", "source": "orders/*.csv"}
            refused = await app.client.post(BATCHES, json=body, headers=runner)
            assert refused.status_code == 403
            allowed = await app.client.post(BATCHES, json=body)
            assert allowed.status_code == 201
            assert allowed.json()["counts"]["total"] is None
            inputs: dict[str, Any] = {"flow": "greeting", "inputs": [{}]}
            assert (await app.client.post(BATCHES, json=inputs, headers=runner)).status_code == 201
            both = {**body, **inputs}
            assert (await app.client.post(BATCHES, json=both)).status_code == 422
            reader = await key_of(app, "default", "read")
            assert (await app.client.post(BATCHES, json=inputs, headers=reader)).status_code == 403

    asyncio.run(scenario())


WIDE: dict[str, Any] = {
    "heliograph": 1,
    "id": "wide",
    "nodes": [
        {"id": MAP_NODE, "kind": "map", "source": "all.jsonl", "each": {"kind": "select", "value": "${item}"}}
    ],
}


def test_a_flow_runs_again_over_only_the_failed_items_of_its_map() -> None:
    async def scenario() -> None:
        async with running() as app:
            await app.gateway.catalogue.publish("default", WIDE, Cause(at=app.gateway.clock()))
            started = await app.client.post("/v1/executions/wide/async", json={"input_data": {"day": 3}})
            execution = started.json()["execution_id"]
            url = f"/api/admin/executions/{execution}"
            await begin(app, execution)
            await record(app, execution, 0, ["a", WRONG, WRONG], [{"n": 1}, {"n": 2}])
            page = (await app.client.get(f"{url}/failed-items")).json()
            assert [(item["index"], item["input"]) for item in page["items"]] == [
                (1, {"n": 1}),
                (2, {"n": 2}),
            ]
            assert (await app.client.post(f"{url}/rerun-failed", json={})).status_code == 409
            await complete(app, execution)
            wrong = await app.client.post(f"{url}/rerun-failed", json={"node": "other"})
            assert wrong.status_code == 422
            again = await app.client.post(f"{url}/rerun-failed", json={})
            assert again.status_code == 202, again.text
            assert again.json()["items"] == 2
            row = get(app.gateway.store, again.json()["execution_id"])
            assert row is not None
            assert msgspec.json.decode(row.input) == {"day": 3}
            files = msgspec.json.decode(row.files, type=tuple[FileDescriptor, ...])
            source = given_items(files, NODE)
            assert source is not None
            assert source.uri == files[0].uri
            ref = BlobRef(sha256=files[0].sha256, size=files[0].size, media_type=files[0].content_type)
            assert app.gateway.blobs.get_bytes(ref) == b'{"n":1}\n{"n":2}\n'

    asyncio.run(scenario())
