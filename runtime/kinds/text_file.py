"""``text_file``: the text of an uploaded file or of a file below the configured root."""

from typing import Any

import msgspec

from runtime.expressions import is_expression
from runtime.kinds.kind import Binder, Kind
from runtime.plan import Act, ReadText, Scope


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """``uri``: a template, or ``${...}``."""

    uri: str
    encoding: str = "utf-8"


def bind(config: Config, binder: Binder) -> Act:
    read = binder.value if is_expression(config.uri) else binder.template
    evaluate = read("uri", config.uri)
    try:
        "".encode(config.encoding)
    except (LookupError, ValueError):
        binder.problem("encoding", f"unknown encoding {config.encoding!r}")

    def act(scope: Scope) -> ReadText:
        uri: Any = evaluate(scope)
        if not isinstance(uri, str) or not uri:
            raise TypeError("uri must give a text that isn't empty")
        return ReadText(uri, config.encoding)

    return act


KIND = Kind(config=Config, bind=bind, in_map=True)
