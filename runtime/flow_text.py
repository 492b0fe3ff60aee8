"""From the text of a definition (YAML or JSON) to plain JSON, within bounds.

YAML is read by the rules of its version 1.2, so that it means what the same text means as JSON: ``on`` is
a string and so is ``2026-01-01``. Keys may not repeat, and there is no merge key ``<<``.
"""

import json
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import yaml

from runtime.errors import InvalidGraph
from runtime.events import Json

TEXT_BYTES_MAX = 1_048_576
VALUES_MAX = 200_000
"""Values of a document after aliases are followed: an alias bomb meets this bound."""
DEPTH_MAX = 64
_INTEGER_MAX = 2**63
_TOO_DEEP = f"a definition may be nested {DEPTH_MAX} levels deep at most"


class Unreadable(InvalidGraph):
    """The text is no definition at all, whatever it says."""


def _unreadable(rule: str) -> Unreadable:
    return Unreadable((("", "", rule),))


# The C loader constructs the same values an order of magnitude faster, where it was built.
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _number(convert: Callable[[str], float], loader: Any, node: Any) -> float:
    return convert(loader.construct_scalar(node))


class _Loader(_BaseLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the library's class attribute

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key: Any = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise _unreadable(f"line {line}: a key must be a string")
            if key in mapping:
                raise _unreadable(f"line {line}: the key '{key}' stands twice")
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(rf"^(?:{_pattern})$"),
        [*_first.replace("\0", ""), *([""] if "\0" in _first else [])],
    )
# Else 010 would be octal, and a float without a dot a string.
for _tag, _convert in (("int", int), ("float", float)):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", partial(_number, _convert))


def read_document(document: str | bytes | Mapping[str, Any]) -> dict[str, Json]:
    """Plain JSON of its own, sharing nothing with ``document``.

    Raises: Unreadable.
    """
    if isinstance(document, bytes):
        try:
            document = document.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _unreadable(f"not UTF-8 at byte {error.start}") from None
    try:
        loaded = _load(document) if isinstance(document, str) else document
        plain = _Plain().copy(loaded, "", 0)
    except RecursionError:
        raise _unreadable(_TOO_DEEP) from None
    if not isinstance(plain, dict):
        raise _unreadable("a definition must be an object")
    return cast("dict[str, Json]", plain)


def canonical_json(value: Json) -> str:
    """One text for equal values: sorted keys, no white space. Versions are hashes of it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _load(text: str) -> Any:
    if len(text) > TEXT_BYTES_MAX or len(text.encode(errors="surrogatepass")) > TEXT_BYTES_MAX:
        raise _unreadable(f"a definition may have {TEXT_BYTES_MAX} bytes at most")
    if text.lstrip().startswith("{"):
        # JSON allows tabs and escapes that YAML does not; a flow mapping of YAML is tried second.
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except json.JSONDecodeError:
            pass
    try:
        _check_depth(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise _unreadable(" ".join(str(error).split())) from None
    except (ValueError, OverflowError) as error:
        raise _unreadable(str(error)) from None


def _check_depth(text: str) -> None:
    """Before anything is composed: the C loader recurses on its stack, and a deep text ends the process."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_MAX:
                raise _unreadable(_TOO_DEEP)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise _unreadable(f"the key '{key}' stands twice")
        mapping[key] = value
    return mapping


class _Plain:
    """Copies into plain JSON; what isn't JSON is refused with its path."""

    def __init__(self) -> None:
        self._values_left = VALUES_MAX
        self._chars_left = TEXT_BYTES_MAX

    def copy(self, value: Any, path: str, depth: int) -> Json:
        self._values_left -= 1
        if self._values_left < 0:
            raise _unreadable(f"a definition may have {VALUES_MAX} values at most, aliases followed")
        if depth > DEPTH_MAX:
            raise _unreadable(_TOO_DEEP)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, int):
            if not -_INTEGER_MAX <= value < _INTEGER_MAX:
                raise _problem(path, "an integer must fit in 64 bits")
            return value
        if isinstance(value, float):
            if not math.isfinite(value):
                raise _problem(path, "a number must be finite")
            return value
        if isinstance(value, Mapping):
            return self._mapping(cast("Mapping[Any, Any]", value), path, depth)
        if isinstance(value, list | tuple):
            items = cast("Sequence[Any]", value)
            return [self.copy(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(items)]
        raise _problem(path, f"{type(value).__name__} is not a JSON value")

    def _mapping(self, mapping: Mapping[Any, Any], path: str, depth: int) -> dict[str, Json]:
        copied: dict[str, Json] = {}
        for key, value in mapping.items():
            if not isinstance(key, str):
                raise _problem(path, "a key must be a string")
            copied[self._text(key, path)] = self.copy(value, f"{path}.{key}" if path else key, depth + 1)
        return copied

    def _text(self, text: str, path: str) -> str:
        self._chars_left -= len(text)
        if self._chars_left < 0:
            raise _unreadable(f"the texts of a definition may have {TEXT_BYTES_MAX} characters at most")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _problem(path, "a text must be valid Unicode (no lone surrogates)") from None
        return str(text)


def _problem(path: str, rule: str) -> Unreadable:
    return Unreadable((("", path, rule),))
