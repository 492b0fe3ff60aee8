"""Options that several commands share, each declared once."""

from typing import Annotated

import typer

_SERVER = "Server"

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="HELIOGRAPH_URL",
        help="Address of the server [default: the one this data directory's server last started on].",
        rich_help_panel=_SERVER,
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="HELIOGRAPH_API_KEY",
        help="API key [default: the one the first start of the server kept].",
        rich_help_panel=_SERVER,
        show_default=False,
        show_envvar=True,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Tenant = Annotated[
    str | None,
    typer.Option("--tenant", help="Act for this tenant [default: the key's own].", show_default=False),
]
ExecutionArgument = Annotated[
    str, typer.Argument(metavar="EXECUTION", help="Id of an execution, as printed by run and submit.")
]
