"""An execution as a picture: its flow's graph, top down, with states and times. Pure.

A node stands one row below the lowest of those it needs. Every text in it comes from users and is escaped;
the picture holds no script and refers to nothing outside itself, so it may stand in a page as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from html import escape

from gateway.client.views import Graph, GraphNode, NodeInfo, Snapshot

NODES_MAX = 200
"""Nodes that are drawn; a line says how many more there are."""

_WIDTH, _HEIGHT, _GAP, _DROP, _MARGIN = 168, 46, 18, 34, 12
_LABEL_MAX = 24

_COLOURS: Mapping[str, tuple[str, str]] = {
    "completed": ("#e6f4ea", "#1e8e3e"),
    "failed": ("#fce8e6", "#d93025"),
    "timed_out": ("#fce8e6", "#d93025"),
    "running": ("#e8f0fe", "#1a73e8"),
    "retrying": ("#fef7e0", "#f29900"),
    "waiting": ("#fef7e0", "#f29900"),
    "paused": ("#fef7e0", "#f29900"),
    "skipped": ("#f1f3f4", "#9aa0a6"),
    "cancelled": ("#f1f3f4", "#5f6368"),
    "abandoned": ("#f1f3f4", "#5f6368"),
}
_PLAIN = ("#ffffff", "#bdc1c6")
"""Fill and line of what has not begun."""


class Picture:
    """Shows itself in a notebook; ``str(picture)`` is its SVG."""

    def __init__(self, snapshot: Snapshot, graph: Graph) -> None:
        self.snapshot = snapshot
        self._svg = svg(snapshot, graph)

    def __str__(self) -> str:
        return self._svg

    def __repr__(self) -> str:
        return f"Picture({self.snapshot.execution_id!r}, {self.snapshot.status!r})"

    def _repr_svg_(self) -> str:
        return self._svg

    def _repr_html_(self) -> str:
        return self.html()

    def html(self) -> str:
        """The picture under a line of flow, id, status and time."""
        return f"<div>{caption(self.snapshot)}{self._svg}</div>"


def caption(found: Snapshot) -> str:
    """One paragraph of HTML: flow, id, status, time, and why it failed."""
    _, colour = _COLOURS.get(found.status, _PLAIN)
    parts = [
        f"<b>{escape(found.flow_id)}</b>",
        f"<code>{escape(found.execution_id)}</code>",
        f'<span style="color:{colour}">{escape(found.status)}</span>',
    ]
    if found.duration is not None:
        parts.append(escape(lasting(found.duration)))
    if found.error is not None:
        parts.append(escape(_cut(f"{found.error.type}: {found.error.message}", 300)))
    return f"<p>{' · '.join(parts)}</p>"


def svg(snapshot: Snapshot, graph: Graph) -> str:
    """The graph with the state of each node of ``snapshot``."""
    drawn = graph.nodes[:NODES_MAX]
    states = {node.node_id: node for node in snapshot.nodes}
    places = _places(drawn)
    boxes = [_box(node, states.get(node.id), places[node.id]) for node in drawn]
    lines = [_line(places[need], places[node.id]) for node in drawn for need in node.needs if need in places]
    width = max((x for x, _ in places.values()), default=0) + _WIDTH + _MARGIN
    height = max((y for _, y in places.values()), default=0) + _HEIGHT + _MARGIN
    more = ""
    if len(graph.nodes) > len(drawn):
        height += 20
        more = f'<text x="{_MARGIN}" y="{height - 8}">and {len(graph.nodes) - len(drawn)} more nodes</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11" role="img"'
        f' aria-label="{escape(f"{snapshot.flow_id}: {snapshot.status}")}">'
        f"{''.join(lines)}{''.join(boxes)}{more}</svg>"
    )


def _places(nodes: Sequence[GraphNode]) -> dict[str, tuple[int, int]]:
    """Left upper corner of each box, in rows by what a node needs, in each row in the flow's order."""
    names = {node.id for node in nodes}
    rows: dict[str, int] = {}
    waiting = list(nodes)
    while waiting:
        ready = [node for node in waiting if all(need in rows or need not in names for need in node.needs)]
        for node in ready or waiting:  # a published flow has no cycle; drawing one must still come to an end
            rows[node.id] = max((rows[need] + 1 for need in node.needs if need in rows), default=0)
        waiting = [node for node in waiting if node.id not in rows]
    in_row: dict[int, int] = {}
    places: dict[str, tuple[int, int]] = {}
    for node in nodes:
        row = rows[node.id]
        column = in_row.get(row, 0)
        in_row[row] = column + 1
        places[node.id] = (_MARGIN + column * (_WIDTH + _GAP), _MARGIN + row * (_HEIGHT + _DROP))
    return places


def _box(node: GraphNode, state: NodeInfo | None, place: tuple[int, int]) -> str:
    x, y = place
    fill, colour = _COLOURS.get(state.status, _PLAIN) if state is not None else _PLAIN
    dashes = ' stroke-dasharray="4 3"' if state is None or state.status == "skipped" else ""
    told = _told(state)
    title = f"{node.id} ({node.kind}): {told}"
    if state is not None and state.error:
        title += f"\n{_cut(state.error, 500)}"
    return (
        f"<g><title>{escape(title)}</title>"
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{fill}"'
        f' stroke="{colour}" stroke-width="1.5"{dashes}/>'
        f'<text x="{x + 10}" y="{y + 19}" font-weight="bold" fill="#202124">'
        f"{escape(_cut(node.name or node.id, _LABEL_MAX))}</text>"
        f'<text x="{x + 10}" y="{y + 35}" fill="{colour if state else "#5f6368"}">'
        f"{escape(_cut(told if state else node.kind, _LABEL_MAX + 4))}</text></g>"
    )


def _told(state: NodeInfo | None) -> str:
    if state is None:
        return "not begun"
    parts = [state.status]
    if state.items is not None:
        parts.append(f"{state.items.done}/{state.items.total}")
    if state.duration is not None:
        parts.append(lasting(state.duration))
    if state.attempt > 1:
        parts.append(f"attempt {state.attempt}")
    return " · ".join(parts)


def _line(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1 = start[0] + _WIDTH // 2, start[1] + _HEIGHT
    x2, y2 = end[0] + _WIDTH // 2, end[1]
    bend = _DROP // 2
    path = f"M{x1} {y1} C{x1} {y1 + bend} {x2} {y2 - bend} {x2} {y2}"
    return f'<path d="{path}" fill="none" stroke="#9aa0a6"/>'


def lasting(time: timedelta) -> str:
    """``4 ms``, ``1.25 s``, ``3 min 5 s``, ``2 h 7 min``."""
    seconds = time.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _cut(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
