"""Small rules about what a step gives: whether it is surely small, and how a fault is worded."""

from runtime.events import Json, StepError

ERROR_MESSAGE_CHARS_MAX = 2_000


def is_surely_small(value: Json) -> bool:
    """Cheap test that spares encoding a value only to learn that it is far below the claim-check bound."""
    if isinstance(value, str):
        return len(value) < 4_096
    return value is None or isinstance(value, bool | int | float)


def step_error(error: BaseException) -> StepError:
    message = str(error) or type(error).__name__
    return StepError(type=type(error).__name__, message=message[:ERROR_MESSAGE_CHARS_MAX])
