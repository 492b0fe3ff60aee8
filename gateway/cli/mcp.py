"""`heliograph mcp`: the MCP servers that agents may use."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli.failures import usage
from gateway.cli.options import ApiKey, AsJson, Tenant, Url

app = typer.Typer(no_args_is_help=True, help="Add, list and remove MCP servers.")

_PATH = "/api/admin/mcp-servers"

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="What agents and plans call it.")]


@app.command()
def add(
    name: NameArgument,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND...]", help="Of a stdio server: what the hosts run.", show_default=False
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option("--http", metavar="ADDRESS", help="Of a server of streamable HTTP.")
    ] = None,
    description: Annotated[str, typer.Option(help="What it is for; plans are made from it.")] = "",
    category: Annotated[str, typer.Option()] = "",
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="May hold {secret:NAME}.")
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option("--header", metavar="NAME=VALUE", help="May hold {secret:NAME}.")
    ] = None,
    auth: Annotated[
        list[str] | None, typer.Option("--auth", metavar="SECRET", help="A secret it needs besides.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="TOOL", help="Only these tools [default: all].")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Agents may ask for servers by it.")] = None,
    timeout_seconds: Annotated[float, typer.Option("--timeout", help="Seconds for one call.")] = 60.0,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Add an MCP server: a command after `--`, or an address with --http."""
    from gateway.cli.connection import connected
    from gateway.cli.output import note, print_json

    if bool(command) == bool(address):
        raise usage(
            "name either a command or --http",
            "For example: heliograph mcp add files -- my-mcp-server --root .",
        )
    body: dict[str, Any] = {
        "name": name,
        "description": description,
        "category": category,
        "transport": "stdio" if command else "http",
        "command": command or [],
        "url": address or "",
        "env": _pairs("--env", env),
        "headers": _pairs("--header", header),
        "auth_params": auth or [],
        "allow": allow or [],
        "tags": tag or [],
        "timeout_seconds": timeout_seconds,
    }
    with connected(url, api_key) as server:
        added = server.post(_PATH, body, tenant=tenant)
    if as_json:
        print_json(added)
        return
    note(f"MCP server {added['name']} is added")
    for missing in added["missing_secrets"]:
        note(f"  it needs a secret: heliograph secrets set {missing}")


@app.command("list")
def list_servers(
    tenant: Tenant = None, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """List MCP servers and whether the secrets they need are set."""
    from gateway.cli.connection import connected
    from gateway.cli.output import print_json, print_table

    with connected(url, api_key) as server:
        found = server.get(_PATH, tenant=tenant)["mcp_servers"]
    if as_json:
        print_json(found)
        return
    print_table(
        ("NAME", "CATEGORY", "WHERE", "AUTHENTICATION"),
        [
            (one["name"], one["category"], one["url"] or " ".join(one["command"]), _authentication(one))
            for one in found
        ],
    )


@app.command()
def remove(
    name: NameArgument,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Remove an MCP server."""
    from gateway.cli.connection import connected, segment
    from gateway.cli.output import note, print_json

    with connected(url, api_key) as server:
        gone = server.delete(f"{_PATH}/{segment(name)}", tenant=tenant)
    if as_json:
        print_json(gone)
    else:
        note(f"MCP server {gone['name']} is removed")


def _authentication(server: dict[str, Any]) -> str:
    if not server["auth_required"]:
        return "not needed"
    return "set" if server["auth_verified"] else f"missing: {', '.join(server['missing_secrets'])}"


def _pairs(option: str, given: list[str] | None) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            # The rest may be a secret, so it is not repeated.
            raise usage(f"{option} {name!r}: expected NAME=VALUE")
        pairs[name] = value
    return pairs
