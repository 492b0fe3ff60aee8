"""`heliograph secrets`: named secrets of a server. A value comes from a pipe or is typed unseen."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gateway.cli.failures import usage
from gateway.cli.options import ApiKey, AsJson, Tenant, Url

app = typer.Typer(no_args_is_help=True, help="Set, list and remove named secrets.")

_PATH = "/api/admin/secrets"

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="What agents call it, e.g. github.")]


@app.command("set")
def set_secret(
    name: NameArgument,
    value: Annotated[
        str | None,
        typer.Option(
            "--value", help="`-` reads it from stdin [default: asks for it, unseen].", show_default=False
        ),
    ] = None,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Give a secret its value, or a new one."""
    from gateway.cli.connection import connected, segment
    from gateway.cli.output import note, print_json

    text = _value(value)
    with connected(url, api_key) as server:
        kept = server.put(f"{_PATH}/{segment(name)}", {"value": text}, tenant=tenant)
    if as_json:
        print_json(kept)
    else:
        note(f"secret {kept['name']} is set (fingerprint {kept['fingerprint']})")


@app.command("list")
def list_secrets(
    tenant: Tenant = None, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """List the names of secrets; values are shown nowhere."""
    from gateway.cli.connection import connected
    from gateway.cli.output import print_json, print_table

    with connected(url, api_key) as server:
        found = server.get(_PATH, tenant=tenant)["secrets"]
    if as_json:
        print_json(found)
        return
    print_table(
        ("NAME", "FINGERPRINT", "SET"),
        [(one["name"], one["fingerprint"], one["updated_at"]) for one in found],
    )


@app.command()
def remove(
    name: NameArgument,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Remove a secret; whatever still names it fails at its next call."""
    from gateway.cli.connection import connected, segment
    from gateway.cli.output import note, print_json

    with connected(url, api_key) as server:
        gone = server.delete(f"{_PATH}/{segment(name)}", tenant=tenant)
    if as_json:
        print_json(gone)
    else:
        note(f"secret {gone['name']} is removed")


def _value(given: str | None) -> str:
    if given is None:
        text = str(typer.prompt("Value", hide_input=True, err=True)) if sys.stdin.isatty() else ""
        if not text:
            raise usage("no value", "Type it when asked, or pipe it in with --value -")
        return text
    if given != "-":
        # On a command line it would stand in the shell's history and in the list of processes.
        raise usage(
            "--value takes only -", "For example: pass show github | heliograph secrets set github --value -"
        )
    text = sys.stdin.read()
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise usage("--value -: nothing came on stdin")
    return text
