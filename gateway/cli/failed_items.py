"""Commands about the failed items of an execution's wide map: list them, and run the flow over only them."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.batches import items_in_words, show_failed_items
from gateway.cli.options import ApiKey, AsJson, ExecutionArgument, Url

_PATH = "/api/admin/executions"

Node = Annotated[
    str | None,
    typer.Option("--node", help="The map (default: the only one with failed items).", show_default=False),
]


def failed_items(
    execution: ExecutionArgument,
    node: Node = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="List this many.")] = 50,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List the failed items of a wide map, with the items and their errors."""
    from gateway.cli.connection import connected, segment

    with connected(url, api_key) as server:
        page = server.get(f"{_PATH}/{segment(execution)}/failed-items", node=node, limit=limit)
    show_failed_items(page, as_json)


def rerun(
    execution: ExecutionArgument,
    node: Node = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Run the flow again over only the failed items of a wide map; prints the new execution's id."""
    from gateway.cli.connection import connected, segment
    from gateway.cli.output import note, print_json, print_text

    with connected(url, api_key) as server:
        started = server.post(f"{_PATH}/{segment(execution)}/rerun-failed", {"node": node or ""})
    if as_json:
        print_json(started)
        return
    note(f"{started['node']} goes over what failed: {items_in_words(started['items'])}")
    print_text(started["execution_id"])
