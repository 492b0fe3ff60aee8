"""Named points at which a process under test ends at once, as if it had been killed there.

Production code holds no hook. Points are reached by what the server of these tests is put together from: a
store (`crashing_store`), and wrappers of its answers and of its callbacks (`crashing_server`). An order is a
file, so that it can be given to a running process, and so that a process started again doesn't end at the
same point once more: who carries an order out removes it first.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from threading import Lock

KEY = "CRASH_ORDERS"
"""Names the folder of the orders, in the environment and in the store's settings."""

EXIT_CODE = 137
"""What a shell reports for a process that got SIGKILL."""


class CrashPoints:
    """One folder's order as the processes see it that may have to carry it out."""

    def __init__(self, folder: Path) -> None:
        self._order = folder / "crash-order"
        self._fired = folder / "crash-fired"
        self._seen = ""
        self._left = 0
        self._counting = Lock()

    def reach(self, point: str) -> None:
        """End the process if it is ordered to end here, this time."""
        with self._counting:  # held to the end: another thread must not carry out the same order
            self._reach(point)

    def _reach(self, point: str) -> None:
        try:
            order = self._order.read_text()
        except FileNotFoundError:
            return
        if order != self._seen:
            self._seen = order
            self._left = int(order.split()[1])
        if point != order.split()[0]:
            return
        self._left -= 1
        if self._left > 0:
            return
        with self._fired.open("a") as fired:
            fired.write(point + "\n")
        self._order.unlink()
        os._exit(EXIT_CODE)

    def order(self, point: str, occurrence: int) -> None:
        """From now on: end when ``point`` is reached for this many times."""
        draft = self._order.with_suffix(".draft")
        # The number at the end tells two equal orders apart.
        draft.write_text(f"{point} {occurrence} {len(self.fired())}")
        draft.replace(self._order)

    def withdraw(self) -> None:
        self._order.unlink(missing_ok=True)

    def fired(self) -> list[str]:
        """The points at which processes ended, in order."""
        return self._fired.read_text().split() if self._fired.exists() else []


@lru_cache
def crash_points(folder: str) -> CrashPoints:
    """The points of this process; occurrences are counted over all that reach them."""
    return CrashPoints(Path(folder))
