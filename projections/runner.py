"""The reader that keeps the tracked read models up to date: one thread beside whoever serves queries.

    following   reads behind the models' position, writes a batch, at once again while batches are full
    resting     nothing new: waits for a wake-up, at most a while that grows to ``REST_SECONDS_MAX``
    standing by another process's reader moves the models: looks again after ``STANDBY_SECONDS``
    backing off a pass failed: waits, at most ``BACKOFF_SECONDS_MAX``, and goes on from what is committed

Any number of processes may run one; the compare-and-set of ``tracked`` lets one batch win, the losers stand
by and take over within seconds when the winner is gone. Nothing is held between batches, so a killed reader
leaves nothing behind.
"""

import logging
from collections.abc import Sequence
from threading import Condition, Thread
from time import monotonic
from typing import Literal, NamedTuple

from projections.counters import COUNTERS
from projections.node_timeline import NODE_TIMELINE
from projections.rebuild import rebuild
from projections.store import ReadStore
from projections.tracked import Moved, Projection, apply, position_of, prepare, read_batch
from runtime.event_log import EventLog
from runtime.ids import Position

PROJECTIONS: tuple[Projection, ...] = (NODE_TIMELINE, COUNTERS)
"""Every tracked read model."""

REST_SECONDS_MIN = 0.2
"""Events that come within this time share a transaction, so a busy log costs few flushes, and the writer of
a SQLite log rarely finds it locked. Who waits for a position (``wait``) does not wait for this."""

REST_SECONDS_MAX = 1.0
STANDBY_SECONDS = 2.0
BACKOFF_SECONDS_MIN = 0.1
BACKOFF_SECONDS_MAX = 30.0
WAIT_LOOK_SECONDS = 0.05
"""Pause between two looks of a ``wait`` that nothing woke, e.g. because another process reads."""

STOP_SECONDS_MAX = 30.0
"""How long ``stop`` waits for the batch in hand."""

_logger = logging.getLogger(__name__)


class Lag(NamedTuple):
    """``behind``: positions from the model to the log's end; ``parked``: events it went on without."""

    projection: str
    position: Position
    behind: int
    parked: int


class Runner:
    """Follows ``log`` into the tables of ``store``. ``wake`` and ``wait`` may be called from any thread."""

    def __init__(
        self, log: EventLog, store: ReadStore, projections: Sequence[Projection] = PROJECTIONS
    ) -> None:
        self._log = log
        self._store = store
        self._projections = tuple(projections)
        self._changed = Condition()
        self._positions: dict[str, Position] = {}
        self._waiters = 0
        self._woken = False
        self._stopping = False
        self._thread: Thread | None = None
        self.restarts = 0
        self.last_error = ""

    def start(self) -> None:
        self._thread = Thread(target=self._supervised, name="projections", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the batch in hand."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS_MAX)

    def wake(self) -> None:
        """Something was appended: look at once (or within ``REST_SECONDS_MIN`` of the batch before)."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def wait(self, position: Position, timeout: float) -> bool:
        """Whether every model holds what the log holds up to ``position``, within ``timeout`` seconds."""
        deadline = monotonic() + timeout
        with self._changed:
            self._waiters += 1
        try:
            while not self._reached(position):
                left = deadline - monotonic()
                if left <= 0 or self._stopping:
                    return False
                self.wake()
                with self._changed:
                    self._changed.wait(min(left, WAIT_LOOK_SECONDS))
        finally:
            with self._changed:
                self._waiters -= 1
        return True

    def catch_up(self) -> None:
        """Bring every model to the present end of the log, in the calling thread."""
        prepare(self._store, self._projections)
        end = self._log.max_position()
        while any(position_of(self._store, p.name) < end for p in self._projections):
            try:
                if self._pass() == "nothing new":
                    return
            except Moved:
                continue  # another reader does the same; both look at what is committed

    def lag(self) -> list[Lag]:
        """How far each model is, for metrics."""
        end = self._log.max_position()
        found = self._store.query("SELECT projection, COUNT(*) FROM parked_events GROUP BY projection")
        parked = {str(name): int(count) for name, count in found}
        lags: list[Lag] = []
        for projection in self._projections:
            position = position_of(self._store, projection.name)
            behind = max(0, end - position)
            lags.append(Lag(projection.name, position, behind, parked.get(projection.name, 0)))
        return lags

    def rebuild(self, name: str) -> Position:
        """Build one model anew while it is served; returns its position.

        Raises: KeyError for no such model.
        """
        return rebuild(self._log, self._store, {p.name: p for p in self._projections}[name])

    # --- the thread -------------------------------------------------------------------------------------

    def _supervised(self) -> None:
        backoff = BACKOFF_SECONDS_MIN
        while not self._stopping:
            before = self._positions
            try:
                prepare(self._store, self._projections)
                self._follow()
            except Exception as error:  # whatever a pass dies of, the next one starts from what is committed
                self.restarts += 1
                self.last_error = f"{type(error).__name__}: {error}"
                if self._positions != before:
                    backoff = BACKOFF_SECONDS_MIN
                _logger.exception("a pass of the read models failed; next try in %.1f s", backoff)
                self._rest(backoff, "nobody")
                backoff = min(backoff * 2, BACKOFF_SECONDS_MAX)

    def _follow(self) -> None:
        rest = REST_SECONDS_MIN
        while not self._stopping:
            try:
                progress = self._pass()
            except Moved:
                self._rest(STANDBY_SECONDS, "waiters")
                continue
            match progress:
                case "nothing new":
                    self._rest(rest, "anybody")
                    rest = min(rest * 2, REST_SECONDS_MAX)
                case "all there is":
                    self._rest(REST_SECONDS_MIN, "waiters")
                    rest = REST_SECONDS_MIN
                case "more to come":
                    rest = REST_SECONDS_MIN

    def _pass(self) -> Literal["nothing new", "all there is", "more to come"]:
        """Bring the hindmost models one batch further.

        Models at one position share the batch; it ends where the next ones stand, so they fall in step.

        Raises: Moved when another reader was faster.
        """
        positions = {p.name: position_of(self._store, p.name) for p in self._projections}
        self._publish(positions)
        after = min(positions.values())
        hindmost = [p for p in self._projections if positions[p.name] == after]
        others = [position for position in positions.values() if position > after]
        batch = read_batch(self._log, after, min(others, default=None))
        if not batch.recorded:
            return "nothing new"
        apply(self._store, hindmost, batch, after)
        last = batch.recorded[-1].position
        self._publish({**positions, **{p.name: last for p in hindmost}})
        return "more to come" if batch.is_full or others else "all there is"

    def _publish(self, positions: dict[str, Position]) -> None:
        with self._changed:
            self._positions = positions
            self._changed.notify_all()

    def _reached(self, position: Position) -> bool:
        positions = self._positions
        if self._thread is None:
            positions = {p.name: position_of(self._store, p.name) for p in self._projections}
        return min(positions.values(), default=0) >= position

    def _rest(self, seconds: float, wake_for: Literal["anybody", "waiters", "nobody"]) -> None:
        deadline = monotonic() + seconds
        with self._changed:
            while not self._stopping:
                awaited = wake_for == "anybody" or (wake_for == "waiters" and self._waiters > 0)
                left = deadline - monotonic()
                if left <= 0 or (awaited and self._woken):
                    break
                self._changed.wait(left)
            self._woken = False
