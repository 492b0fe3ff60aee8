"""`heliograph projections`, `verify` and `export`: proof that read models and log hold what they promise.

They work on the store itself, with or without a server running over it.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.failures import CliFailure, usage
from gateway.cli.options import AsJson

if TYPE_CHECKING:
    from projections.store import ReadStore
    from runtime.event_log import EventLog, Recorded
    from runtime.verification import JournalEntry

DIFFERENCES_MAX = 1_000
"""Differences that are collected; the first few are printed."""
SHOWN_MAX = 20

PARQUET_HINT = "pip install 'heliograph[parquet]'"

projections = typer.Typer(no_args_is_help=True, help="Check or rebuild the read models.")

Store = Annotated[
    str | None,
    typer.Option(
        help="sqlite:///path or postgresql://... [default: HELIOGRAPH_STORE, else the embedded one].",
        show_default=False,
    ),
]


@projections.command()
def check(store: Store = None, as_json: AsJson = False) -> None:
    """Prove that every read model is what the log says: build them anew beside the live ones and compare."""
    from gateway.cli.connection import waiting
    from gateway.cli.output import note, print_json
    from projections.check import verify_read_models
    from projections.runner import PROJECTIONS
    from projections.tracked import prepare

    with opened(store) as (log, reads), _alone(), waiting("building the read models anew"):
        prepare(reads, PROJECTIONS)
        found = list(islice(verify_read_models(log, reads, PROJECTIONS), DIFFERENCES_MAX))
        position = log.max_position()
    if as_json:
        differences = [
            {"table": d.table, "key": list(d.key), "stored": _plain(d.stored), "rebuilt": _plain(d.rebuilt)}
            for d in found
        ]
        print_json({"ok": not found, "position": position, "differences": differences})
    elif not found:
        note(f"every read model is what the log says, up to position {position}")
    if found:
        shown = [
            f"{d.table} {', '.join(map(str, d.key))}: {_how(d.stored, d.rebuilt)}" for d in found[:SHOWN_MAX]
        ]
        more = [f"and {len(found) - SHOWN_MAX} more"] if len(found) > SHOWN_MAX else []
        count = f"{'at least ' if len(found) == DIFFERENCES_MAX else ''}{len(found)}"
        raise CliFailure(
            f"{count} rows differ from what the log says:\n  " + "\n  ".join(shown + more),
            "`heliograph projections rebuild` mends them.",
        )


@projections.command()
def rebuild(
    name: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="node_timeline, ..., or inline [default: all]."),
    ] = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Build read models anew from the log and put them in place, also while a server serves."""
    from gateway.cli.connection import waiting
    from gateway.cli.output import note, print_json
    from projections import inline_rebuild
    from projections.rebuild import rebuild as rebuild_tracked
    from projections.runner import PROJECTIONS
    from projections.tracked import prepare

    tracked = {projection.name: projection for projection in PROJECTIONS}
    chosen = name or [_INLINE, *tracked]
    for each in chosen:
        if each != _INLINE and each not in tracked:
            raise usage(f"no read model is called {each!r}", f"There are {', '.join((_INLINE, *tracked))}.")
    done: dict[str, Any] = {}
    with opened(store) as (log, reads), _alone():
        prepare(reads, PROJECTIONS)
        for each in chosen:
            with waiting(f"rebuilding {each}"):
                if each == _INLINE:
                    done[each] = inline_rebuild.rebuild(reads)
                else:
                    done[each] = rebuild_tracked(log, reads, tracked[each])
            if not as_json:
                what = "streams" if each == _INLINE else "is the position it stands at"
                note(f"{each}: rebuilt, {done[each]} {what}")
    if as_json:
        print_json(done)


_INLINE = "inline"


@contextmanager
def _alone() -> Generator[None]:
    """Raises: CliFailure when another check, a rebuild or an archive took the new rows away."""
    from projections.tracked import Moved

    try:
        yield
    except Moved:
        raise CliFailure(
            "another check, a rebuild or an archive of this log ran meanwhile", "Run it again afterwards."
        ) from None


def _plain(row: Any) -> Any:
    return None if row is None else [str(value) if isinstance(value, bytes) else value for value in row]


def _how(stored: Any, rebuilt: Any) -> str:
    if stored is None:
        return "is missing"
    if rebuilt is None:
        return "should not be there"
    pairs = [(s, r) for s, r in zip(stored, rebuilt, strict=True) if s != r]
    before, after = pairs[0] if pairs else (stored, rebuilt)
    return f"{_short(before)} is stored, {_short(after)} is right"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@contextmanager
def opened(store: str | None) -> Generator[tuple[EventLog, ReadStore]]:
    """The log and its read models.

    Raises: CliFailure when there is none, or it can't be opened.
    """
    from gateway.cli.doctor import without_password
    from gateway.cli.settings import load_settings
    from projections.store import ReadStore
    from runtime.event_log import EventLog

    settings = load_settings(store=store)
    url = settings.store_url
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        raise CliFailure(
            f"there is no store at {url.removeprefix('sqlite:///')}",
            "Name one with --store, HELIOGRAPH_STORE or HELIOGRAPH_DATA_DIR.",
        )
    try:
        env = settings.store_env
    except ValueError:
        raise usage(f"--store: {without_password(url)!r} is no store") from None
    log = EventLog.open(env)
    try:
        yield log, ReadStore.over(log)
    finally:
        log.close()


def verify(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[SOURCE]",
            help="Store URL, SQLite file or export [default: HELIOGRAPH_STORE, else the embedded one].",
        ),
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(
            help='What clients were told, as JSON lines: {"type": "accepted", "execution_id": "..."} or '
            '{"type": "seen", "execution_id": "...", "status": "completed"}.',
            show_default=False,
        ),
    ] = None,
    settled: Annotated[
        bool, typer.Option("--settled", help="All work is done: an execution without an end is a fault.")
    ] = False,
    archive: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder or URL of an archive of this log, to be verified with it.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prove that a log keeps every promise: chain of hashes, versions, owners, outcomes, ends."""
    import msgspec

    from gateway.cli.output import note, print_fields, print_json
    from runtime import verification

    entries = [] if journal is None else _journal(journal)
    with _recorded(source) as (recorded, identity), _archived(archive or (), identity) as archived:
        report = verification.verify(recorded, entries, settled=settled, archived=archived)
    if as_json:
        print_json({"ok": report.is_clean, **msgspec.to_builtins(report)})
    else:
        ended = ", ".join(f"{count} {status}" for status, count in report.executions.items())
        print_fields(
            {
                "events": f"{report.events}, positions {report.first_position} to {report.last_position}",
                "streams": report.streams,
                "executions": ended or "none",
            }
        )
        if report.is_clean:
            note("the log keeps every promise")
    if not report.is_clean:
        lines = [
            f"{v.rule}: {v.originator_id} version {v.version} at {v.position}: {v.detail}"
            for v in report.violations[:SHOWN_MAX]
        ]
        more = [f"and {report.found - SHOWN_MAX} more"] if report.found > SHOWN_MAX else []
        raise CliFailure(f"{report.found} promises are broken:\n  " + "\n  ".join(lines + more))


def export(
    target: Annotated[
        str, typer.Argument(help="The file to write; - is stdout; with --parquet a folder or URL.")
    ],
    execution: Annotated[
        str | None, typer.Option(help="Only this execution's events [default: the whole log].")
    ] = None,
    parquet: Annotated[
        bool,
        typer.Option("--parquet", help="Events and read models as Parquet, from where the last one ended."),
    ] = False,
    store: Store = None,
) -> None:
    """Write the log as a file that `verify` can check anywhere (JSON lines), or as Parquet for analysis."""
    from gateway.cli.output import note
    from gateway.log_export import write_export
    from runtime.verification import pages

    if parquet:
        if execution:
            raise usage("--parquet exports the whole log; leave --execution out")
        _export_parquet(target, store)
        return
    file = Path(target)
    with opened(store) as (log, _):
        found = log.read(execution) if execution else pages(log.feed)
        if execution and not found:
            raise CliFailure(f"the log holds no execution {execution}")
        watched = _watched(found, 0 if execution else log.max_position(), "exporting")
        if str(file) == "-":
            write_export(watched, sys.stdout.buffer)
            return
        try:
            with file.open("wb") as output:
                count = write_export(watched, output)
        except OSError as error:
            raise CliFailure(f"{file}: {error.strerror or error}") from None
    note(f"{file}: {count} events")


def _export_parquet(url: str, store: str | None) -> None:
    from gateway.cli.output import note

    try:
        from gateway.parquet_export import ExportRefused, ParquetExport
    except ModuleNotFoundError as error:
        raise CliFailure(f"--parquet needs {error.name}", PARQUET_HINT) from None
    from projections.runner import Runner

    with opened(store) as (log, reads):
        events = 0
        try:
            for reached in ParquetExport(url, log, reads, Runner(log, reads).catch_up).run():
                events += reached.events
                note(f"position {reached.position} of {log.max_position()}")
        except ExportRefused as refused:
            raise CliFailure(str(refused)) from None
        except (OSError, ValueError, ImportError) as error:
            raise CliFailure(f"{url}: {error}") from None
    note(f"{url}: {events} new events" if events else f"{url}: nothing new")


@contextmanager
def _recorded(source: str | None) -> Generator[tuple[Iterable[Recorded], str | None]]:
    """The events of a store, an export or an archive, with progress for whoever waits.

    The second value is a store's identity.

    Raises: CliFailure, also while they are read.
    """
    from gateway.log_export import ExportFault, read_export
    from runtime.verification import pages

    path = Path(source or "")
    if source is None or "://" in source or _is_sqlite(path):
        store = f"sqlite:///{source}" if source is not None and "://" not in source else source
        with opened(store) as (log, reads):
            from projections.retention import identity

            yield _watched(pages(log.feed), log.max_position(), "verifying"), identity(reads, log)
        return
    if path.is_dir():
        with _parquet_events(source) as recorded:
            yield recorded, None
        return
    try:
        with sys.stdin.buffer if source == "-" else path.open("rb") as file:
            yield _watched(read_export(file), 0, "verifying"), None
    except ExportFault as fault:
        raise CliFailure(f"{source}: {fault}", "`heliograph export FILE` writes one.") from None
    except OSError as error:
        raise usage(f"{source}: {error.strerror or error}") from None


@contextmanager
def _archived(urls: Iterable[str], identity: str | None) -> Generator[Iterable[Iterable[Recorded]]]:
    """The parts of archives. Raises: CliFailure, also while they are read."""
    if not urls:
        yield ()
        return
    try:
        from gateway.archive import ArchiveRefused, read_archive
    except ModuleNotFoundError as error:
        raise CliFailure(f"an archive needs {error.name}", PARQUET_HINT) from None
    try:
        yield (part for url in urls for part in read_archive(url, identity))
    except ArchiveRefused as refused:
        raise CliFailure(str(refused), "`heliograph archive --to URL` writes one.") from None


@contextmanager
def _parquet_events(folder: str) -> Generator[Iterable[Recorded]]:
    """Raises: CliFailure, also while they are read."""
    try:
        from gateway.parquet_export import ExportRefused, read_events
    except ModuleNotFoundError as error:
        raise CliFailure(f"a Parquet export needs {error.name}", PARQUET_HINT) from None
    try:
        yield _watched(read_events(folder), 0, "verifying")
    except ExportRefused as refused:
        raise CliFailure(str(refused), "`heliograph export --parquet FOLDER` writes one.") from None


def _is_sqlite(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\x00"
    except OSError:
        return False


def _journal(path: Path) -> list[JournalEntry]:
    import msgspec

    from runtime.verification import Accepted, Seen

    try:
        return [
            msgspec.json.decode(line, type=Accepted | Seen)
            for line in path.read_bytes().splitlines()
            if line.strip()
        ]
    except OSError as error:
        raise usage(f"--journal {path}: {error.strerror or error}") from None
    except msgspec.DecodeError as error:
        raise usage(f"--journal {path}: {error}") from None


def _watched(recorded: Iterable[Recorded], last: int, what: str) -> Iterator[Recorded]:
    """The same events; on a terminal with a bar. ``last``: position of the last one, 0 when unknown."""
    if not sys.stderr.isatty():
        yield from recorded
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=last or None)
        for number, one in enumerate(recorded):
            if number % 1_000 == 0:
                progress.update(task, completed=one.position if last else number)
            yield one
