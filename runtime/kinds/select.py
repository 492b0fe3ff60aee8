"""``select``: the result of an expression, or an object built out of values."""

import msgspec

from runtime.events import Json
from runtime.kinds.kind import Binder, Kind
from runtime.plan import Act, Output, Scope


class Config(msgspec.Struct, frozen=True, kw_only=True):
    expression: str | None = None
    value: Json | msgspec.UnsetType = msgspec.UNSET


def bind(config: Config, binder: Binder) -> Act:
    if (config.expression is None) == (config.value is msgspec.UNSET):
        binder.problem("expression", "exactly one of expression and value is required")
    if config.expression is not None:
        evaluate = binder.expression("expression", config.expression)
    else:
        evaluate = binder.value("value", config.value)

    def act(scope: Scope) -> Output:
        return Output(evaluate(scope))

    return act


KIND = Kind(config=Config, bind=bind, in_map=True)
