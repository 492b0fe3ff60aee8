"""`heliograph queues`: what waits, and why."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.options import ApiKey, AsJson, Tenant, Url

_WAITS_FOR = {"slot": "a slot", "rate": "the rate", "place": "a place on a host", None: ""}


def queues(
    flow: Annotated[str | None, typer.Option(help="Only those of this flow.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="List this many.")] = 50,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show the queues with open executions: who runs, who waits, for what, and until when."""
    from gateway.cli.connection import connected
    from gateway.cli.output import print_json, print_table

    with connected(url, api_key) as server:
        found = server.get("/api/admin/queues", flow=flow, tenant=tenant, limit=limit)
    if as_json:
        print_json(found)
        return
    print_table(
        ("TENANT", "FLOW", "KEY", "RUNNING", "WAITING", "RATE", "WAITS FOR", "NEXT START", "OLDEST"),
        [
            (
                queue["tenant"],
                queue["flow_id"],
                queue["key"] or "-",
                f"{queue['running']} of {queue['concurrency']}" if queue["concurrency"] else queue["running"],
                queue["waiting"],
                queue["rate"] or "",
                _WAITS_FOR[queue["waits_for"]],
                (queue["next_start_at"] or "")[11:23],
                (queue["oldest_waiting_since"] or "")[:19],
            )
            for queue in found["queues"]
        ],
        "nothing waits",
    )
