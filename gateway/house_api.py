"""What the gateway's own APIs (/api/admin, /api/audit) share: their envelope, answers and parameters.

Every failure is ``{"error": {"code", "message", "details"}}``, as on every path that no contract owns
(`envelopes.HOUSE`). ``details`` names each broken rule: ``{"field", "rule"}``, and ``node`` in a flow. Times
are RFC 3339 in UTC with microseconds, as recorded. Ids are opaque; unknown fields of a body are
refused, since the contract is our own.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

import msgspec
from starlette.responses import Response

from gateway.call import Call
from gateway.envelopes import HOUSE, Envelope, Fault, Problem
from gateway.keys import ADMIN
from gateway.timestamps import utc_second
from runtime.ids import Micros

JSON = "application/json"
LIMIT_DEFAULT, LIMIT_MAX = 50, 500

TENANT_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
"""A tenant is a part of stream names, so it holds no colon."""

_encode = msgspec.json.Encoder().encode
_DETAIL_NAMES = {2: ("field", "rule"), 3: ("node", "field", "rule")}

StructT = TypeVar("StructT", bound=msgspec.Struct)


def envelope(prefix: str, faults: Mapping[str, Fault] | None = None) -> Envelope:
    """The house's envelope for one prefix; ``faults`` add to or replace rows of its table."""
    return Envelope(prefix=prefix, faults={**HOUSE.faults, **(faults or {})}, render=_render)


def _render(fault: Fault, message: str, details: Sequence[Any]) -> bytes:
    error: dict[str, Any] = {"code": fault.code, "message": message}
    if details:
        error["details"] = [_named(detail) for detail in details]
    return _encode({"error": error})


def _named(detail: Any) -> Any:
    if not isinstance(detail, tuple):
        return detail
    parts = cast("tuple[Any, ...]", detail)
    return dict(zip(_DETAIL_NAMES[len(parts)], parts, strict=True))


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_encode(value), status, {"cache-control": "no-store", **(headers or {})}, JSON)


def broken(field: str, rule: str) -> Problem:
    """The request breaks ``rule`` at ``field``."""
    return Problem("invalid_input", f"{field}: {rule}", [(field, rule)])


# --- parameters -----------------------------------------------------------------------------------------


async def body_of(call: Call, kind: type[StructT]) -> StructT:
    """The JSON body; an absent one counts as ``{}``. Raises: Problem."""
    given = await call.json(kind)
    if given is not None:
        return given
    try:
        return msgspec.convert({}, kind)
    except msgspec.ValidationError as error:
        raise broken("body", str(error)) from None


def whole_number(call: Call, name: str, default: int, least: int, most: int) -> int:
    """A query parameter. Raises: Problem invalid_input."""
    text = call.query(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and least <= int(text) <= most):
        raise broken(name, f"must be a whole number from {least} to {most}")
    return int(text)


def page_size(call: Call) -> int:
    return whole_number(call, "limit", LIMIT_DEFAULT, 1, LIMIT_MAX)


def moment(call: Call, name: str) -> Micros | None:
    """A query parameter that is an RFC 3339 time, or None. Raises: Problem invalid_input."""
    text = call.query(name)
    if text is None:
        return None
    try:
        # A plus sign that wasn't escaped arrives as a space.
        parsed = datetime.fromisoformat(text.replace(" ", "+"))
        since_epoch = (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)) - _EPOCH
    except (ValueError, OverflowError):
        raise broken(name, "must be a time such as 2026-01-31T12:00:00Z") from None
    return Micros(
        since_epoch.days * 86_400_000_000 + since_epoch.seconds * 1_000_000 + since_epoch.microseconds
    )


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def iso(micros: int) -> str:
    """``2025-09-14T04:33:48.102334Z``."""
    seconds, rest = divmod(micros, 1_000_000)
    return f"{utc_second(seconds)}.{rest:06d}Z"


def iso_or_none(micros: int | None) -> str | None:
    return None if micros is None else iso(micros)


def tenant_of(call: Call) -> str:
    """The tenant to act for: the key's own, or any other for an admin. Raises: Problem forbidden."""
    tenant = call.query("tenant")
    if tenant is None or tenant == call.caller.tenant:
        return call.caller.tenant
    if not is_admin(call):
        raise Problem("forbidden")
    if re.fullmatch(TENANT_PATTERN, tenant) is None:
        raise broken("tenant", f"must match {TENANT_PATTERN}")
    return tenant


def is_admin(call: Call) -> bool:
    return ADMIN in call.caller.scopes


def write_cursor(value: msgspec.Struct) -> str:
    """An opaque cursor; whoever sends it back gets the next page."""
    return base64.urlsafe_b64encode(_encode(value)).decode().rstrip("=")


def read_cursor(call: Call, kind: type[StructT]) -> StructT | None:
    """Raises: Problem invalid_input for a cursor that isn't ours."""
    text = call.query("cursor")
    if not text:
        return None
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(data, type=kind)
    except (ValueError, msgspec.DecodeError):
        raise broken("cursor", "must be the next_cursor of a page") from None


# --- OpenAPI --------------------------------------------------------------------------------------------


def parameter(name: str, description: str, kind: str = "string", example: Any = None) -> dict[str, Any]:
    """A query parameter as OpenAPI describes it."""
    described: dict[str, Any] = {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "schema": {"type": kind},
    }
    return described if example is None else {**described, "example": example}


TENANT = parameter("tenant", "Act for this tenant; another than the key's own takes an admin key.")
LIMIT = parameter("limit", f"Entries of one page, {LIMIT_MAX} at most.", "integer", LIMIT_DEFAULT)


def json_request(model: type[msgspec.Struct], example: Any, *, required: bool = True) -> dict[str, Any]:
    return {"required": required, "content": {JSON: {"schema": schema_of(model), "example": example}}}


def json_answer(description: str, model: type[msgspec.Struct], example: Any) -> dict[str, Any]:
    return {
        "description": description,
        "content": {JSON: {"schema": schema_of(model), "example": example}},
    }


def refusal(
    description: str, code: str, message: str, details: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    error: dict[str, Any] = {"code": code, "message": message}
    if details:
        error["details"] = list(details)
    return {
        "description": description,
        "content": {JSON: {"schema": schema_of(ErrorBody), "example": {"error": error}}},
    }


class Detail(msgspec.Struct, frozen=True, omit_defaults=True):
    field: str
    rule: str
    node: str = ""


class ErrorFields(msgspec.Struct, frozen=True):
    code: str
    message: str
    details: tuple[Detail, ...] = ()


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorFields


def schema_of(model: type[msgspec.Struct]) -> dict[str, Any]:
    """The model's JSON Schema in one piece; models here never contain themselves."""
    schema = msgspec.json.schema(model)
    definitions = cast("dict[str, Any]", schema.pop("$defs", {}))
    return cast("dict[str, Any]", _inlined(schema, definitions))


def _inlined(part: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(part, list):
        return [_inlined(item, definitions) for item in cast("list[Any]", part)]
    if not isinstance(part, dict):
        return part
    fields = cast("dict[str, Any]", part)
    if "$ref" in fields:
        name = str(fields["$ref"]).rpartition("/")[2]
        return _inlined(definitions[name], definitions)
    return {name: _inlined(value, definitions) for name, value in fields.items()}
