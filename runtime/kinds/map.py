"""``map``: runs the node ``each`` once for every item of a list or of a source; results keep their order.

Without ``source`` and ``chunk`` every item is recorded by itself (``MapOver``); with either of them items go
in chunks (``WideMap``).
"""

import re
from typing import Annotated, Any, Literal, cast, get_args

import msgspec

from runtime.datasets import is_dataset
from runtime.events import Json
from runtime.expressions import is_expression
from runtime.kinds.kind import Binder, Kind
from runtime.plan import SOURCE_FORMAT, Act, Evaluate, MapOver, MapSource, Scope, Step, WideMap
from runtime.values import value_ref

ITEMS_MAX = 100_000
LIST_ITEMS_MAX = 1_000_000
"""Of a list that goes in chunks; more come from a source that is read as a stream."""

_WHOLE_OUTPUT = re.compile(r"\$\{\s*nodes\.\w+\s*\}")
"""A node's output and nothing else: what can be read as a stream from where it is."""

CONCURRENCY_MAX = 1_000
CHUNK_ITEMS_MAX = 100_000
FORMATS: tuple[str, ...] = get_args(SOURCE_FORMAT)

Computed = Annotated[str, msgspec.Meta(pattern=r"^\$\{.*\}$")]


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """How large a chunk is: so many items, or as many as take about so many seconds."""

    size: Annotated[int, msgspec.Meta(ge=1, le=CHUNK_ITEMS_MAX)] | None = None
    seconds: Annotated[float, msgspec.Meta(ge=0.01, le=3_600)] | None = None


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """``over``: an expression giving a list. ``source``: a template or ``${...}``; ``shard``: a value."""

    over: str = ""
    source: str = ""
    format: str = ""
    shard: Json = None
    each: dict[str, Json]
    chunk: Chunk | None = None
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=CONCURRENCY_MAX)] | Computed = 8
    on_error: Literal["fail", "keep"] = "keep"
    failures_max_share: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


def bind(config: Config, binder: Binder) -> Act:
    _check(config, binder)
    concurrency = binder.value("concurrency", config.concurrency)
    each = binder.nested("each", config.each)
    if config.source or config.chunk is not None:
        return _bind_wide(config, binder, each, concurrency)
    evaluate = binder.expression("over", config.over)

    def act(scope: Scope) -> MapOver:
        items = _list(evaluate(scope), ITEMS_MAX)
        return MapOver(
            items=items, each=each, concurrency=_concurrency(concurrency(scope)), on_error=config.on_error
        )

    return act


def _check(config: Config, binder: Binder) -> None:
    if bool(config.over) == bool(config.source):
        binder.problem("over", "a map has either over (a list) or source (a stream of items)")
    chunk = config.chunk
    if chunk is not None and (chunk.size is None) == (chunk.seconds is None):
        binder.problem("chunk", "has either size or seconds")
    if not config.source:
        for name in ("format", "shard"):
            if getattr(config, name):
                binder.problem(name, "is about a source")
    if not (is_expression(config.format) or config.format in FORMATS):
        binder.problem("format", f"must be one of {', '.join(FORMATS[1:])}")
    if config.failures_max_share is not None:
        if not (config.source or chunk):
            binder.problem("failures_max_share", "is for maps in chunks: give source or chunk")
        elif config.on_error == "fail":
            binder.problem("failures_max_share", "contradicts on_error: fail")


def _bind_wide(config: Config, binder: Binder, each: Step, concurrency: Evaluate) -> Act:
    over = binder.expression("over", config.over) if config.over else None
    read = binder.value if is_expression(config.source) else binder.template
    source = read("source", config.source)
    if _WHOLE_OUTPUT.fullmatch(config.source):
        binder.streamed("source")
    form = binder.value("format", config.format)
    shard = binder.value("shard", config.shard)
    chunk = config.chunk or Chunk(seconds=1.0)

    def act(scope: Scope) -> WideMap:
        if over is not None:
            found: MapSource | tuple[Json, ...] = _list(over(scope), LIST_ITEMS_MAX)
        else:
            found = _source(source(scope), form(scope), _shard(shard(scope)))
        return WideMap(
            source=found,
            each=each,
            document=config.each,
            chunk_items=chunk.size,
            chunk_seconds=chunk.seconds or 1.0,
            concurrency=_concurrency(concurrency(scope)),
            on_error=config.on_error,
            failures_max_share=config.failures_max_share,
        )

    return act


def _source(value: Any, form: Any, shard: tuple[int, int] | None) -> MapSource | tuple[Json, ...]:
    if isinstance(value, list):
        items = _list(cast("list[Json]", value), LIST_ITEMS_MAX)
        return items if shard is None else items[shard[0] :: shard[1]]
    if form is not None and form not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS[1:])}, not {form!r:.100}")
    form = cast(SOURCE_FORMAT, form or "")
    if is_dataset(value) or value_ref(value) is not None:
        return MapSource(dataset=value, format=form, shard=shard)
    if not isinstance(value, str) or not value:
        raise TypeError(
            "source must give a path, a URL, a data set, a stored table or file, or a list, not"
            f" {type(value).__name__}"
        )
    return MapSource(uri=value, format=form, shard=shard)


def _shard(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, list) and len(parts := cast("list[Any]", value)) == 2:
        place, count = parts
        if isinstance(place, int) and isinstance(count, int) and 0 <= place < count:
            return place, count
    raise ValueError("shard must be [place, count] with 0 <= place < count")


def _list(items: Any, items_max: int) -> tuple[Json, ...]:
    if not isinstance(items, list):
        raise TypeError(f"over must give a list, not {type(items).__name__}")
    items = cast("list[Json]", items)
    if len(items) > items_max:
        raise ValueError(f"over gives {len(items)} items; {items_max} are allowed")
    return tuple(items)


def _concurrency(value: Any) -> int:
    if not isinstance(value, int) or not 1 <= value <= CONCURRENCY_MAX:
        raise ValueError(f"concurrency must be a whole number from 1 to {CONCURRENCY_MAX}")
    return value


_PER_ITEM = "stands in each: it is about one item"

KIND = Kind(
    config=Config,
    bind=bind,
    without={"retry": _PER_ITEM, "timeout_seconds": _PER_ITEM, "resources": _PER_ITEM},
    nested=("each",),
)
