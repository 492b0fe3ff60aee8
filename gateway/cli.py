"""The command line. Commands live in `cli_*` modules, which import what is heavy only when they run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from gateway import cli_doctor, cli_executions, cli_flows, cli_keys, cli_log, cli_run, cli_server
from gateway.cli_failures import CliFailure, exit_with

HELP = """Durable executions on Ray: start flows, watch them, prove what happened.

Without any set-up:

    heliograph demo                                   a real job, killed half way, that finishes
    heliograph run flows/hello.yaml -i name=World     run a flow file and print its output

With a server:

    heliograph serve                                  start it; prints where it listens
    heliograph flows publish flows/hello.yaml
    heliograph submit hello -i name=World             prints the execution's id
    heliograph status EXECUTION
    heliograph events EXECUTION --follow
    heliograph verify                                 prove that the log keeps every promise

Another machine's server: set HELIOGRAPH_URL and HELIOGRAPH_API_KEY. Every command has --help; add
--json in scripts. Results go to stdout, everything else to stderr; the exit code is 0 when it worked,
2 for a mistake in the command, 1 for everything else.
"""

app = typer.Typer(
    name="heliograph",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

_START, _EXECUTIONS, _OPERATE = "Start here", "Executions", "Operate"

app.command(rich_help_panel=_START)(cli_server.serve)
app.command(rich_help_panel=_START)(cli_server.demo)
app.command(rich_help_panel=_START)(cli_run.run)
app.command(rich_help_panel=_EXECUTIONS)(cli_executions.submit)
app.command(rich_help_panel=_EXECUTIONS)(cli_executions.status)
app.command(rich_help_panel=_EXECUTIONS)(cli_executions.events)
app.command(rich_help_panel=_EXECUTIONS)(cli_executions.cancel)
app.command(rich_help_panel=_EXECUTIONS)(cli_executions.signal)
app.command(rich_help_panel=_EXECUTIONS)(cli_executions.pause)
app.command(rich_help_panel=_EXECUTIONS)(cli_executions.resume)
app.add_typer(cli_flows.app, name="flows", rich_help_panel=_OPERATE)
app.add_typer(cli_keys.app, name="keys", rich_help_panel=_OPERATE)
app.add_typer(cli_log.projections, name="projections", rich_help_panel=_OPERATE)
app.command(rich_help_panel=_OPERATE)(cli_log.verify)
app.command(rich_help_panel=_OPERATE)(cli_doctor.doctor)


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
    except Exception as error:
        exit_with(_expected(error))


def _expected(error: Exception) -> CliFailure:
    """What a domain error means to a person; anything else is our bug and keeps its traceback."""
    from runtime.errors import Diverged, DomainError, Unavailable

    match error:
        case Unavailable():
            return CliFailure(str(error), "`heliograph doctor` looks for the reason.")
        case Diverged():
            return CliFailure(str(error), "`heliograph verify` says what is wrong with the log.")
        case DomainError():
            return CliFailure(str(error))
        case _:
            raise error


if __name__ == "__main__":
    main()
