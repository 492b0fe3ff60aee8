"""Plain JSON against a struct's declared fields: every problem is reported, not only the first."""

import difflib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

import msgspec

from runtime.events import Json

Report = Callable[[str, str], None]
"""Takes the path of a field and the rule it breaks."""

SUGGESTIONS_MAX = 5

StructT = TypeVar("StructT", bound=msgspec.Struct)


def read_struct(
    raw: Mapping[str, Json], struct: type[StructT], report: Report, prefix: str = ""
) -> StructT | None:
    """The struct made of those keys of ``raw`` that it declares; None when a problem was reported."""
    values: dict[str, Any] = {}
    complete = True
    for field in _fields(struct):
        path = prefix + field.encode_name
        if field.encode_name not in raw:
            if field.required:
                report(path, "is required")
                complete = False
            continue
        before = len(values)
        _read_field(
            raw[field.encode_name], field.type, path, report, lambda v, n=field.name: values.update({n: v})
        )
        complete = complete and len(values) > before
    return struct(**values) if complete else None


def _read_field(value: Json, declared: Any, path: str, report: Report, accept: Callable[[Any], None]) -> None:
    nested = _nested_struct(declared)
    if nested is not None and isinstance(value, Mapping):
        members = cast("Mapping[str, Json]", value)
        report_unknown_keys(members, field_names(nested), report, f"{path}.")
        made = read_struct(members, nested, report, f"{path}.")
        if made is not None:
            accept(made)
        return
    element = _element_struct(declared)
    if element is not None and isinstance(value, list):
        made_items: list[Any] = []
        items = cast("list[Json]", value)
        for index, item in enumerate(items):
            _read_field(item, element, f"{path}[{index}]", report, made_items.append)
        if len(made_items) < len(items):
            return
        value = tuple(made_items)
    try:
        # The structs made above pass as they are; what is left to check is how many there may be.
        accept(msgspec.convert(value, declared))
    except msgspec.ValidationError as error:
        rule, _, place = str(error).partition(" - at `$")
        rule = rule.replace("`", "").replace("array", "list")
        report(path + place.rstrip("`"), rule[:1].lower() + rule[1:])


def report_unknown_keys(
    raw: Mapping[str, Json], known: Sequence[str], report: Report, prefix: str = ""
) -> None:
    unknown = [key for key in raw if key not in known]
    for place, key in enumerate(unknown):
        # Comparing is slow, and past a few keys nobody mistyped.
        close = difflib.get_close_matches(key[:64], known, n=1) if place < SUGGESTIONS_MAX else []
        report(prefix + key, f"unknown key{f'; did you mean {close[0]}?' if close else ''}")


def field_names(struct: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(field.encode_name for field in _fields(struct))


def plain_fields(struct: msgspec.Struct) -> dict[str, Json]:
    """Plain JSON of the fields that differ from their defaults: equal structs give equal JSON."""
    plain: dict[str, Json] = {}
    for field in _fields(type(struct)):
        value = getattr(struct, field.name)
        if field.required or value != _default(field):
            plain[field.encode_name] = _plain(value)
    return plain


@lru_cache(maxsize=256)
def _fields(struct: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    # The library resolves the annotations anew each time, which costs more than all the rest.
    return msgspec.structs.fields(struct)


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _plain(value: Any) -> Json:
    if isinstance(value, msgspec.Struct):
        return plain_fields(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("Iterable[Any]", value)]
    return value


def _nested_struct(declared: Any) -> type[msgspec.Struct] | None:
    if get_origin(declared) is Annotated:
        declared = get_args(declared)[0]
    options = get_args(declared) if isinstance(declared, types.UnionType) else (declared,)
    for option in options:
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return option
    return None


def _element_struct(declared: Any) -> type[msgspec.Struct] | None:
    if get_origin(declared) is Annotated:
        declared = get_args(declared)[0]
    arguments = get_args(declared)
    if get_origin(declared) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _nested_struct(arguments[0])
    return None
