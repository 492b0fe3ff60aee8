"""An execution as a picture, and its progress in a terminal; what users wrote is text in both."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from gateway.client.picture import NODES_MAX, Picture, lasting
from gateway.client.progress import batch_shown, is_wanted, shown
from gateway.client.views import (
    BatchCounts,
    BatchSnapshot,
    ErrorInfo,
    EventRecord,
    Graph,
    GraphNode,
    NodeInfo,
    Snapshot,
)

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
EVIL = "<script>alert(1)</script>\" onload='x' &"
SVG = "{http://www.w3.org/2000/svg}"


def snapshot(status: str = "running", *nodes: NodeInfo, error: ErrorInfo | None = None) -> Snapshot:
    return Snapshot(
        execution_id="e1",
        flow_id=EVIL,
        flow_version="1",
        status=status,
        created_at=AT,
        nodes=nodes,
        error=error,
    )


def texts(picture: Picture) -> list[str]:
    root = ElementTree.fromstring(str(picture))
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_a_picture_shows_states_and_times() -> None:
    nodes = (
        NodeInfo(node_id="a", status="completed", started_at=AT, ended_at=AT + timedelta(milliseconds=40)),
        NodeInfo(node_id="b", status="running", started_at=AT, attempt=2),
    )
    # A flow may name a node before those it needs.
    graph = Graph(
        (GraphNode("c", "last", "select", ("a", "b")), GraphNode("a", "a", "x"), GraphNode("b", "b", "x"))
    )
    picture = Picture(snapshot("running", *nodes), graph)
    assert texts(picture) == ["last", "select", "a", "completed · 40 ms", "b", "running · attempt 2"]
    root = ElementTree.fromstring(str(picture))
    tops = [int(box.attrib["y"]) for box in root.iter(f"{SVG}rect")]
    assert tops[0] > tops[1] == tops[2]
    assert len(list(root.iter(f"{SVG}path"))) == 2


def test_what_users_wrote_is_never_markup() -> None:
    graph = Graph((GraphNode(EVIL, EVIL, EVIL, (EVIL,)),))
    node = NodeInfo(node_id=EVIL, status=EVIL, error=EVIL)
    picture = Picture(snapshot(EVIL, node, error=ErrorInfo(EVIL, EVIL)), graph)
    for shown_as in (picture.html(), str(picture)):
        root = ElementTree.fromstring(shown_as)
        names = {element.tag.removeprefix(SVG) for element in root.iter()}
        assert names <= {"div", "p", "b", "code", "span", "svg", "g", "title", "rect", "text", "path"}
        assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)
        assert "<script" not in shown_as


def test_a_large_graph_is_cut_and_says_so() -> None:
    graph = Graph(tuple(GraphNode(f"n{n}", f"n{n}", "x") for n in range(NODES_MAX + 5)))
    shown_texts = texts(Picture(snapshot(), graph))
    assert shown_texts[-1] == "and 5 more nodes"
    assert len(shown_texts) == 2 * NODES_MAX + 1


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.004, "4 ms"), (1.25, "1.25 s"), (185, "3 min 5 s"), (7650, "2 h 7 min")]
)
def test_times_are_told_shortly(seconds: float, told: str) -> None:
    assert lasting(timedelta(seconds=seconds)) == told


# --- progress -------------------------------------------------------------------------------------------


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def printed(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def record(topic: str, **data: Any) -> EventRecord:
    return EventRecord(position=1, stream="e1", version=1, type=f"execution.{topic}", at=AT, data=data)


def test_a_terminal_shows_nodes_and_the_items_of_maps() -> None:
    console = terminal()
    with shown("e1", True, console) as watch:
        assert watch is not None
        watch(record("queued", total_nodes=2))
        watch(record("node_progressed", node_id="[red]pages", total=4, items=[1, 2]))
        watch(record("chunks_recorded", node_id="wide", total=100, chunks=[{"items": 75}], done=75))
        watch(record("node_completed", node_id="a"))
    assert "1/2" in printed(console)
    assert "[red]pages" in printed(console)
    assert "2/4" in printed(console)
    assert "75/100" in printed(console)


def test_an_archived_batch_has_ended() -> None:
    counts = BatchCounts()
    for status, has_ended in (("archived", True), ("completed", True), ("running", False), ("paused", False)):
        batch = BatchSnapshot(
            batch_id="b", flow_id="f", flow_version="1", status=status, counts=counts, created_at=AT
        )
        assert batch.has_ended is has_ended


def test_a_terminal_shows_a_batch() -> None:
    console = terminal()
    counts = BatchCounts(total=10, queued=5, running=1, completed=3, failed=1)
    batch = BatchSnapshot(
        batch_id="b", flow_id="f", flow_version="1", status="running", counts=counts, rate=12.4, created_at=AT
    )
    with batch_shown("f", True, console) as watch:
        assert watch is not None
        watch(batch)
    assert "f  running  12/s  1 failed" in printed(console)
    assert "4/10" in printed(console)


def test_nothing_is_drawn_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert not is_wanted(None)
    assert is_wanted(True)
    with shown("e1", False) as watch, batch_shown("b", None) as batch_watch:
        assert watch is None
        assert batch_watch is None
