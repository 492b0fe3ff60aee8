"""How many items the next chunk gets, from how long those before it took."""

import math

FIRST_ITEMS = 16
ITEMS_MAX = 100_000
GROWTH = 8
"""At most so many times larger than the largest chunk measured so far."""

WEIGHT = 0.3
CHUNKS_OF_A_PACE = 4_000
"""After so many chunks of one map the next ones last twice as long: their number stays bounded."""

TAIL = 8
"""Towards the end chunks get smaller, down to this part, so that workers end together."""


def pace_of(recorded: int) -> int:
    """How many times longer than at first a chunk may last, once so many are recorded."""
    return 1 << min(16, recorded // CHUNKS_OF_A_PACE)


class ChunkSizes:
    """``fixed``: as many as the map says. ``lanes``: chunks worked on at a time."""

    def __init__(self, fixed: int | None, seconds: float, lanes: int) -> None:
        self._fixed = fixed
        self._seconds = seconds
        self._lanes = lanes
        self._item_seconds = 0.0
        self._largest = FIRST_ITEMS

    def next(self, recorded: int, left: int | None) -> int:
        """Items of the next chunk, at least one.

        ``recorded``: chunks of the map so far. ``left``: items nobody took yet, if that is known.
        """
        if self._fixed is not None:
            return self._fixed
        wanted = self._largest
        if self._item_seconds:
            seconds = self._seconds * pace_of(recorded)
            wanted = min(int(seconds / self._item_seconds), self._largest * GROWTH, ITEMS_MAX)
        if left is not None:
            wanted = max(min(wanted, math.ceil(left / self._lanes)), wanted // TAIL)
        return max(1, wanted)

    def note(self, items: int, duration_ms: float) -> None:
        """A chunk of so many items took so long."""
        if items <= 0:
            return
        measured = max(duration_ms / 1_000 / items, 1e-7)
        weight = WEIGHT if self._item_seconds else 1.0
        self._item_seconds += weight * (measured - self._item_seconds)
        self._largest = max(self._largest, items)
