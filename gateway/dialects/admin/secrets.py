"""/api/admin/secrets: set, list and remove named secrets. No answer ever holds a value."""

from __future__ import annotations

from typing import Annotated

import msgspec
from starlette.responses import Response

from gateway.call import Call
from gateway.dialects.admin.flows import cause_of
from gateway.envelopes import Problem
from gateway.house_api import (
    TENANT,
    answer,
    body_of,
    iso_or_none,
    json_answer,
    json_request,
    refusal,
    tenant_of,
)
from gateway.keys import ADMIN
from gateway.routes import Doc, Operation, Resource
from gateway.secrets import SecretInfo
from runtime.errors import NotFound
from runtime.vault import VALUE_BYTES_MAX

PREFIX = "/api/admin/secrets"


class SecretFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    value: Annotated[str, msgspec.Meta(min_length=1, max_length=VALUE_BYTES_MAX)]


class Secret(msgspec.Struct, frozen=True):
    """``fingerprint`` is of the encrypted bytes: it changes whenever the secret is set, to whatever value."""

    name: str
    fingerprint: str
    created_at: str | None
    updated_at: str | None


class SecretList(msgspec.Struct, frozen=True):
    secrets: list[Secret]


async def set_secret(call: Call) -> Response:
    tenant = tenant_of(call)
    fields = await body_of(call, SecretFields)
    info, is_new = await call.gateway.secrets.set(tenant, call.path["name"], fields.value, cause_of(call))
    return answer(_shown(info), 201 if is_new else 200)


async def list_secrets(call: Call) -> Response:
    found = await call.gateway.secrets.listing(tenant_of(call))
    return answer(SecretList([_shown(info) for info in found]))


async def remove_secret(call: Call) -> Response:
    try:
        info = await call.gateway.secrets.remove(tenant_of(call), call.path["name"], cause_of(call))
    except NotFound:
        raise Problem("secret_not_found") from None
    return answer(_shown(info))


def _shown(info: SecretInfo) -> Secret:
    return Secret(
        info.name,
        info.fingerprint,
        iso_or_none(info.created_at or None),
        iso_or_none(info.updated_at or None),
    )


# --- documentation and routes ---------------------------------------------------------------------------

_SECRET = {
    "name": "github",
    "fingerprint": "9f86d081884c7d65",
    "created_at": "2026-01-31T12:00:00.000000Z",
    "updated_at": "2026-01-31T12:00:00.000000Z",
}
_BROKEN = refusal(
    "The name or the value breaks a rule.",
    "invalid_input",
    f"value: must be 1 to {VALUE_BYTES_MAX} bytes",
    [{"field": "value", "rule": f"must be 1 to {VALUE_BYTES_MAX} bytes"}],
)

RESOURCES = (
    Resource(
        PREFIX,
        {
            "GET": Operation(
                handler=list_secrets,
                scope=ADMIN,
                doc=Doc(
                    summary="List the names of secrets",
                    parameters=(TENANT,),
                    answers={
                        200: json_answer("All of the tenant, by name", SecretList, {"secrets": [_SECRET]})
                    },
                ),
            )
        },
    ),
    Resource(
        f"{PREFIX}/{{name}}",
        {
            "PUT": Operation(
                handler=set_secret,
                scope=ADMIN,
                doc=Doc(
                    summary="Set a secret",
                    description="The value is encrypted at rest and shown nowhere. Agents, MCP servers and "
                    "repositories use it by its name; it takes effect at their next call.",
                    parameters=(TENANT,),
                    request=json_request(SecretFields, {"value": "ghp_..."}),
                    answers={
                        200: json_answer("It has a new value", Secret, _SECRET),
                        201: json_answer("It is new", Secret, _SECRET),
                        422: _BROKEN,
                    },
                ),
            ),
            "DELETE": Operation(
                handler=remove_secret,
                scope=ADMIN,
                doc=Doc(
                    summary="Remove a secret",
                    parameters=(TENANT,),
                    answers={
                        200: json_answer("It is gone", Secret, {**_SECRET, "fingerprint": ""}),
                        404: refusal("No such secret.", "secret_not_found", "Secret not found."),
                    },
                ),
            ),
        },
    ),
)
