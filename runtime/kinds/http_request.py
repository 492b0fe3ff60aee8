"""``http_request``: one HTTP request, made by the shell, whose answer is the output."""

from collections.abc import Mapping
from typing import Any, Literal, cast

import msgspec

from runtime.events import Json
from runtime.kinds.kind import Binder, Kind
from runtime.plan import Act, HttpRequest, Scope

Method = Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """``url`` and ``body`` are templates, the others values. ``json`` excludes ``body``."""

    url: str
    method: Method = "GET"
    headers: dict[str, Json] | str = msgspec.field(default_factory=dict[str, Json])
    query: dict[str, Json] | str = msgspec.field(default_factory=dict[str, Json])
    json: Json = None
    body: str | None = None
    fail_on_status: bool = True


def bind(config: Config, binder: Binder) -> Act:
    url = binder.template("url", config.url)
    headers = binder.value("headers", config.headers)
    query = binder.value("query", config.query)
    json = binder.value("json", config.json)
    body = binder.template("body", config.body) if config.body is not None else None
    if config.json is not None and config.body is not None:
        binder.problem("body", "json and body exclude each other")

    def act(scope: Scope) -> HttpRequest:
        return HttpRequest(
            method=config.method,
            url=_checked_url(url(scope)),
            headers=_texts("headers", headers(scope)),
            query=_texts("query", query(scope)),
            json=json(scope),
            body=body(scope) if body else None,
            fail_on_status=config.fail_on_status,
        )

    return act


def _checked_url(url: str) -> str:
    url = url.strip()
    if not url.startswith(("http://", "https://")):
        raise ValueError("url must begin with http:// or https://")
    return url


def _texts(field: str, value: Any) -> dict[str, str]:
    """Scalars as the texts they have in JSON; a null leaves its entry out."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{field} must give an object, not {type(value).__name__}")
    pairs = cast("Mapping[str, Json]", value)
    texts = {name: _text(field, name, item) for name, item in pairs.items() if item is not None}
    if field == "headers" and any(mark in text for text in texts.values() for mark in "\r\n\0"):
        raise ValueError("headers: a value can't hold line breaks")
    return texts


def _text(field: str, name: str, value: Json) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise TypeError(f"{field}.{name} must be a text or a number, not {type(value).__name__}")


KIND = Kind(config=Config, bind=bind, in_map=True)
