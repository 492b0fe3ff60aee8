"""How the executions contract words statuses, times, outputs and errors (its sections 1, 2 and 3.2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.timestamps import utc_second

STATUSES: Mapping[str, str] = {
    "queued": "PENDING",
    "running": "RUNNING",
    "waiting": "RUNNING",
    "paused": "RUNNING",
    "cancelling": "CANCELLED",
    "cancelled": "CANCELLED",
    "completed": "COMPLETED",
    "failed": "FAILED",
    "timed_out": "FAILED",
}
"""Internal status to the contract's; total over both."""


def iso(micros: int) -> str:
    """``2025-09-14T04:33:48.102Z``: UTC, milliseconds."""
    seconds, rest = divmod(micros, 1_000_000)
    return f"{utc_second(seconds)}.{rest // 1000:03d}Z"


def shown_output(text: bytes) -> Any:
    """A result as ``final_output``: an object as it is, anything else as ``{"output": value}``."""
    if text[:1] == b"{":
        return msgspec.Raw(text)
    return {"output": msgspec.Raw(text)}


def shown_error(message: str, failed_node: str) -> str:
    """``error_message`` of a failed execution; names the node that failed it."""
    return f"Node {failed_node} failed: {message}" if failed_node else message
