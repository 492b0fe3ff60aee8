"""Executions through both clients, over real sockets: started once, followed, spoken to, read."""

from __future__ import annotations

import asyncio

import pytest

from gateway.client import (
    AsyncClient,
    Cancelled,
    Client,
    Conflict,
    Failed,
    Forbidden,
    Invalid,
    NotCompleted,
    NotFound,
    StillRunning,
    TimedOut,
    Unauthenticated,
)
from runtime.events import Completed, NodeCompleted, Queued, SignalReceived
from tests.contracts.live_server import LiveServer
from tests.contracts.python_client import authored


def test_a_decorated_flow_is_published_and_run(client: Client) -> None:
    published = client.publish(authored.hello, modules=())
    assert (published.flow_id, published.changed) == ("py-hello", False)
    assert client.run(authored.hello, {"who": "Ada"}) == "Hello Ada"


def test_a_definition_that_breaks_rules_is_refused_with_each_of_them(client: Client) -> None:
    nodes = [{"id": "a", "kind": "template", "template": "{{ nodes.gone }}"}, {"id": "b", "kind": "wat"}]
    with pytest.raises(Invalid) as refused:
        client.publish({"heliograph": 1, "id": "py-wrong", "nodes": nodes})
    assert {rule["node"] for rule in refused.value.details} == {"a", "b"}
    assert "node b, field kind" in str(refused.value)


def test_the_same_key_gives_the_same_execution(client: Client) -> None:
    key = f"order-{type(client).__name__}"
    first = client.start("py-chain", {"who": "Ada"}, key=key)
    assert client.start("py-chain", {"who": "Ada"}, key=key).id == first.id
    assert client.start("py-chain", {"who": "Ada"}).id != first.id
    with pytest.raises(Invalid, match="reused"):
        client.start("py-chain", {"who": "Grace"}, key=key)


def test_an_execution_is_shown_with_its_nodes(client: Client) -> None:
    found = client.start("py-chain", {"who": "Ada"}).wait()
    assert (found.status, found.output, found.progress) == ("completed", "Hello Ada", 100.0)
    assert [node.node_id for node in found.nodes] == ["greet", "shout"]
    assert found.has_ended
    assert found.duration is not None
    assert all(node.duration is not None for node in found.nodes)


def test_events_are_typed_and_end_with_the_execution(client: Client) -> None:
    execution = client.start("py-chain", {"who": "Ada"})
    records = list(execution.events())
    assert isinstance(records[0].event, Queued)
    assert isinstance(records[-1].event, Completed)
    outputs = [one.event.output for one in records if isinstance(one.event, NodeCompleted)]
    assert outputs == ["Hello Ada", "Hello Ada"]
    assert [one.version for one in records] == list(range(1, len(records) + 1))
    assert list(execution.events(after=records[2].position)) == records[3:]
    assert list(execution.events(after=records[-1].position)) == []


def test_a_failure_names_node_and_error(client: Client) -> None:
    with pytest.raises(Failed) as failed:
        client.run("py-broken", {"zero": 0})
    assert (failed.value.node, failed.value.error_type) == ("bad", "ZeroDivisionError")
    assert "at node bad: ZeroDivisionError" in str(failed.value)
    assert isinstance(failed.value, NotCompleted)


def test_a_signal_is_taken_once(client: Client) -> None:
    execution = client.start(authored.approval, {"who": "Ada"})
    execution.signal("decision", {"approved": True}, signal_id="s1")
    assert execution.result() == {"approved": True}
    received = [one for one in execution.events() if isinstance(one.event, SignalReceived)]
    assert len(received) == 1


def test_an_execution_is_paused_resumed_and_cancelled(client: Client) -> None:
    execution = client.start("py-waiting")
    assert execution.pause().status == "paused"
    assert execution.resume().previous_status == "paused"
    with pytest.raises(Conflict, match="not paused"):
        execution.resume()
    execution.cancel("wrong input")
    with pytest.raises(Cancelled):
        execution.result()
    with pytest.raises(Conflict, match="already cancelled"):
        execution.cancel()


def test_a_wait_that_is_over_leaves_the_execution_running(client: Client) -> None:
    execution = client.start("py-waiting")
    with pytest.raises(StillRunning, match=r"still running after 0\.01 s") as over:
        execution.wait(0.01)
    assert isinstance(over.value, TimeoutError)
    assert not execution.snapshot().has_ended
    execution.signal("go", 1)
    assert execution.result(30) == 1


def test_an_execution_that_takes_too_long_is_told_apart(client: Client) -> None:
    with pytest.raises(TimedOut):
        client.run("py-short")


def test_executions_are_listed_newest_first(client: Client) -> None:
    made = [client.start("py-chain", {"who": f"listed {number}"}).id for number in range(3)]
    found = [one.execution_id for one in client.executions(flow="py-chain", limit=3)]
    assert found == made[::-1]


def test_what_is_not_there_is_named(client: Client) -> None:
    with pytest.raises(NotFound, match="no published flow is called 'py-nowhere'"):
        client.start("py-nowhere")
    with pytest.raises(NotFound, match="Execution not found"):
        client.execution("0198c2f4-7d1e-7b3a-9c55-0242ac120002").snapshot()


def test_input_that_breaks_the_schema_is_refused(client: Client) -> None:
    with pytest.raises(Invalid, match=r"input_data: .*who"):
        client.start("py-hello", {})


def test_a_wrong_key_is_told(python_server: LiveServer) -> None:
    with Client(python_server.url, "hg_wrong") as stranger, pytest.raises(Unauthenticated):
        stranger.start("py-chain", {"who": "x"})


def test_a_key_that_may_run_and_audit_gets_results(python_server: LiveServer) -> None:
    key = python_server.make_key("run", "audit")
    with Client(python_server.url, key) as limited:
        assert limited.run("py-chain", {"who": "Ada"}) == "Hello Ada"
        with pytest.raises(Forbidden):
            limited.publish({"heliograph": 1, "id": "py-x", "nodes": []})


def test_more_waits_than_places_for_streams_all_come_to_an_end(python_server: LiveServer) -> None:
    key = python_server.make_key("run", "audit", open_streams_max=1)

    async def main() -> list[str]:
        async with AsyncClient(python_server.url, key) as client:
            return await asyncio.gather(*(client.run("py-chain", {"who": f"{n}"}) for n in range(5)))

    assert asyncio.run(main()) == [f"Hello {n}" for n in range(5)]
