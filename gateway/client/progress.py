"""Progress while something is waited for: bars by rich, on a terminal and in a notebook.

A notebook draws them with ipywidgets (`pip install 'heliograph[notebook]'`), else nothing is drawn there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from gateway.client.views import BatchSnapshot, EventRecord
from runtime import chunks

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

MAPS_MAX = 20
"""Maps of one execution that get a bar of their own."""


def is_wanted(progress: bool | None) -> bool:
    """Whether to draw: as told, else where somebody watches."""
    if progress is False:
        return False
    if _is_notebook():
        return find_spec("ipywidgets") is not None
    return progress is True or sys.stderr.isatty()


def _is_notebook() -> bool:
    interactive = sys.modules.get("IPython")
    shell = interactive.get_ipython() if interactive is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


@contextmanager
def shown(
    title: str, progress: bool | None, console: Console | None = None
) -> Generator[Callable[[EventRecord], None] | None]:
    """What takes an execution's events and draws them; None when nothing is to be drawn."""
    if not is_wanted(progress):
        yield None
        return
    with bars(console) as drawn:
        yield ExecutionBars(drawn, title).take


@contextmanager
def bars(console: Console | None = None) -> Generator[Progress]:
    """Bars with counts, the time it took and the time that is left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        # What a server says is text, and never markup.
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console or Console(stderr=not _is_notebook())) as drawn:
        yield drawn


@contextmanager
def batch_shown(
    title: str, progress: bool | None, console: Console | None = None
) -> Generator[Callable[[BatchSnapshot], None] | None]:
    """What takes a batch as it gets further and draws it; None when nothing is to be drawn."""
    if not is_wanted(progress):
        yield None
        return
    with bars(console) as drawn:
        yield BatchBar(drawn, title).take


class BatchBar:
    """One bar for all inputs of a batch."""

    def __init__(self, drawn: Progress, title: str) -> None:
        self._drawn = drawn
        self._title = title
        self._bar = drawn.add_task(title, total=None)

    def take(self, batch: BatchSnapshot) -> None:
        counts = batch.counts
        failed = f"  {counts.failed} failed" if counts.failed else ""
        rate = f"  {batch.rate:,.0f}/s" if batch.rate else ""
        self._drawn.update(
            self._bar,
            completed=counts.done,
            total=counts.total,
            description=f"{self._title}  {batch.status}{rate}{failed}",
        )


class ExecutionBars:
    """One bar for the nodes of an execution, and one for each of its maps."""

    def __init__(self, drawn: Progress, title: str) -> None:
        self._drawn = drawn
        self._whole = drawn.add_task(title, total=None)
        self._maps: dict[str, TaskID] = {}

    def take(self, record: EventRecord) -> None:
        data = record.data
        match record.type.removeprefix("execution."):
            case "queued":
                self._drawn.update(self._whole, total=data.get("total_nodes"))
            case "node_progressed":
                self._advance(data, len(data.get("items", ())))
            case "chunks_recorded":
                self._reach(data)
            case "node_completed" | "node_skipped":
                self._drawn.advance(self._whole)
            case _:
                return

    def _advance(self, data: dict[str, Any], items: int) -> None:
        bar = self._bar_of(data)
        if bar is not None:
            self._drawn.advance(bar, items)

    def _reach(self, data: dict[str, Any]) -> None:
        """A wide map's event tells how far it is, and how fast."""
        bar = self._bar_of(data)
        if bar is not None:
            total = self._drawn.tasks[bar].total
            done, failed, rate = data.get("done", 0), data.get("failed", 0), data.get("rate", 0.0)
            words = chunks.told(done, None if total is None else int(total), failed, rate)
            self._drawn.update(bar, completed=done, description=f"  {data.get('node_id', '')}  {words}")

    def _bar_of(self, data: dict[str, Any]) -> TaskID | None:
        node, total = data.get("node_id", ""), data.get("total")
        if node not in self._maps:
            if len(self._maps) >= MAPS_MAX:
                return None
            self._maps[node] = self._drawn.add_task(f"  {node}", total=total)
        if total is not None:
            self._drawn.update(self._maps[node], total=total)
        return self._maps[node]
