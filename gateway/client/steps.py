"""What a procedure asks its driver to do. A procedure is a generator: it yields these and gets the answers.

So each procedure is written once, for `drivers.Driver` and `drivers.AsyncDriver` alike, and can be tested
without either. A driver throws into it what a step raises (`errors`).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from gateway.client.calls import Call

T = TypeVar("T")
E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)


@dataclass(frozen=True)
class Send:
    """Send a request, repeated as far as that is harmless; gives the body. Raises: ClientError."""

    call: Call[Any]


@dataclass(frozen=True)
class Listen:
    """Open an event stream in place of the one that is open. Raises: ClientError.

    ``is_again``: it broke before, and the procedure itself repeats as long as that is worth it.
    ``is_optional``: there is another way, so that the server is not asked twice for a place.
    """

    call: Call[Any]
    last_event_id: str = ""
    is_again: bool = False
    is_optional: bool = False


@dataclass(frozen=True)
class Download:
    """Open a body that comes in blocks in place of the one that is open. Raises: ClientError."""

    call: Call[Any]
    is_again: bool = False


@dataclass(frozen=True)
class Next:
    """The open stream's next event, or the open body's next block; None at its end. Raises: Unreachable."""


@dataclass(frozen=True)
class Close:
    """Close what is open, if anything is."""


@dataclass(frozen=True)
class Pause:
    seconds: float


@dataclass(frozen=True)
class Emit(Generic[E_co]):
    """Hand an item to whoever iterates."""

    item: E_co


Step: TypeAlias = Send | Listen | Download | Next | Close | Pause | Emit[E]
Procedure: TypeAlias = Generator[Step[E], Any, T]
"""Emits E, returns T."""


class Run(Generic[E, T]):
    """One procedure under way: the state that both drivers share.

    while (step := run.step()) is not None:
        run.give(...) or run.fail(...)
    run.result
    """

    def __init__(self, procedure: Procedure[E, T]) -> None:
        self._procedure = procedure
        self._answer: Any = None
        self._error: Exception | None = None
        self._result: list[T] = []

    def step(self) -> Step[E] | None:
        """What to do next; None once it has returned."""
        answer, error = self._answer, self._error
        self._answer = self._error = None
        try:
            if error is not None:
                return self._procedure.throw(error)
            return self._procedure.send(answer)
        except StopIteration as ended:
            self._result.append(ended.value)
            return None

    def give(self, answer: Any) -> None:
        self._answer = answer

    def fail(self, error: Exception) -> None:
        self._error = error

    def close(self) -> None:
        self._procedure.close()

    @property
    def result(self) -> T:
        return self._result[0]
