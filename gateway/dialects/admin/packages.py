"""/api/admin/packages: upload, list and show the code of flows, named by the hash of its bytes."""

from __future__ import annotations

import asyncio

import msgspec
from starlette.responses import Response

from gateway.call import Call
from gateway.catalogue import PACKAGE
from gateway.dialects.admin.flows import cause_of
from gateway.envelopes import Problem
from gateway.house_api import (
    LIMIT,
    TENANT,
    answer,
    broken,
    iso,
    json_answer,
    page_size,
    parameter,
    refusal,
    tenant_of,
    whole_number,
)
from gateway.keys import ADMIN
from gateway.registry import Resource as Kept
from gateway.routes import Doc, Operation, Resource
from runtime.errors import AlreadyExists
from runtime.packages import MEDIA_TYPE, PACKAGE_BYTES_MAX, check_package

PREFIX = "/api/admin/packages"
OFFSET_MAX = 1_000_000
_MODULES_SHOWN_MAX = 100


class Package(msgspec.Struct, frozen=True):
    """``package``: SHA-256 of the zip file; flows name it in ``code.package``. ``modules``: its top ones."""

    package: str
    tenant: str
    size: int
    modules: list[str]
    created_at: str
    created_by: str


class PackageList(msgspec.Struct, frozen=True):
    packages: list[Package]
    total: int


async def upload_package(call: Call) -> Response:
    tenant, gateway = tenant_of(call), call.gateway
    if call.media_type != MEDIA_TYPE:
        raise Problem("unsupported_media_type", f"Send the package as {MEDIA_TYPE}.")
    data = await call.body()
    try:
        modules = await asyncio.to_thread(check_package, data)
    except ValueError as error:
        raise broken("body", str(error)) from None
    # The content first: whoever finds the name finds what it names.
    ref = await asyncio.to_thread(gateway.blobs.put_bytes, data, MEDIA_TYPE)
    document = {"size": ref.size, "modules": list(modules[:_MODULES_SHOWN_MAX])}
    headers = {"location": f"{PREFIX}/{ref.sha256}"}
    try:
        made = await gateway.registry.create(tenant, PACKAGE, document, cause_of(call), ref.sha256)
    except AlreadyExists:
        return answer(_shown(await _known(call, tenant, ref.sha256)), 200, headers)
    return answer(_shown(made), 201, headers)


async def list_packages(call: Call) -> Response:
    offset = whole_number(call, "offset", 0, 0, OFFSET_MAX)
    found, total = await call.gateway.registry.listing(
        tenant_of(call), PACKAGE, newest_first=True, limit=page_size(call), offset=offset
    )
    return answer(PackageList([_shown(each) for each in found], total))


async def show_package(call: Call) -> Response:
    return answer(_shown(await _known(call, tenant_of(call), call.path["package"])))


async def _known(call: Call, tenant: str, package: str) -> Kept:
    found = await call.gateway.registry.get(tenant, PACKAGE, package)
    if found is None:
        raise Problem("package_not_found")
    return found


def _shown(kept: Kept) -> Package:
    return Package(
        package=kept.resource_id,
        tenant=kept.tenant,
        size=int(kept.document["size"]),
        modules=list(kept.document["modules"]),
        created_at=iso(kept.created_at),
        created_by=kept.created_by,
    )


# --- documentation and routes ---------------------------------------------------------------------------

_PACKAGE = {
    "package": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "tenant": "default",
    "size": 1204,
    "modules": ["prices", "shop"],
    "created_at": "2026-01-31T12:00:00.000000Z",
    "created_by": "key_1",
}
_NOT_FOUND = refusal("No such package.", "package_not_found", "Package not found.")
_OFFSET = parameter("offset", "Packages to pass over.", "integer")

RESOURCES = (
    Resource(
        PREFIX,
        {
            "POST": Operation(
                handler=upload_package,
                scope=ADMIN,
                body_max=PACKAGE_BYTES_MAX,
                doc=Doc(
                    summary="Upload the code of flows",
                    description="A zip file of Python modules. Flows of the tenant name it in "
                    "`code.package`; their functions then come from it, whatever other flows or the server "
                    "have of that name. "
                    "The same bytes are the same package: uploading them again changes nothing.",
                    parameters=(TENANT,),
                    request={
                        "required": True,
                        "content": {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}},
                    },
                    answers={
                        200: json_answer("It was there already", Package, _PACKAGE),
                        201: json_answer("It is new", Package, _PACKAGE),
                        422: refusal(
                            "The zip file breaks a rule.",
                            "invalid_input",
                            "body: the package has no files",
                            [{"field": "body", "rule": "the package has no files"}],
                        ),
                    },
                ),
            ),
            "GET": Operation(
                handler=list_packages,
                scope=ADMIN,
                doc=Doc(
                    summary="List packages",
                    parameters=(TENANT, LIMIT, _OFFSET),
                    answers={
                        200: json_answer(
                            "A page, newest first", PackageList, {"packages": [_PACKAGE], "total": 1}
                        )
                    },
                ),
            ),
        },
    ),
    Resource(
        f"{PREFIX}/{{package}}",
        {
            "GET": Operation(
                handler=show_package,
                scope=ADMIN,
                doc=Doc(
                    summary="Show a package",
                    parameters=(TENANT,),
                    answers={200: json_answer("What it is", Package, _PACKAGE), 404: _NOT_FOUND},
                ),
            )
        },
    ),
)
