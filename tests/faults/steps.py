"""The Python steps of the workload."""

from __future__ import annotations

import os
import time


def measure(text: str) -> int:
    """How long the text is."""
    return len(text)


def shout(word: str) -> str:
    return word.upper()


def note(item: int, file: str) -> int:
    """Leaves a line behind for each time it runs; takes five milliseconds."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{item}\n".encode())
    finally:
        os.close(descriptor)
    time.sleep(0.005)
    return item
