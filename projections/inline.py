"""The read models that ride in the transaction of every append, as one table.

Adding one: its file, and a line in ``INLINE``. A recorder writes ``INLINE[type(state)]`` for the last state
of each stream of a group; nothing else decides what is stored.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from projections import api_keys, callbacks, execution_summary, flows, resources
from projections.store import Row
from runtime.administration import ApiKeyState, FlowState
from runtime.callbacks import CallbackState
from runtime.errors import InvariantViolated
from runtime.resources import ResourceState
from runtime.state import ExecutionState

LAYOUT = 3
"""Raise it when a table or a ``row`` below changes: a log with older rows has them rebuilt at start-up."""


class Inline(NamedTuple):
    """``row(state, position)`` gives the values of the statement ``upsert`` (``?`` for each).

    ``key`` are the columns that name the row; ``stream`` is the SQL of its originator id.
    """

    table: str
    key: tuple[str, ...]
    stream: str
    create: Sequence[str]
    upsert: str
    row: Callable[[Any, int], Row]


EXECUTIONS = Inline(
    execution_summary.TABLE,
    ("execution_id",),
    "execution_id",
    execution_summary.CREATE,
    execution_summary.UPSERT,
    execution_summary.row,
)
FLOWS = Inline(
    "flows",
    ("tenant", "flow_id"),
    "'flow:' || tenant || ':' || flow_id",
    flows.CREATE_FLOWS,
    flows.UPSERT_FLOW,
    flows.flow_row,
)
FLOW_VERSIONS = Inline(
    "flow_versions",
    ("tenant", "flow_id", "version"),
    "'flow:' || tenant || ':' || flow_id",
    flows.CREATE_VERSIONS,
    flows.UPSERT_VERSION,
    flows.version_row,
)
API_KEYS = Inline("api_keys", ("key_id",), "'key:' || key_id", api_keys.CREATE, api_keys.UPSERT, api_keys.row)
CALLBACKS = Inline(
    "callbacks",
    ("execution_id",),
    "'callback:' || execution_id",
    callbacks.CREATE,
    callbacks.UPSERT,
    callbacks.row,
)

RESOURCES = Inline(
    resources.TABLE,
    ("tenant", "kind", "resource_id"),
    "'resource:' || tenant || ':' || kind || ':' || resource_id",
    resources.CREATE,
    resources.UPSERT,
    resources.row,
)

INLINE: dict[type[object], tuple[Inline, ...]] = {
    ExecutionState: (EXECUTIONS,),
    FlowState: (FLOWS, FLOW_VERSIONS),
    ApiKeyState: (API_KEYS,),
    CallbackState: (CALLBACKS,),
    ResourceState: (RESOURCES,),
}
"""State of an aggregate to the tables that show it."""

MODELS: tuple[Inline, ...] = tuple(model for models in INLINE.values() for model in models)


def create_statements() -> list[str]:
    return [statement for model in MODELS for statement in model.create]


def upserts(states: Iterable[tuple[object, int]], positions: Sequence[int]) -> list[tuple[str, list[Row]]]:
    """Statements with their rows. ``states``: pairs of a state and the index of its last event."""
    by_type: dict[type[object], list[tuple[object, int]]] = {}
    for state, index in states:
        by_type.setdefault(type(state), []).append((state, positions[index]))
    found: list[tuple[str, list[Row]]] = []
    for kind, pairs in by_type.items():
        if kind not in INLINE:
            raise InvariantViolated(f"no read model takes a {kind.__name__}")
        for model in INLINE[kind]:
            row = model.row
            found.append((model.upsert, [row(state, position) for state, position in pairs]))
    return found
