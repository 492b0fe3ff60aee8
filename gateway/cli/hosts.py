"""`heliograph hosts`: the machines of the cluster and the execution hosts on them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli.options import ApiKey, AsJson, Url

app = typer.Typer(no_args_is_help=False, help="Show nodes and execution hosts; drain a host.")


@app.callback(invoke_without_command=True)
def show(context: typer.Context, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """Show nodes and execution hosts, and what these hold."""
    if context.invoked_subcommand is not None:
        return
    from gateway.cli.connection import connected
    from gateway.cli.output import note, print_json, print_table

    with connected(url, api_key) as server:
        found = server.get("/api/admin/hosts")
    if as_json:
        print_json(found)
        return
    nodes = {node["id"]: node for node in found["nodes"]}
    print_table(
        ("HOST", "STATE", "NODE", "EXECUTIONS", "RUNNING", "QUEUED", "BUSY"),
        [
            (
                host["name"],
                host["state"],
                _place(nodes.get(host["node"])),
                host["executions"],
                f"{host['admitted']} of {host['running_max']}",
                host["queued"],
                f"{host['busy']:.0%}",
            )
            for host in found["hosts"]
        ],
    )
    lost = sum(host["unschedulable"] for host in found["hosts"])
    if lost:
        note(f"{lost} nodes of executions fit on no machine; `heliograph status EXECUTION` says why")
    living = [node for node in found["nodes"] if node["is_alive"]]
    cpus = sum(node["resources"].get("CPU", 0) for node in living)
    bounds = f"{found['hosts_min']} to {found['hosts_max']}"
    note(f"nodes: {len(living)}; their CPUs: {cpus:g}; hosts, by load: {bounds}")


@app.command()
def drain(
    name: Annotated[str, typer.Argument(metavar="HOST", help="Its name, as `heliograph hosts` shows it.")],
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Let a host give its work to others and end, before its node is taken away."""
    from gateway.cli.connection import connected, segment
    from gateway.cli.output import note, print_json

    with connected(url, api_key) as server:
        host = server.post(f"/api/admin/hosts/{segment(name)}/drain", {})
    if as_json:
        print_json(host)
    else:
        note(f"{host['name']} is draining: {host['executions']} executions go to other hosts")


def _place(node: dict[str, Any] | None) -> str:
    if node is None:
        return "-"
    return f"{node['address']} {node['id'][:8]}" + ("" if node["is_alive"] else " (gone)")
