"""A Python step that ends when a file appears: a test decides how long a worker stays busy."""

from __future__ import annotations

import time
from pathlib import Path

HELD_SECONDS_MAX = 120.0


def wait_for_file(path: str) -> str:
    """Raises: TimeoutError."""
    deadline = time.monotonic() + HELD_SECONDS_MAX
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.02)
    return "released"
