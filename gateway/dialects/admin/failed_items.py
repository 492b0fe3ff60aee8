"""/api/admin/executions/{id}/failed-items: what failed in a wide map, and the flow again over only that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from starlette.responses import Response

from gateway.call import Call
from gateway.dialects.admin.flows import cause_of
from gateway.envelopes import Problem
from gateway.house_api import (
    LIMIT,
    answer,
    body_of,
    is_admin,
    json_answer,
    json_request,
    page_size,
    parameter,
    refusal,
    whole_number,
)
from gateway.idempotency import request_digest
from gateway.keys import READ, RUN
from gateway.routes import Doc, Operation, Resource
from projections.execution_summary import ExecutionRow
from runtime.datasets import ItemFailure

PREFIX = "/api/admin/executions"
PLACE_MAX = 10**15


class FailedItem(msgspec.Struct, frozen=True, kw_only=True):
    """``index``: the item's place in the source."""

    index: int
    input: Any
    error: dict[str, str]
    status: str = "failed"


class FailedItemPage(msgspec.Struct, frozen=True):
    """``next_after``: behind which place the next page begins, if there is one."""

    items: list[FailedItem]
    next_after: int | None


class RerunFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``node``: the map whose failed items are meant; empty: the only one with failed items."""

    node: Annotated[str, msgspec.Meta(max_length=64)] = ""


class Rerun(msgspec.Struct, frozen=True):
    """The new execution, and over how many items its map goes."""

    execution_id: str
    node: str
    items: int


def after_of(call: Call) -> int:
    """The place a page begins behind; -1: at the beginning."""
    return -1 if call.query("after") is None else whole_number(call, "after", 0, 0, PLACE_MAX)


def page_of(failures: Iterator[ItemFailure], limit: int) -> FailedItemPage:
    """The next ``limit`` failed items. Blocking."""
    page: list[FailedItem] = []
    for failure in failures:
        if len(page) == limit:
            return FailedItemPage(page, page[-1].index)
        error = {"type": failure.error.type, "message": failure.error.message}
        page.append(FailedItem(index=failure.index, input=failure.item, error=error))
    return FailedItemPage(page, None)


async def _row(call: Call) -> ExecutionRow:
    """Raises: Problem execution_not_found, also for another tenant's."""
    row = await call.gateway.reads.execution(call.path["execution_id"])
    if row is None or not (row.tenant == call.caller.tenant or is_admin(call)):
        raise Problem("execution_not_found")
    call.execution_id = row.execution_id
    return row


async def list_failed_items(call: Call) -> Response:
    row = await _row(call)
    after, limit = after_of(call), page_size(call)
    reruns = call.gateway.reruns
    node = await reruns.node(row, call.query("node") or "")
    return answer(await asyncio.to_thread(lambda: page_of(reruns.failures(row, node, after), limit)))


async def rerun_failed_items(call: Call) -> Response:
    fields = await body_of(call, RerunFields)
    row = await _row(call)

    async def serve(execution_id: str) -> Response:
        gateway = call.gateway
        node = await gateway.reruns.node(row, fields.node)
        await gateway.limits.count_start(call.caller)
        count = await gateway.reruns.start(row, node, execution_id, cause_of(call))
        return answer(Rerun(execution_id, node, count), 202, {"location": f"/v1/executions/{execution_id}"})

    digest = request_digest(row.execution_id.encode(), fields.node.encode())
    return await call.gateway.idempotency.once(call, digest, serve)


# --- documentation and routes ---------------------------------------------------------------------------

PAGE_EXAMPLE: dict[str, Any] = {
    "items": [
        {
            "index": 17,
            "input": {"who": 17},
            "error": {"type": "InvalidInput", "message": 'who: 17 is not of type "string"'},
            "status": "failed",
        }
    ],
    "next_after": None,
}
PLACE = parameter("after", "Only items behind this place.", "integer")
_NODE = parameter("node", "The map; may be left out when only one has failed items.", example="pages")
_UNKNOWN = refusal("No such execution.", "execution_not_found", "Execution not found.")

RESOURCES = (
    Resource(
        f"{PREFIX}/{{execution_id}}/failed-items",
        {
            "GET": Operation(
                handler=list_failed_items,
                scope=READ,
                doc=Doc(
                    summary="List the failed items of an execution's wide map",
                    parameters=(_NODE, LIMIT, PLACE),
                    answers={200: json_answer("One page", FailedItemPage, PAGE_EXAMPLE), 404: _UNKNOWN},
                ),
            )
        },
    ),
    Resource(
        f"{PREFIX}/{{execution_id}}/rerun-failed",
        {
            "POST": Operation(
                handler=rerun_failed_items,
                scope=RUN,
                doc=Doc(
                    summary="Run the flow again over only the failed items of a wide map",
                    description="A new execution of the same version with the same input, whose map goes "
                    "over the failed items in place of its source. Repeatable by Idempotency-Key.",
                    request=json_request(RerunFields, {"node": "pages"}, required=False),
                    answers={
                        202: json_answer(
                            "Accepted",
                            Rerun,
                            {
                                "execution_id": "0198c2f4-7d1e-7b3a-9c55-0242ac120002",
                                "node": "pages",
                                "items": 12,
                            },
                        ),
                        404: _UNKNOWN,
                        409: refusal("It goes on, or nothing failed.", "conflict", "no item has failed"),
                    },
                ),
            )
        },
    ),
)
