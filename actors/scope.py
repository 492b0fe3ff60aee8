"""What the nodes of one execution can see: its input, and the outputs they read.

Large ones are claim checks in the state; they must be kept here before a scope can be built from them.
What is kept is bounded: beyond ``LOADED_BYTES_MAX`` those read longest ago are dropped, and loaded again
when a later node reads them.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from runtime.events import BlobRef, Json
from runtime.ids import NodeId
from runtime.state import ExecutionState
from runtime.values import marker

LOADED_BYTES_MAX = 16 * 1024 * 1024
"""Large values kept at hand for later nodes."""


class ScopeBuilder:
    """Belongs to one actor."""

    def __init__(self) -> None:
        self._loaded: dict[str, tuple[int, Json]] = {}

    def missing(
        self, state: ExecutionState, reads: Iterable[NodeId], streams: tuple[NodeId, ...] = ()
    ) -> tuple[BlobRef, ...]:
        """Large values that must be loaded before ``reads`` can be seen; the input counts always.

        ``streams``: those of ``reads`` that are seen as markers, and never loaded.
        """
        loaded = [node_id for node_id in reads if node_id in state.nodes and node_id not in streams]
        refs = [state.nodes[node_id].output_ref for node_id in loaded]
        wanted = [state.input_ref, *refs]
        return tuple(ref for ref in wanted if ref is not None and ref.sha256 not in self._loaded)

    def build(
        self,
        state: ExecutionState,
        reads: Iterable[NodeId],
        execution: dict[str, Any],
        streams: tuple[NodeId, ...] = (),
    ) -> dict[str, Any]:
        """The scope (see ``plan.Scope``); nothing of it may be missing. ``streams``: as in ``missing``."""
        inputs = self._value(state.input, state.input_ref)
        if state.files:
            inputs = {**inputs, "$files": msgspec.to_builtins(state.files)}
        return {
            "inputs": inputs,
            "nodes": {node_id: self._output(state, node_id, node_id in streams) for node_id in reads},
            "execution": {"id": state.execution_id, "flow": state.flow_id, **execution},
        }

    def keep(self, ref: BlobRef, value: Json) -> None:
        self._loaded[ref.sha256] = (ref.size, value)

    def drop_unread(self, wanted: Iterable[BlobRef | None]) -> None:
        """Drop what is in excess of the bound, but nothing of ``wanted``."""
        excess = sum(size for size, _ in self._loaded.values()) - LOADED_BYTES_MAX
        if excess <= 0:
            return
        kept = {ref.sha256 for ref in wanted if ref is not None}
        for sha256 in [known for known in self._loaded if known not in kept]:
            if excess > 0:
                excess -= self._loaded.pop(sha256)[0]

    def _output(self, state: ExecutionState, node_id: NodeId, is_stream: bool) -> Json:
        node = state.nodes.get(node_id)
        if node is None:
            return None
        # Also when it is loaded for somebody else: an attempt made again must see the same.
        if is_stream and node.output_ref is not None:
            return marker(node.output_ref)
        return self._value(node.output, node.output_ref)

    def _value(self, value: Json, ref: BlobRef | None) -> Json:
        return value if ref is None else self._loaded[ref.sha256][1]
