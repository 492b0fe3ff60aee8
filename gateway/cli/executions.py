"""Commands about one execution: submit, status, events, and the messages it can be sent."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.failures import FAILED, CliFailure, usage
from gateway.cli.options import ApiKey, AsJson, ExecutionArgument, Tenant, Url

if TYPE_CHECKING:
    from gateway.cli.connection import Server


def is_terminal(event: dict[str, Any]) -> bool:
    """Whether nothing can follow in its execution."""
    from gateway.client.views import TERMINAL_TYPES

    return event["type"] in TERMINAL_TYPES


Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", "-i", metavar="NAME=VALUE", help="One input; VALUE is JSON or text. Repeat."),
]
InputJson = Annotated[str | None, typer.Option("--input-json", help="All inputs as one JSON object.")]
InputFile = Annotated[
    Path | None, typer.Option("--input-file", help="A file with the inputs as one JSON object; - is stdin.")
]
IdempotencyKey = Annotated[
    str | None, typer.Option("--idempotency-key", help="Makes a repeat of this command harmless.")
]
FlowOrFile = Annotated[str, typer.Argument(metavar="FLOW", help="Id of a published flow, or a flow file.")]


def start_execution(
    server: Server, flow: str, input_data: dict[str, Any], idempotency_key: str | None = None
) -> str:
    """Start FLOW (a file is published first) and return the execution's id."""
    started = server.start(_published(server, flow), input_data, idempotency_key)
    return str(started["execution_id"])


def _published(server: Server, flow: str) -> str:
    """The flow's id; a file is published first."""
    from gateway.cli.flows import is_file_name, publish_file, refuse_broken

    if is_file_name(flow):
        file = Path(flow)
        refuse_broken(file)
        flow = publish_file(server, file)["flow_id"]
    return flow


def submit(
    flow: FlowOrFile,
    inputs: Inputs = None,
    input_json: InputJson = None,
    input_file: InputFile = None,
    batch_inputs: Annotated[
        Path | None,
        typer.Option("--inputs", help="A batch: run it for every row of a JSON Lines, CSV or Parquet file."),
    ] = None,
    batch_source: Annotated[
        str | None,
        typer.Option("--source", help="A batch over a path, pattern or URL that the server reads."),
    ] = None,
    batch_format: Annotated[
        str | None, typer.Option("--format", help="jsonl, csv or parquet (default: by the name).")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=1_000, help="Items of a batch that run at a time (default: 64).")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What to call the batch.", show_default=False)] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the batch to its end.")] = False,
    idempotency_key: IdempotencyKey = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Start an execution, or with --inputs a batch of them, print its id and leave it to the server."""
    from gateway.cli.connection import connected
    from gateway.cli.input import execution_input
    from gateway.cli.output import print_json, print_text

    is_batch = batch_inputs is not None or batch_source is not None
    _check_submit(
        is_batch,
        one_input=bool(inputs or input_json is not None or input_file is not None),
        both=batch_inputs is not None and batch_source is not None,
        of_batch=watch or any(value is not None for value in (batch_format, concurrency, name)),
    )
    if is_batch:
        fields = {"format": batch_format, "concurrency": concurrency, "name": name}
        with connected(url, api_key) as server:
            _submit_batch(server, flow, batch_inputs, batch_source, fields, idempotency_key, watch, as_json)
        return
    given = execution_input(inputs, input_json, input_file)
    with connected(url, api_key) as server:
        execution_id = start_execution(server, flow, given, idempotency_key)
    if as_json:
        print_json({"execution_id": execution_id})
    else:
        print_text(execution_id)


def _check_submit(is_batch: bool, *, one_input: bool, both: bool, of_batch: bool) -> None:
    if both:
        raise usage("--inputs and --source exclude each other")
    if is_batch and one_input:
        raise usage(
            "--inputs and --source are for batches; --input, --input-json, --input-file for one input"
        )
    if of_batch and not is_batch:
        raise usage("--format, --concurrency, --name and --watch are for batches: give --inputs or --source")


def _submit_batch(
    server: Server,
    flow: str,
    inputs: Path | None,
    source: str | None,
    fields: dict[str, Any],
    idempotency_key: str | None,
    watch: bool,
    as_json: bool,
) -> None:
    from gateway.cli.batches import end_with_batch, start_batch, watch_batch
    from gateway.cli.output import note, print_json, print_text

    flow = _published(server, flow)
    batch = start_batch(server, flow, inputs, source, fields, idempotency_key)
    if not as_json:
        print_text(batch["batch_id"])
    if watch:
        batch = watch_batch(server, batch["batch_id"])
    else:
        note(f"`heliograph batches watch {batch['batch_id']}` follows it")
    if as_json:
        print_json(batch)
    if watch:
        end_with_batch(batch)


def status(
    execution: Annotated[
        str | None, typer.Argument(metavar="[EXECUTION]", help="Without it: the latest executions.")
    ] = None,
    flow: Annotated[str | None, typer.Option(help="List those of this flow.", show_default=False)] = None,
    state: Annotated[
        str | None,
        typer.Option("--status", help="List those in this status, e.g. failed.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=500, help="List this many.")] = 20,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Follow the execution to its end first.")
    ] = False,
    tenant: Tenant = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show one execution with its nodes, or list the latest."""
    from gateway.cli.connection import connected
    from gateway.cli.output import print_json, print_table

    with connected(url, api_key) as server:
        if execution is not None:
            if watch:
                from gateway.cli.run import watch as follow

                follow(server, execution, quiet=as_json)
            found = server.get(f"/api/audit/executions/{execution}")
            if as_json:
                print_json(found)
            else:
                show_execution(found)
            return
        page = server.get("/api/audit/executions", flow=flow, status=state, tenant=tenant, limit=limit)
    if as_json:
        print_json(page)
        return
    print_table(
        ("EXECUTION", "FLOW", "STATUS", "PROGRESS", "CREATED"),
        [
            (e["execution_id"], e["flow_id"], e["status"], f"{e['progress']:g} %", e["created_at"])
            for e in page["executions"]
        ],
        "no execution found",
    )


def show_execution(found: dict[str, Any]) -> None:
    from gateway.cli.output import print_fields, print_table, print_text

    names = (
        "execution_id flow_id flow_version status queue waits_for current_node created_at started_at "
        "ended_at owner error output"
    )
    shown = {name: found.get(name) for name in names.split()}
    nodes = f"{found['completed_nodes']} of {found['total_nodes']} nodes"
    retries = f", {found['retry_count']} retries" if found["retry_count"] else ""
    print_fields({**shown, "progress": f"{found['progress']:g} % ({nodes}{retries})"})
    if found["nodes"]:
        print()
        print_table(
            ("NODE", "STATUS", "ATTEMPT", "STARTED", "TOOK", "WHERE", "ERROR"),
            [
                (
                    node["node_id"],
                    node["status"],
                    node["attempt"],
                    (node["started_at"] or "")[11:23],
                    _took(node["started_at"], node["ended_at"]),
                    node["where"],
                    node["error"],
                )
                for node in found["nodes"]
            ],
        )
    for node in found["nodes"]:
        if node["items"]:
            print_text(f"{node['node_id']}: {_items_told(node['items'])}")
        for what in node["missing"]:
            print_text(f"{node['node_id']} can't be placed; missing: {what}")


def _took(started_at: str | None, ended_at: str | None) -> str:
    if started_at is None or ended_at is None:
        return ""
    took = datetime.fromisoformat(ended_at) - datetime.fromisoformat(started_at)
    return f"{took.total_seconds():.3f} s"


def events(
    execution: Annotated[
        str | None, typer.Argument(metavar="[EXECUTION]", help="Without it: the events of everything.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, until the end.")] = False,
    after: Annotated[int, typer.Option(min=0, help="Only events behind this position of the log.")] = 0,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Print the events of an execution, or of everything. With --json one event a line."""
    from gateway.cli.connection import connected
    from gateway.cli.output import print_text

    path = f"/api/audit/executions/{execution}/events" if execution else "/api/audit/events"
    with connected(url, api_key) as server:
        is_last = is_terminal if execution else None
        found = server.events(f"{path}/stream", after, is_last) if follow else _paged(server, path, after)
        for event in found:
            print_text(json.dumps(event, ensure_ascii=False) if as_json else event_line(event))


def _paged(server: Server, path: str, after: int) -> Any:
    position: int | None = after
    while position is not None:
        page = server.get(path, after=position, limit=1000)
        yield from page["events"]
        position = page["next_after"]


def event_line(event: dict[str, Any]) -> str:
    """One event for a person: when, what, and the few details that matter."""
    data = event["data"]
    details = [
        str(data[name]) for name in ("node_id", "name", "flow_id", "owner", "reason") if data.get(name)
    ]
    if data.get("attempt", 1) > 1:
        details.append(f"attempt {data['attempt']}")
    if event["type"] == "execution.node_logged":
        details.append(_logged(data["event"], data.get("detail")))
    if event["type"] == "execution.chunks_recorded":
        details.append(_items_told(data))
    if data.get("error"):
        error = data["error"]
        details.append(error if isinstance(error, str) else f"{error['type']}: {error['message']}")
    subject = event["type"].removeprefix("execution.")
    return f"{event['position']:>8}  {event['at']}  {subject:<20}  {'  '.join(details)}".rstrip()


def _items_told(data: dict[str, Any]) -> str:
    from runtime import chunks

    rate = data.get("rate") or 0.0
    return chunks.told(data.get("done", 0), data.get("total"), data.get("failed", 0), rate)


def _logged(event: str, detail: Any) -> str:
    missing: list[str] = detail.get("missing", []) if event == "unschedulable" else []
    return f"{event}, missing: {'; '.join(missing)}" if missing else event


def _send(
    verb: str, execution: str, body: dict[str, Any], as_json: bool, url: str | None, api_key: str | None
) -> None:
    from gateway.cli.connection import connected
    from gateway.cli.output import note, print_json

    with connected(url, api_key) as server:
        answer = server.post(f"/api/admin/executions/{execution}/{verb}", body)
    if as_json:
        print_json(answer)
    else:
        note(f"execution {answer['execution_id']} was {answer['previous_status']}, is {answer['status']}")


def cancel(
    execution: ExecutionArgument,
    reason: Annotated[str, typer.Option(help="Recorded with the cancellation.")] = "",
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Cancel an execution: running nodes get 10 seconds, then are killed."""
    _send("cancel", execution, {"reason": reason}, as_json, url, api_key)


def pause(
    execution: ExecutionArgument, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Start no further node of an execution until it is resumed."""
    _send("pause", execution, {}, as_json, url, api_key)


def resume(
    execution: ExecutionArgument, as_json: AsJson = False, url: Url = None, api_key: ApiKey = None
) -> None:
    """Let a paused execution go on."""
    _send("resume", execution, {}, as_json, url, api_key)


def signal(
    execution: ExecutionArgument,
    name: Annotated[str, typer.Argument(help="The signal a node waits for.")],
    payload: Annotated[str | None, typer.Option(help="JSON handed to that node.", show_default=False)] = None,
    signal_id: Annotated[
        str | None, typer.Option(help="Makes a repeat of this signal harmless.", show_default=False)
    ] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Send a signal to an execution."""
    body: dict[str, Any] = {"name": name}
    if payload is not None:
        try:
            body["payload"] = json.loads(payload)
        except json.JSONDecodeError as error:
            hint = f"A text needs quotes of its own: --payload '\"{payload}\"'"
            raise usage(f"--payload: not JSON: {error}", hint) from None
    if signal_id is not None:
        body["signal_id"] = signal_id
    _send("signal", execution, body, as_json, url, api_key)


def end_with_status(found: dict[str, Any]) -> None:
    """Fail the command when the execution did not complete.

    Raises: CliFailure saying why.
    """
    if found["status"] == "completed":
        return
    error = found.get("error")
    node = f" at node {found['failed_node']}" if found.get("failed_node") else ""
    why = f": {error['type']}: {error['message']}" if error else ""
    raise CliFailure(
        f"execution {found['execution_id']} ended {found['status']}{node}{why}",
        f"`heliograph status {found['execution_id']}` shows its nodes.",
        FAILED,
    )
