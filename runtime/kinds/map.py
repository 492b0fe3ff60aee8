"""``map``: runs the node ``each`` once for every item of a list; results keep the list's order."""

from typing import Annotated, Any, Literal, cast

import msgspec

from runtime.events import Json
from runtime.kinds.kind import Binder, Kind
from runtime.plan import Act, MapOver, Scope

ITEMS_MAX = 100_000


class Config(msgspec.Struct, frozen=True, kw_only=True):
    over: str
    each: dict[str, Json]
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 8
    on_error: Literal["fail", "keep"] = "keep"


def bind(config: Config, binder: Binder) -> Act:
    evaluate = binder.expression("over", config.over)
    each = binder.nested("each", config.each)

    def act(scope: Scope) -> MapOver:
        items: Any = evaluate(scope)
        if not isinstance(items, list):
            raise TypeError(f"over must give a list, not {type(items).__name__}")
        items = cast("list[Json]", items)
        if len(items) > ITEMS_MAX:
            raise ValueError(f"over gives {len(items)} items; {ITEMS_MAX} are allowed")
        return MapOver(
            items=tuple(items), each=each, concurrency=config.concurrency, on_error=config.on_error
        )

    return act


_PER_ITEM = "stands in each: it is about one item"

KIND = Kind(
    config=Config,
    bind=bind,
    without={"retry": _PER_ITEM, "timeout_seconds": _PER_ITEM, "resources": _PER_ITEM},
    nested=("each",),
)
