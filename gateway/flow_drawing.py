"""The graph of a compiled flow, as data and as Mermaid text. Pure."""

from __future__ import annotations

from typing import Any

from runtime.plan import Plan

_SHAPES = {
    "branch": ("{", "}"),
    "map": ("[[", "]]"),
    "sleep": ("([", "])"),
    "wait_for_signal": (">", "]"),
    "flow": ("[/", "/]"),
}
_BOX = ("[", "]")


def graph_of(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """``nodes`` in graph order and ``edges`` from each node to those that need it."""
    nodes = [
        {"id": step.node_id, "name": step.name, "kind": step.kind, "needs": list(step.needs)}
        for step in plan.steps.values()
    ]
    edges = [{"from": need, "to": step.node_id} for step in plan.steps.values() for need in step.needs]
    return {"nodes": nodes, "edges": edges}


def mermaid(plan: Plan) -> str:
    """A Mermaid flowchart, top down; nodes are numbered, because an id may be a word of Mermaid's own."""
    names = {node_id: f"n{index}" for index, node_id in enumerate(plan.steps)}
    lines = ["flowchart TD"]
    for node_id, step in plan.steps.items():
        left, right = _SHAPES.get(step.kind, _BOX)
        label = _quoted(step.name if step.name == node_id else f"{step.name} ({node_id})")
        lines.append(f'    {names[node_id]}{left}"{label}<br/><i>{step.kind}</i>"{right}')
    lines += [
        f"    {names[need]} --> {names[node_id]}"
        for node_id, step in plan.steps.items()
        for need in step.needs
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Mermaid takes entities with # in place of &; the label is HTML to it."""
    for character, entity in (("#", "#35;"), ("&", "#amp;"), ("<", "#lt;"), (">", "#gt;"), ('"', "#quot;")):
        text = text.replace(character, entity)
    return " ".join(text.split())
