"""`heliograph keys`: API keys of a server."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.failures import usage
from gateway.cli.options import ApiKey, AsJson, Tenant, Url

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")

_UNITS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for, e.g. 'nightly import'.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            "--scope", help="admin, run, read or audit; repeat for several [default: run, read, audit]."
        ),
    ] = None,
    tenant: Tenant = None,
    expires: Annotated[
        str | None, typer.Option("--expires", help="Life of the key, e.g. 12h, 30d [default: for good].")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(help="[default: 600]", show_default=False)
    ] = None,
    open_streams: Annotated[int | None, typer.Option(help="[default: 50]", show_default=False)] = None,
    unfinished_executions: Annotated[
        int | None, typer.Option(help="[default: 1000]", show_default=False)
    ] = None,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="No limits at all.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Create a key and print its secret, which is shown this once."""
    from gateway.cli.connection import connected
    from gateway.cli.output import note, print_json, print_text

    limits = {
        "requests_per_minute": requests_per_minute,
        "open_streams_max": open_streams,
        "unfinished_executions_max": unfinished_executions,
    }
    given = {limit: value for limit, value in limits.items() if value is not None}
    if unlimited and given:
        raise usage("--unlimited excludes the other limits")
    body = {
        "name": name,
        "scopes": scope or ["run", "read", "audit"],
        "tenant": tenant,
        "expires_in_seconds": None if expires is None else _seconds(expires),
        "limits": dict.fromkeys(limits) if unlimited else given,
    }
    with connected(url, api_key) as server:
        created = server.post("/api/admin/keys", {k: v for k, v in body.items() if v is not None})
    if as_json:
        print_json(created)
        return
    note(f"key {created['key_id']} for tenant {created['tenant']}, scopes {', '.join(created['scopes'])}.")
    note("This is the only time its secret is shown:")
    print_text(created["secret"])


@app.command("list")
def list_keys(as_json: AsJson = False, url: Url = None, api_key: ApiKey = None) -> None:
    """List keys, without their secrets."""
    from gateway.cli.connection import connected
    from gateway.cli.output import print_json, print_table

    with connected(url, api_key) as server:
        keys = server.get("/api/admin/keys")["keys"]
    if as_json:
        print_json(keys)
        return
    print_table(
        ("KEY", "NAME", "TENANT", "SCOPES", "STATE", "EXPIRES"),
        [
            (k["key_id"], k["name"], k["tenant"], ",".join(k["scopes"]), k["state"], k["expires_at"])
            for k in keys
        ],
    )


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, as `keys list` shows it.")],
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Revoke a key at once; the last admin key can't be revoked."""
    from gateway.cli.connection import connected
    from gateway.cli.output import note, print_json

    with connected(url, api_key) as server:
        revoked = server.delete(f"/api/admin/keys/{key_id}")
    if as_json:
        print_json(revoked)
    else:
        note(f"key {revoked['key_id']} ({revoked['name']}) is revoked")


def _seconds(text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.isdigit() or int(number) == 0:
        raise usage(f"--expires {text!r}: expected a number and m, h, d or w", "For example: --expires 30d")
    return int(number) * _UNITS[unit]
