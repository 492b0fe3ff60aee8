"""`heliograph archive`: old executions leave the log for Parquet files, verified before they do."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.failures import CliFailure, usage
from gateway.cli.log import PARQUET_HINT, Store, opened
from gateway.cli.options import AsJson

if TYPE_CHECKING:
    from runtime.ids import Micros

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}
_AGE = re.compile(r"(?P<number>[0-9]{1,6})(?P<unit>[hdw])")


def archive(
    to: Annotated[
        str, typer.Option("--to", help="Folder, or any URL that fsspec knows: s3://bucket/archive.")
    ],
    before: Annotated[
        str | None,
        typer.Option(help="Executions that ended before this day or time (UTC), e.g. 2026-10-01."),
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            help="Executions that ended so long ago: 90d, 12h, 4w [default: HELIOGRAPH_RETENTION_SECONDS]."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many executions and events would go.")
    ] = False,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Move ended executions, with all their events, out of the log into Parquet files. Safe to repeat."""
    from gateway.cli.connection import waiting
    from gateway.cli.output import note, print_json

    try:
        from gateway.archive import Archive, ArchiveRefused
    except ModuleNotFoundError as error:
        raise CliFailure(f"an archive needs {error.name}", PARQUET_HINT) from None
    from projections.runner import PROJECTIONS, Runner
    from projections.tracked import prepare

    cutoff = _cutoff(before, older_than)
    parts = executions = events = 0
    with opened(store) as (log, reads):
        prepare(reads, PROJECTIONS)
        try:
            archived = Archive(to, log, reads, PROJECTIONS, Runner(log, reads).catch_up)
            if dry_run:
                with waiting("counting"):
                    executions, events = archived.waiting(cutoff)
            else:
                for progress in archived.run(cutoff):
                    parts += 1
                    executions += progress.part.executions
                    events += progress.part.events
                    note(f"{executions} executions, {events} events")
        except ArchiveRefused as refused:
            raise CliFailure(str(refused)) from None
        except (OSError, ValueError, ImportError) as error:
            raise CliFailure(f"{to}: {error}", "Run it again: it goes on where it was.") from None
    if as_json:
        print_json({"dry_run": dry_run, "executions": executions, "events": events, "parts": parts})
    elif dry_run:
        note(f"{executions} executions with {events} events would go to {to}")
    else:
        note(f"{to}: {executions} executions archived" if executions else f"{to}: nothing to archive")


def _cutoff(before: str | None, older_than: str | None) -> Micros:
    """Raises: CliFailure for no time, or two."""
    from gateway.cli.settings import load_settings
    from runtime.ids import SECOND, Micros

    if before is not None and older_than is not None:
        raise usage("--before and --older-than say the same thing; give one")
    now = datetime.now(UTC)
    if before is not None:
        try:
            at = datetime.fromisoformat(before)
        except ValueError:
            raise usage(f"--before {before!r}: a day or time, as 2026-10-01 or 2026-10-01T12:00") from None
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    elif older_than is not None:
        found = _AGE.fullmatch(older_than)
        if found is None:
            raise usage(f"--older-than {older_than!r}: a number of h, d or w, as 90d")
        at = now - timedelta(**{_UNITS[found["unit"]]: int(found["number"])})
    else:
        kept = load_settings().retention_seconds
        if kept is None:
            raise usage("what may go? Name --before or --older-than, or set HELIOGRAPH_RETENTION_SECONDS")
        at = now - timedelta(seconds=kept)
    return Micros(int(at.timestamp() * SECOND))
