"""What is sent to publish a flow: its definition, and the code of its functions where that travels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.client.calls import JSON, YAML, FlowSource, json_bytes


def publication(flow: FlowSource | Mapping[str, Any] | Path) -> tuple[bytes, str]:
    """The definition's bytes and their media type. Raises: OSError for a file that can't be read."""
    if isinstance(flow, Path):
        return flow.read_bytes(), JSON if flow.suffix == ".json" else YAML
    if isinstance(flow, Mapping):
        return json_bytes(dict(flow)), JSON
    return json_bytes(dict(flow.definition().document)), JSON
