"""`heliograph batches`: see, follow, steer and repeat batches, and fetch their results."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.failures import FAILED, CliFailure, usage
from gateway.cli.options import ApiKey, AsJson, Tenant, Url

if TYPE_CHECKING:
    from gateway.cli.connection import Server
    from gateway.client.views import BatchSnapshot

app = typer.Typer(no_args_is_help=True, help="See, follow, steer and repeat batches; fetch results.")

_PATH = "/api/admin/batches"
INTERRUPTED = 130

SEND_SECONDS = 600.0
"""What the server may take to read and count a file it was sent."""

BatchArgument = Annotated[
    str, typer.Argument(metavar="BATCH", help="Id of a batch, as printed by submit --inputs.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="File to write (default: stdout).", show_default=False),
]


# --- beginning one ----------------------------------------------------------------------------------------


def start_batch(
    server: Server,
    flow: str,
    inputs: Path | None,
    source: str | None,
    fields: dict[str, Any],
    idempotency_key: str | None,
) -> dict[str, Any]:
    """Start a batch over a file of this machine, or over a source of the server's."""
    given = {"flow": flow, **{name: value for name, value in fields.items() if value is not None}}
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    if inputs is None:
        return server.send("POST", _PATH, json={**given, "source": source}, headers=headers)
    form = {name: str(value) for name, value in given.items()}
    try:
        with _shown(inputs) as file:
            return server.send(
                "POST",
                _PATH,
                data=form,
                files={"inputs": (inputs.name, file)},
                headers=headers,
                timeout=SEND_SECONDS,
            )
    except OSError as error:
        raise usage(f"--inputs {inputs}: {error.strerror or error}") from None


def _shown(path: Path) -> Any:
    """The file to read, with a bar on a terminal that moves as it is read."""
    if not sys.stderr.isatty():
        return path.open("rb")
    from rich.console import Console
    from rich.progress import open as open_with_progress

    return open_with_progress(
        path, "rb", description=f"sending {path.name}", console=Console(stderr=True), transient=True
    )


# --- following --------------------------------------------------------------------------------------------


def watch_batch(server: Server, batch_id: str, *, quiet: bool = False) -> dict[str, Any]:
    """Follow a batch to its end and give it as it then is. Raises: CliFailure on Ctrl-C; it goes on."""
    import msgspec

    from gateway.client.views import BATCH_ENDED, BatchSnapshot

    found = server.events(f"{_PATH}/{batch_id}/events", 0, lambda batch: batch["status"] in BATCH_ENDED)
    news = (msgspec.convert(batch, BatchSnapshot) for batch in found)
    try:
        if quiet:
            for _ in news:
                continue
        elif sys.stderr.isatty():
            _draw(news)
        else:
            for batch in news:
                print(_line(batch), file=sys.stderr)
    except KeyboardInterrupt:
        raise CliFailure(
            f"no longer watching batch {batch_id}, which goes on",
            f"`heliograph batches watch {batch_id}` watches it again, "
            f"`heliograph batches cancel {batch_id}` ends it.",
            INTERRUPTED,
        ) from None
    return server.get(f"{_PATH}/{batch_id}")


def _draw(news: Iterator[BatchSnapshot]) -> None:
    from gateway.client.progress import BatchBar, bars

    with bars() as drawn:
        bar = BatchBar(drawn, "batch")
        for batch in news:
            bar.take(batch)


def _line(batch: BatchSnapshot) -> str:
    from runtime import chunks

    counts = batch.counts
    return f"{batch.status:<10} {chunks.told(counts.done, counts.total, counts.failed, batch.rate or 0.0)}"


def items_in_words(count: int) -> str:
    return "1 item" if count == 1 else f"{count} items"


def end_with_batch(batch: dict[str, Any]) -> None:
    """Fail the command when the batch did not complete, or items failed. Raises: CliFailure saying why."""
    counts, batch_id = batch["counts"], batch["batch_id"]
    if batch["status"] != "completed":
        why = f": {batch['error']}" if batch["error"] else ""
        raise CliFailure(f"batch {batch_id} ended {batch['status']}{why}", "", FAILED)
    if counts["failed"]:
        raise CliFailure(
            f"{counts['failed']} of {items_in_words(counts['total'])} failed",
            f"`heliograph batches failed {batch_id}` lists them, "
            f"`heliograph batches retry {batch_id}` runs them again.",
            FAILED,
        )


# --- commands ---------------------------------------------------------------------------------------------


@app.command("list")
def list_batches(
    limit: Annotated[int, typer.Option(min=1, max=500, help="List this many.")] = 20,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List the latest batches."""
    from gateway.cli.connection import connected
    from gateway.cli.output import print_json, print_table

    with connected(url, api_key) as server:
        found = server.get(_PATH, limit=limit, tenant=tenant)
    if as_json:
        print_json(found)
        return
    rows = [
        (one["batch_id"], one["flow_id"], one["status"], *_numbers(one["counts"]), one["created_at"])
        for one in found["batches"]
    ]
    print_table(
        ("BATCH", "FLOW", "STATUS", "COMPLETED", "FAILED", "TOTAL", "CREATED"), rows, "no batch found"
    )


def _numbers(counts: dict[str, Any]) -> tuple[Any, ...]:
    return counts["completed"], counts["failed"], counts["total"]


@app.command()
def show(
    batch: BatchArgument,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show a batch with its counts, rate and time left."""
    from gateway.cli.connection import connected

    with connected(url, api_key) as server:
        _show(server.get(f"{_PATH}/{_id(batch)}", tenant=tenant), as_json)


def _show(found: dict[str, Any], as_json: bool) -> None:
    from gateway.cli.output import print_fields, print_json

    if as_json:
        print_json(found)
        return
    counts = {name: value for name, value in found.pop("counts").items() if value is not None}
    found["rounds"] = len(found["rounds"])
    print_fields({**found, "items": ", ".join(f"{value} {name}" for name, value in counts.items())})


def _id(batch: str) -> str:
    from gateway.cli.connection import segment

    return segment(batch)


@app.command()
def watch(
    batch: BatchArgument,
    quiet: Quiet = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Follow a batch to its end. Ctrl-C leaves it running."""
    from gateway.cli.connection import connected

    with connected(url, api_key) as server:
        found = watch_batch(server, _id(batch), quiet=quiet)
    if as_json:
        _show(found, as_json)
    end_with_batch(found)


def _send(
    batch: str,
    verb: str,
    body: dict[str, Any],
    tenant: str | None,
    as_json: bool,
    url: str | None,
    api_key: str | None,
) -> None:
    from gateway.cli.connection import connected
    from gateway.cli.output import note, print_json

    with connected(url, api_key) as server:
        found = server.post(f"{_PATH}/{_id(batch)}/{verb}", body, tenant=tenant)
    if as_json:
        print_json(found)
    else:
        note(f"batch {found['batch_id']} is {found['status']}")


@app.command()
def pause(
    batch: BatchArgument,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Begin no further item of a batch until it is resumed."""
    _send(batch, "pause", {}, tenant, as_json, url, api_key)


@app.command()
def resume(
    batch: BatchArgument,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Let a paused batch go on."""
    _send(batch, "resume", {}, tenant, as_json, url, api_key)


@app.command()
def cancel(
    batch: BatchArgument,
    reason: Annotated[str, typer.Option(help="Recorded with the cancellation.")] = "",
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Cancel a batch: items that run are cancelled too, what has ended stays."""
    _send(batch, "cancel", {"reason": reason}, tenant, as_json, url, api_key)


@app.command()
def failed(
    batch: BatchArgument,
    limit: Annotated[int, typer.Option(min=1, max=500, help="List this many.")] = 50,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List a batch's failed items, with their inputs and errors."""
    from gateway.cli.connection import connected

    with connected(url, api_key) as server:
        page = server.get(f"{_PATH}/{_id(batch)}/items", status="failed", limit=limit, tenant=tenant)
    show_failed_items(page, as_json)


def show_failed_items(page: dict[str, Any], as_json: bool) -> None:
    import json

    from gateway.cli.output import note, print_json, print_table

    if as_json:
        print_json(page)
        return
    rows = [
        (item["index"], f"{item['error']['type']}: {item['error']['message']}", json.dumps(item["input"]))
        for item in page["items"]
    ]
    print_table(("ITEM", "ERROR", "INPUT"), rows, "no item has failed")
    if page["next_after"] is not None:
        note("there are more: --limit shows up to 500, --json says where the next page begins")


@app.command()
def retry(
    batch: BatchArgument,
    follow: Annotated[bool, typer.Option("--watch", "-w", help="Follow it to its end.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Run the failed items of a batch again, once it has ended."""
    from gateway.cli.connection import connected
    from gateway.cli.output import note

    with connected(url, api_key) as server:
        found = server.post(f"{_PATH}/{_id(batch)}/retry-failed", {})
        count = items_in_words(found["rounds"][-1]["items"])
        note(f"batch {found['batch_id']} runs again what failed: {count}")
        if follow:
            found = watch_batch(server, found["batch_id"], quiet=quiet)
    if as_json:
        _show(found, as_json)
    if follow:
        end_with_batch(found)


@app.command()
def results(
    batch: BatchArgument,
    form: Annotated[
        str | None,
        typer.Option("--format", help="jsonl or parquet (default: by the file's name, else jsonl)."),
    ] = None,
    output: Output = None,
    tenant: Tenant = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Fetch all results of a batch as one file, in the order of inputs."""
    from gateway.cli.connection import connected
    from gateway.cli.output import note

    wanted = form or ("parquet" if output is not None and output.suffix == ".parquet" else "jsonl")
    if wanted not in ("jsonl", "parquet"):
        raise usage(f"--format {wanted!r}: jsonl or parquet")
    if output is None and wanted == "parquet" and sys.stdout.isatty():
        raise usage("Parquet is not for a terminal", "Name a file with --output.")
    with connected(url, api_key) as server:
        pieces = server.download(f"{_PATH}/{_id(batch)}/results", format=wanted, tenant=tenant)
        if output is None:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        size = _write(output, pieces)
    note(f"wrote {output} ({size} bytes)")


def _write(output: Path, pieces: Iterator[bytes]) -> int:
    """A file that is there is whole: it is written beside its place and moved there."""
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    size = 0
    try:
        with unfinished.open("wb") as file:
            for piece in pieces:
                size += file.write(piece)
        unfinished.replace(output)
    except OSError as error:
        raise CliFailure(f"{output}: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return size
