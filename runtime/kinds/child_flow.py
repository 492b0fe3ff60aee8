"""``flow``: runs another published flow of the same tenant and gives its output."""

import re
from collections.abc import Mapping
from typing import Any, cast

import msgspec

from runtime.events import Json
from runtime.expressions import is_expression
from runtime.ids import FlowId, FlowVersion
from runtime.kinds.kind import Binder, Kind
from runtime.plan import Act, Scope, StartChild

SLUG = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_IS_SLUG = re.compile(SLUG)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """``input``: an object, or a ``${...}`` that gives one. ``version`` empty: the latest at that time."""

    flow: str
    version: str = ""
    input: dict[str, Json] | str = msgspec.field(default_factory=dict[str, Json])


def bind(config: Config, binder: Binder) -> Act:
    evaluate = binder.value("input", config.input)
    flow = binder.value("flow", config.flow)
    version = binder.value("version", config.version)
    for field in ("flow", "version"):
        text = getattr(config, field)
        if not is_expression(text) and not _IS_SLUG.match(text) and (text or field == "flow"):
            binder.problem(field, "must be an id, or ${...} that gives one")

    def act(scope: Scope) -> StartChild:
        value: Any = evaluate(scope)
        if not isinstance(value, Mapping):
            raise TypeError(f"input must give an object, not {type(value).__name__}")
        flow_id, at = flow(scope), version(scope)
        if not isinstance(flow_id, str) or not _IS_SLUG.match(flow_id):
            raise ValueError(f"flow must give the id of a flow, not {flow_id!r:.200}")
        if at and (not isinstance(at, str) or not _IS_SLUG.match(at)):
            raise ValueError(f"version must give the version of a flow, not {at!r:.200}")
        return StartChild(FlowId(flow_id), cast("Mapping[str, Json]", value), FlowVersion(at or ""))

    return act


KIND = Kind(config=Config, bind=bind, in_map=True)
