"""The read models that ride in the transaction of every append, as one table.

Adding one: its file, and a line in ``INLINE``. A recorder writes ``INLINE[type(state)]`` for the last state
of each stream of a group; nothing else decides what is stored.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from projections import execution_summary
from runtime.errors import InvariantViolated
from runtime.state import ExecutionState


class Inline(NamedTuple):
    """``row(state, position)`` gives the values of the statement ``upsert`` (``?`` for each)."""

    table: str
    create: Sequence[str]
    upsert: str
    row: Callable[[Any, int], tuple[object, ...]]


INLINE: dict[type[object], tuple[Inline, ...]] = {
    ExecutionState: (
        Inline(
            execution_summary.TABLE, execution_summary.CREATE, execution_summary.UPSERT, execution_summary.row
        ),
    ),
}


def create_statements() -> list[str]:
    return [statement for models in INLINE.values() for model in models for statement in model.create]


def upserts(
    states: Iterable[tuple[object, int]], positions: Sequence[int]
) -> list[tuple[str, list[tuple[object, ...]]]]:
    """Statements with their rows. ``states``: pairs of a state and the index of its last event."""
    by_type: dict[type[object], list[tuple[object, int]]] = {}
    for state, index in states:
        by_type.setdefault(type(state), []).append((state, positions[index]))
    found: list[tuple[str, list[tuple[object, ...]]]] = []
    for kind, pairs in by_type.items():
        if kind not in INLINE:
            raise InvariantViolated(f"no read model takes a {kind.__name__}")
        found += [
            (model.upsert, [model.row(state, position) for state, position in pairs])
            for model in INLINE[kind]
        ]
    return found
