"""Python steps of the flows that run on a cluster of processes."""

from __future__ import annotations


def page(letters: int) -> str:
    """A text, on demand too large to stand in an event."""
    return "x" * letters
