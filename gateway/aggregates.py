"""The gateway as a writer: read a small aggregate, decide, append; when somebody was faster, again.

For the aggregates that no host owns (flows, API keys). Blocking: call it from threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from runtime.errors import Conflict, InvariantViolated
from runtime.event_log import Append, Chain, EventLog
from runtime.events import Event

ATTEMPTS_MAX = 8
"""Times one change is decided again because another writer took its version; then ``Conflict``."""

StateT = TypeVar("StateT")


def change(
    log: EventLog,
    stream: str,
    evolve: Callable[[StateT | None, Event], StateT],
    decide: Callable[[StateT | None], Sequence[Event]],
) -> tuple[StateT | None, bool]:
    """The aggregate's state after ``decide``, and whether anything was recorded.

    Raises: Conflict after ``ATTEMPTS_MAX`` lost races; whatever ``decide`` refuses with.
    """
    lost: Conflict | None = None
    for _ in range(ATTEMPTS_MAX):
        history = log.read(stream)
        state = _evolved(evolve, None, (recorded.event() for recorded in history))
        decided = decide(state)
        if not decided:
            return state, False
        state = _evolved(evolve, state, decided)
        chain = Chain(history[-1].hash() if history else "")
        [outcome] = log.append([Append(stream, decided, state, chain)])
        match outcome:
            case Conflict():
                lost = outcome
            case InvariantViolated():
                raise outcome
            case _:
                return state, True
    raise lost or InvariantViolated("a change takes at least one attempt")


def _evolved(
    evolve: Callable[[StateT | None, Event], StateT], state: StateT | None, history: Iterable[Event]
) -> StateT | None:
    for event in history:
        state = evolve(state, event)
    return state
