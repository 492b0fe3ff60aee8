"""``sleep``: a durable timer; it holds nothing while it waits. The output is null."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec

from runtime.events import Json
from runtime.expressions import is_expression
from runtime.ids import Micros
from runtime.kinds.kind import Binder, Kind
from runtime.plan import Act, Scope, Wait

SECONDS_MAX = 10 * 366 * 86_400

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Exactly one: ``seconds`` (a number), or ``until`` (an ISO 8601 time with its offset); or ``${...}``."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=SECONDS_MAX)] | str | None = None
    until: str | None = None


def bind(config: Config, binder: Binder) -> Act:
    if (config.seconds is None) == (config.until is None):
        binder.problem("seconds", "exactly one of seconds and until is required")
    if config.until is None:
        return _bind_seconds(config.seconds, binder)
    evaluate = binder.value("until", config.until)
    if not is_expression(config.until):
        try:
            moment(config.until)
        except ValueError as error:
            binder.problem("until", str(error))
    return lambda scope: Wait(until=moment(evaluate(scope)))


def _bind_seconds(seconds: float | str | None, binder: Binder) -> Act:
    if isinstance(seconds, str) and not is_expression(seconds):
        binder.problem("seconds", "must be a number or ${...}")
    evaluate = binder.value("seconds", seconds)

    def act(scope: Scope) -> Wait:
        delay: Any = evaluate(scope)
        if isinstance(delay, bool) or not isinstance(delay, int | float):
            raise TypeError(f"seconds must give a number, not {type(delay).__name__}")
        if not 0 <= delay <= SECONDS_MAX:
            raise ValueError(f"seconds must be between 0 and {SECONDS_MAX}, not {delay}")
        return Wait(delay_seconds=float(delay))

    return act


def moment(text: Json) -> Micros:
    """An ISO 8601 time with its offset from UTC.

    Raises: ValueError.
    """
    if not isinstance(text, str):
        raise ValueError(f"until must give a text, not {type(text).__name__}")
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"until must be an ISO 8601 time, not {text[:100]!r}") from None
    if time.tzinfo is None:
        raise ValueError("until must say its offset from UTC, as in 2030-01-31T12:00:00Z")
    return Micros((time - _EPOCH) // timedelta(microseconds=1))


KIND = Kind(config=Config, bind=bind)
