"""`heliograph run`: start an execution and watch it to its end, on a server or on a runtime of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from gateway.cli.connection import Server, target
from gateway.cli.executions import (
    FlowOrFile,
    IdempotencyKey,
    InputFile,
    InputJson,
    Inputs,
    end_with_status,
    event_line,
    is_terminal,
    start_execution,
)
from gateway.cli.failures import CliFailure
from gateway.cli.options import ApiKey, AsJson, Url
from gateway.target import Target

INTERRUPTED = 130
TOLD = ("node_started", "node_failed", "node_waiting", "node_logged", "recovered", "paused", "resumed")
"""Events that are printed above the bars."""


def run(
    flow: FlowOrFile,
    inputs: Inputs = None,
    input_json: InputJson = None,
    input_file: InputFile = None,
    idempotency_key: IdempotencyKey = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Run a flow to its end with live progress, and print its output.

    Uses the server at --url or HELIOGRAPH_URL, else the one this data directory's server last started on;
    when none runs there, starts a runtime for this run alone. The execution is durable either way.
    """
    from pathlib import Path

    from gateway.cli.flows import is_file_name, refuse_broken
    from gateway.cli.input import execution_input
    from gateway.cli.output import print_json

    given = execution_input(inputs, input_json, input_file)
    if is_file_name(flow):
        # Before anything is started: a mistake in the file should not cost the start of Ray.
        refuse_broken(Path(flow))
    with ExitStack() as stack:
        server = _server(stack, target(url, api_key))
        execution_id = start_execution(server, flow, given, idempotency_key)
        try:
            watch(server, execution_id, quiet=quiet)
        except KeyboardInterrupt:
            raise CliFailure(
                f"no longer watching {execution_id}, which goes on where a server runs",
                f"`heliograph events {execution_id} --follow` watches it again, "
                f"`heliograph cancel {execution_id}` ends it.",
                INTERRUPTED,
            ) from None
        found = server.get(f"/api/audit/executions/{execution_id}")
    if as_json:
        print_json(found)
    elif found["status"] == "completed":
        print_json(found["output"])
    end_with_status(found)


def _server(stack: ExitStack, where: Target) -> Server:
    server = Server(where)
    stack.callback(server.close)
    if where.was_named or server.is_up():
        return server
    from gateway.cli.server import embedded_runtime

    url, key = stack.enter_context(embedded_runtime())
    embedded = Server(Target(url, where.api_key or key, True))
    stack.callback(embedded.close)
    return embedded


def watch(server: Server, execution_id: str, *, quiet: bool = False) -> None:
    """Follow an execution to its end, with a progress display unless ``quiet``."""
    events = server.events(f"/api/audit/executions/{execution_id}/events/stream", 0, is_terminal)
    if quiet:
        for _ in events:
            continue
    elif sys.stderr.isatty():
        _draw(events, execution_id)
    else:
        for event in events:
            print(event_line(event), file=sys.stderr)


def _draw(events: Iterator[dict[str, Any]], execution_id: str) -> None:
    import msgspec

    from gateway.client.progress import ExecutionBars, bars
    from gateway.client.views import EventRecord

    with bars() as drawn:
        taken = ExecutionBars(drawn, execution_id)
        for event in events:
            taken.take(msgspec.convert(event, EventRecord))
            if event["type"].removeprefix("execution.") in TOLD:
                drawn.console.print(event_line(event), style="dim", markup=False, highlight=False)
