"""``python``: a Python function, called in a worker process with the values of ``with`` by name."""

from collections.abc import Mapping
from typing import Annotated, Any, cast

import msgspec

from runtime.events import Json
from runtime.kinds.kind import Binder, Kind
from runtime.plan import Act, CallFunction, Scope

_NAME = r"[^\W\d]\w*(\.[^\W\d]\w*)*"
Function = Annotated[str, msgspec.Meta(pattern=f"^{_NAME}:{_NAME}$", max_length=512)]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """``arguments``: an object, or a ``${...}`` that gives one."""

    function: Function
    arguments: dict[str, Json] | str = msgspec.field(name="with", default_factory=dict[str, Json])


def bind(config: Config, binder: Binder) -> Act:
    evaluate = binder.value("with", config.arguments)
    function = config.function

    def act(scope: Scope) -> CallFunction:
        arguments: Any = evaluate(scope)
        if not isinstance(arguments, Mapping):
            raise TypeError(f"with must give an object, not {type(arguments).__name__}")
        return CallFunction(function, cast("Mapping[str, Json]", arguments))

    return act


KIND = Kind(config=Config, bind=bind, in_map=True)
