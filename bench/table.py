"""`python -m bench.table FILE ...`: documents of `python -m bench` as Markdown, a column for each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.__main__ import Document
from bench.report import Figure


def table(documents: Sequence[Document]) -> str:
    """Figures that have a goal, throughputs and what things cost, in the order of the first document."""
    found = [{each.name: each for group in one.figures.values() for each in group} for one in documents]
    shown = {each.name: each for figures in found for each in figures.values() if _is_shown(each)}
    rows = [
        ["figure", "goal", *(one.store for one in documents)],
        ["---"] * (len(documents) + 2),
    ]
    for name, each in shown.items():
        cells = [_value(figures.get(name)) for figures in found]
        rows.append([f"{each.what} (`{name}`)", _goal(each), *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _is_shown(each: Figure) -> bool:
    return (
        each.goal is not None
        or each.unit == "executions/s"
        or each.name.endswith("_cpu")
        or each.name == "conversation_memory"
    )


def _goal(each: Figure) -> str:
    if each.goal is None:
        return ""
    return f"{'≥' if each.better == 'higher' else '≤'} {each.goal:,g} {each.unit}"


def _value(each: Figure | None) -> str:
    if each is None:
        return "not measured"
    spread = "" if each.least is None else f" ({each.least:,g}-{each.most:,g})"
    return f"{each.value:,g} {each.unit}{spread}{' **missed**' if each.met is False else ''}"


def main() -> None:
    documents = [msgspec.json.decode(Path(name).read_bytes(), type=Document) for name in sys.argv[1:]]
    print(table(documents))
    for one in documents:
        facts = msgspec.to_builtins(one.machine)
        print(f"\n{one.store}: " + ", ".join(f"{name} {value}" for name, value in facts.items()))


if __name__ == "__main__":
    main()
