"""The Python steps of the workload."""

from __future__ import annotations


def measure(text: str) -> int:
    """How long the text is."""
    return len(text)


def shout(word: str) -> str:
    return word.upper()
