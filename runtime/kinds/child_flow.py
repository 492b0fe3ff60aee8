"""``flow``: runs another published flow of the same tenant and gives its output."""

from collections.abc import Mapping
from typing import Annotated, Any, cast

import msgspec

from runtime.events import Json
from runtime.ids import FlowId
from runtime.kinds.kind import Binder, Kind
from runtime.plan import Act, Scope, StartChild

SLUG = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """``input``: an object, or a ``${...}`` that gives one."""

    flow: Annotated[str, msgspec.Meta(pattern=SLUG)]
    input: dict[str, Json] | str = msgspec.field(default_factory=dict[str, Json])


def bind(config: Config, binder: Binder) -> Act:
    evaluate = binder.value("input", config.input)
    flow_id = FlowId(config.flow)

    def act(scope: Scope) -> StartChild:
        value: Any = evaluate(scope)
        if not isinstance(value, Mapping):
            raise TypeError(f"input must give an object, not {type(value).__name__}")
        return StartChild(flow_id, cast("Mapping[str, Json]", value))

    return act


KIND = Kind(config=Config, bind=bind)
