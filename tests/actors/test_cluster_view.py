"""What one host makes of the cluster's nodes and of its autoscaler, without a cluster."""

from __future__ import annotations

import asyncio

import pytest

from actors import cluster_view
from actors.cluster_view import ClusterView, Snapshot, refused_by_report
from runtime.placement import NodeOffer, Resources

SMALL = NodeOffer(total={"CPU": 2}, free={"CPU": 1})
FOUR_GPUS = Resources(cpus=1, gpus=4)


def seen(snapshot: Snapshot, resources: Resources, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setattr(cluster_view, "look", lambda: snapshot)
    return asyncio.run(ClusterView().missing(resources))


def test_without_an_autoscaler_what_no_node_has_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen(Snapshot((SMALL,)), FOUR_GPUS, monkeypatch) == ("4 GPU: no node has any",)


def test_what_the_autoscaler_may_start_a_node_for_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"CPU": 1.0, "GPU": 8.0}
    assert seen(Snapshot((SMALL,), ()), FOUR_GPUS, monkeypatch) == ()
    assert seen(Snapshot((SMALL,), (other,)), FOUR_GPUS, monkeypatch) == ()


def test_what_the_autoscaler_has_no_node_type_for_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = ({"CPU": 1.0, "GPU": 4.0, "node:__internal_implicit_resource_x": 1.0},)
    assert seen(Snapshot((SMALL,), refused), FOUR_GPUS, monkeypatch) == ("4 GPU: no node has any",)


def report(at: float, starting: str) -> bytes:
    """As the autoscaler of version 1 writes it, but for what isn't read."""
    return (
        f'{{"time": {at}, "autoscaler_report": {{"active_nodes": {{"head": 1}}, {starting}}},'
        ' "load_metrics_report": {"resource_demand": [[{"CPU": 1.0, "GPU": 4.0}, 2]], "pg_demand": []}}'
    ).encode()


def test_an_older_autoscaler_can_not_help_with_what_it_saw_while_it_starts_nothing() -> None:
    idle = report(1_000.0, '"pending_nodes": [], "pending_launches": {}')
    at_work = report(1_000.0, '"pending_nodes": [], "pending_launches": {"gpu": 1}')
    assert refused_by_report(idle, 1_001.0) == ({"CPU": 1.0, "GPU": 4.0},)
    assert refused_by_report(at_work, 1_001.0) == ()
    assert refused_by_report(idle, 1_100.0) is None
    assert refused_by_report(None, 1_000.0) is None
    assert refused_by_report(b"another", 1_000.0) is None


def test_a_cluster_that_gives_no_answer_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Snapshot | RuntimeError] = [Snapshot((SMALL,)), RuntimeError("the head is away")]

    def look() -> Snapshot:
        found = looks.pop(0)
        if isinstance(found, RuntimeError):
            raise found
        return found

    async def scenario() -> list[tuple[str, ...]]:
        view = ClusterView()
        return [await view.missing(FOUR_GPUS) for _ in range(2)]

    monkeypatch.setattr(cluster_view, "look", look)
    monkeypatch.setattr(cluster_view, "FRESH_SECONDS", 0.0)
    before, after = asyncio.run(scenario())
    assert before == after == ("4 GPU: no node has any",)
    assert looks == []
