"""The table of commands, and how each ends. They live in the modules beside this one."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gateway.cli import (
    agents,
    archive,
    batches,
    chat,
    doctor,
    executions,
    failed_items,
    flows,
    hosts,
    keys,
    log,
    mcp,
    packages,
    queues,
    run,
    secrets,
    server,
)
from gateway.cli.failures import CliFailure, exit_with
from runtime.errors import Diverged, DomainError, Unavailable

HELP = """Durable executions on Ray: start flows, watch them, prove what happened.

[bold]Without any set-up[/bold]

\b
  heliograph demo                              a real job, killed half way
  heliograph run flows/hello.yaml -i who=Ada  run a flow, print its output

[bold]With a server[/bold]

\b
  heliograph serve                             says where it listens
  heliograph flows publish flows/hello.yaml
  heliograph submit hello -i who=Ada          prints the execution's id
  heliograph status EXECUTION
  heliograph events EXECUTION --follow
  heliograph submit hello --inputs people.csv --watch
  heliograph verify                            prove what the log holds

[bold]Agents[/bold]

\b
  heliograph serve --model offline             or name a real one
  heliograph agents create Helper
  heliograph chat Helper "Good morning"

[bold]On another machine[/bold]

\b
  export HELIOGRAPH_URL=http://host:8080 HELIOGRAPH_API_KEY=hg_...

Results go to stdout, everything else to stderr; --json is for scripts. The exit code is 0 when it
worked, 2 for a mistake in the command itself, 1 for everything else.
"""

app = typer.Typer(
    name="heliograph",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_START, _AGENTS, _EXECUTIONS, _OPERATE = "Start here", "Agents", "Executions", "Operate"

app.command(rich_help_panel=_START)(server.serve)
app.command(rich_help_panel=_START)(server.demo)
app.command(rich_help_panel=_START)(run.run)
app.command(rich_help_panel=_AGENTS)(chat.chat)
app.add_typer(agents.app, name="agents", rich_help_panel=_AGENTS)
app.add_typer(mcp.app, name="mcp", rich_help_panel=_AGENTS)
app.add_typer(secrets.app, name="secrets", rich_help_panel=_AGENTS)
app.command(rich_help_panel=_EXECUTIONS)(executions.submit)
app.command(rich_help_panel=_EXECUTIONS)(executions.status)
app.command(rich_help_panel=_EXECUTIONS)(executions.events)
app.command(rich_help_panel=_EXECUTIONS)(executions.cancel)
app.command(rich_help_panel=_EXECUTIONS)(executions.signal)
app.command(rich_help_panel=_EXECUTIONS)(executions.pause)
app.command(rich_help_panel=_EXECUTIONS)(executions.resume)
app.add_typer(batches.app, name="batches", rich_help_panel=_EXECUTIONS)
app.command(rich_help_panel=_EXECUTIONS)(failed_items.failed_items)
app.command(rich_help_panel=_EXECUTIONS)(failed_items.rerun)
app.command(rich_help_panel=_EXECUTIONS)(queues.queues)
app.add_typer(flows.app, name="flows", rich_help_panel=_OPERATE)
app.add_typer(packages.app, name="packages", rich_help_panel=_OPERATE)
app.add_typer(keys.app, name="keys", rich_help_panel=_OPERATE)
app.add_typer(hosts.app, name="hosts", rich_help_panel=_OPERATE)
app.add_typer(log.projections, name="projections", rich_help_panel=_OPERATE)
app.command(rich_help_panel=_OPERATE)(log.verify)
app.command(rich_help_panel=_OPERATE)(log.export)
app.command(rich_help_panel=_OPERATE)(archive.archive)
app.command(rich_help_panel=_OPERATE)(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"heliograph {version('heliograph')}")
        except PackageNotFoundError:
            typer.echo("heliograph (not installed: run from its source)")
        raise typer.Exit


@app.callback(help=HELP)
def _heliograph(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    del version


def main() -> None:
    """Run the command line; every foreseen failure ends as one line and an exit code."""
    try:
        app()
    except CliFailure as failure:
        exit_with(failure)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # `heliograph events ... | head`: nobody reads any more, which is no failure to report.
        sys.stderr.close()
        sys.exit(0)
    except DomainError as error:
        exit_with(_failure_of(error))


def _failure_of(error: DomainError) -> CliFailure:
    """What a domain error means to a person. Anything else is our bug and keeps its traceback."""
    match error:
        case Unavailable():
            return CliFailure(str(error), "`heliograph doctor` looks for the reason.")
        case Diverged():
            return CliFailure(str(error), "`heliograph verify` says what is wrong with the log.")
        case _:
            return CliFailure(str(error))
