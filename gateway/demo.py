"""`heliograph demo`: a real job, run durably, with a crash in its middle.

The library of this very Python is parsed in worker processes. Half way the host that holds the execution
is killed with `kill -9`; Ray starts it again, it takes the execution over from the log, and only files whose
result was not recorded are parsed again. At the end the log is verified.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from gateway.cli.connection import Server
from gateway.cli.executions import is_terminal
from gateway.cli.server import embedded_runtime
from gateway.target import Target

KILL_AT_SHARE = 0.5
"""The host is killed when this share of the files is recorded."""

DEMO_DIR = "heliograph-demo"
FOLLOW_SECONDS_MAX = 300.0


def run_demo() -> int:
    """Run the demo in ``heliograph-demo`` below this folder; the exit code."""
    console = Console()
    started = time.monotonic()
    base = Path(DEMO_DIR).absolute()
    base.mkdir(exist_ok=True)
    report = base / "report.html"
    os.environ["HELIOGRAPH_DATA_DIR"] = tempfile.mkdtemp(prefix="data-", dir=base)
    for key in ("HELIOGRAPH_STORE", "HELIOGRAPH_BLOBS", "HELIOGRAPH_RAY_ADDRESS", "HELIOGRAPH_API_KEY"):
        os.environ.pop(key, None)  # the demo shows the embedded default, whatever else is set up here
    console.print("[bold]Heliograph demo[/]: Python's standard library, parsed durably on Ray\n")
    with embedded_runtime() as (url, key):
        server = Server(Target(url, key, was_named=True))
        try:
            execution_id = _start(server, report, console)
            end, counts = _follow(server, execution_id, console)
            _show_events(counts, console)
            is_sound = _verify(server, execution_id, console)
            _show_result(server, execution_id, console)
        finally:
            server.close()
    took = time.monotonic() - started
    if end != "execution.completed" or not is_sound or not report.exists():
        console.print(f"\n[red]The demo failed:[/] the execution ended with {end}. Its log: {base}")
        return 1
    console.print(f"\nReport: [bold]{report}[/]  (open it in a browser)")
    console.print(f"Log and blobs of this run: {os.environ['HELIOGRAPH_DATA_DIR']}")
    console.print(f"Took {took:.0f} s. Next: `heliograph serve`, and the README's examples.")
    return 0


def _start(server: Server, report: Path, console: Console) -> str:
    definition = files("flows").joinpath("stdlib_report.yaml").read_bytes()
    server.post_text("/api/admin/flows", definition, "application/yaml")
    accepted = server.start("stdlib_report", {"report": str(report)}, None)
    execution_id = str(accepted["execution_id"])
    console.print("POST /v1/executions/stdlib_report/async")
    console.print(f"  202  {execution_id}\n")
    return execution_id


def _follow(server: Server, execution_id: str, console: Console) -> tuple[str, Counter[str]]:
    """Draw the execution's events as they are recorded; how it ended, and how many of each there were."""
    counts: Counter[str] = Counter()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        nodes = progress.add_task("nodes", total=None)
        items: Any = None
        recorded = 0
        is_killed = False
        for event in _events(server, execution_id):
            kind, data = event["type"].removeprefix("execution."), event["data"]
            counts[kind] += 1
            match kind:
                case "queued":
                    progress.update(nodes, total=data["total_nodes"])
                case "node_started":
                    progress.console.print(f"  {data['node_id']} started")
                case "node_completed":
                    progress.advance(nodes)
                    progress.console.print(f"  {data['node_id']} completed")
                case "recovered":
                    progress.console.print(
                        f"  [green]taken over by {data['owner']}, which goes on from the log[/]"
                    )
                case "node_progressed":
                    if items is None:
                        items = progress.add_task("files", total=data["total"])
                    recorded += len(data["items"])
                    progress.update(items, completed=recorded)
                    if not is_killed and recorded >= KILL_AT_SHARE * data["total"]:
                        is_killed = True
                        pid = _kill_host()
                        progress.console.print(f"  [red]kill -9 {pid}[/]: the execution's host is gone")
                case _:
                    pass
            if is_terminal(event):
                return event["type"], counts
    return "no terminal event", counts


def _events(server: Server, execution_id: str) -> Iterator[dict[str, Any]]:
    deadline = time.monotonic() + FOLLOW_SECONDS_MAX
    for event in server.events(f"/api/audit/executions/{execution_id}/events/stream", 0, is_terminal):
        yield event
        if time.monotonic() > deadline:
            return


def _kill_host() -> int:
    """Kill the one host process below this one, as an operator's `kill -9` would."""
    for process in psutil.Process().children(recursive=True):
        if process.name().startswith("ray::Host") or "ray::Host" in " ".join(process.cmdline()[:1]):
            os.kill(process.pid, signal.SIGKILL)
            return process.pid
    raise RuntimeError("no host process was found")


def _show_events(counts: Counter[str], console: Console) -> None:
    table = Table(title="What the log recorded", title_justify="left", show_header=False, box=None)
    table.add_column(style="cyan")
    table.add_column(justify="right")
    for kind, count in counts.items():
        table.add_row(kind, str(count))
    console.print()
    console.print(table)


def _verify(server: Server, execution_id: str, console: Console) -> bool:
    report = server.get(f"/api/audit/executions/{execution_id}/verification")
    violations = report["violations"]
    if violations:
        console.print(f"\n[red]The log breaks its promises:[/] {violations}")
        return False
    console.print(
        f"\n[green]Verified[/] {report['events']} events: hash chain, versions, one end, no outcome twice"
    )
    return True


def _show_result(server: Server, execution_id: str, console: Console) -> None:
    status = server.get(f"/v1/executions/{execution_id}")
    console.print(f"\nGET /v1/executions/{execution_id}")
    console.print(f"  {status['status']}  progress {status['progress']}")
    output: dict[str, Any] = status["final_output"] or {}
    for name in ("files", "lines", "functions", "not_parsed"):
        if name in output:
            console.print(f"  {name:<11} {output[name]:>9,}")


if __name__ == "__main__":
    sys.exit(run_demo())
