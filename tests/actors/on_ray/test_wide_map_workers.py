"""Wide maps with real worker processes: an item that kills its process, and chunks as Ray tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.actors.household import run, start
from tests.actors.wide_household import WideHousehold

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

STEPS = "tests.actors.sample_steps"


def flow(function: str, arguments: str, more: str = "") -> str:
    return f"""
heliograph: 1
id: wide
nodes:
  - id: wide
    kind: map
    over: inputs.list
    chunk: {{size: 4}}
    concurrency: 2
    each: {{kind: python, function: "{STEPS}:{function}", with: {{item: "${{item}}", {arguments}}}{more}}}
output: "${{nodes.wide}}"
"""


def test_an_item_that_kills_its_process_fails_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.publish(flow("die_of", "poison: 9"))
            host = home.host()
            execution_id = await start(home, host, "wide", input={"list": list(range(16))})
            state = await home.ended(execution_id)
            assert home.results(state.output) == [n if n != 9 else None for n in range(16)]
            (failure,) = home.failures(state.output)
            assert (failure.index, failure.error.type) == (9, "WorkerCrashed")
            home.verified()

    run(story())


def test_declared_resources_make_each_chunk_a_task(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            notes = tmp_path / "notes"
            notes.mkdir()
            home.publish(flow("note_pid", f"folder: '{notes}'", ", resources: {cpus: 1}"))
            host = home.host()
            execution_id = await start(home, host, "wide", input={"list": list(range(12))})
            state = await home.ended(execution_id)
            assert home.results(state.output) == list(range(12))
            lines = [int(line) for file in notes.iterdir() for line in file.read_text().split()]
            assert sorted(lines) == list(range(12)), "each item was worked on once"
            assert host.pool_workers() == 0, "no pooled worker was needed"
            home.verified()

    run(story())
