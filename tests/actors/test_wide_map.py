"""Wide maps: streams in, chunks recorded, a data set out; failures, pauses, crashes; nothing done twice."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.children import child_of_item
from actors.step_call import ChunkCall
from runtime import commands, datasets
from runtime.chunks import gaps
from runtime.events import StepError
from runtime.ids import Micros
from tests.actors.household import Desk, cancel, run, send, signal, start, until
from tests.actors.wide_household import WIDE, WideHousehold

STEPS = "tests.actors.sample_steps"


def flow(more: str = "source: items.jsonl", each: str = f"kind: python, function: '{STEPS}:pick'") -> str:
    with_item = "" if "with" in each or "python" not in each else ', with: {item: "${item}"}'
    return f"""
heliograph: 1
id: wide
nodes:
  - id: wide
    kind: map
    {more}
    each: {{{each}{with_item}}}
output: "${{nodes.wide}}"
"""


async def finished(home: WideHousehold, **fields: Any) -> tuple[str, Any]:
    host = await home.equipped()
    execution_id = await start(home, host, "wide", **fields)
    return execution_id, await home.ended(execution_id)


def items_once(home: WideHousehold, execution_id: str, total: int) -> None:
    """Every item stands in exactly one recorded chunk."""
    recorded = sorted(home.chunks(execution_id), key=lambda chunk: chunk.first)
    assert list(gaps(recorded)) == [(total, None)]
    assert sum(chunk.items for chunk in recorded) == total


# --- workers ------------------------------------------------------------------------------------------


def test_a_file_goes_through_in_chunks_and_comes_out_as_a_data_set(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", [n * 3 for n in range(1_000)])
            home.publish(flow())
            execution_id, state = await finished(home)
            assert state.status == "completed"
            output = state.output
            assert (output["dataset"], output["items"], output["failed"]) == (1, 1_000, 0)
            assert home.results(output) == [{"n": n * 3} for n in range(1_000)]
            items_once(home, execution_id, 1_000)
            first, *_, last = home.batches(execution_id)
            assert (first.total, first.done, first.chunks) == (1_000, 0, ())
            assert first.source
            assert (last.done, last.failed) == (1_000, 0)
            sizes = [len(chunk.items) for chunk in home.workers.chunks]
            assert sizes[0] == 16
            assert max(sizes) > 100, "what takes no time goes in larger chunks"
            home.verified()

    run(story())


def test_a_data_set_is_the_source_of_the_next_map(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", list(range(6)))
            text = flow() + "  \n"
            second = """
  - id: again
    kind: map
    source: "${nodes.wide}"
    chunk: {size: 4}
    each: {kind: template, template: "{{ item.n if item else 'none' }}"}
output: "${nodes.again}"
"""
            home.publish(text[: text.index("output:")].rstrip() + second)
            _, state = await finished(home)
            assert home.results(state.output) == ["0", "1", "none", "3", "4", "none"]
            home.verified()

    run(story())


def test_a_list_goes_in_chunks_of_the_size_asked_for(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.publish(flow("over: inputs.list\n    chunk: {size: 4}", "kind: select, expression: item.x"))
            execution_id, state = await finished(home, input={"list": [{"x": n} for n in range(10)]})
            assert home.results(state.output) == list(range(10))
            assert [chunk.items for chunk in sorted(home.chunks(execution_id), key=lambda c: c.first)] == [
                4,
                4,
                2,
            ]
            home.verified()

    run(story())


def test_an_empty_source_gives_an_empty_data_set(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", [])
            home.publish(flow())
            execution_id, state = await finished(home)
            assert (state.output["items"], home.results(state.output)) == (0, [])
            assert home.known(execution_id).total == 0

    run(story())


def test_no_more_chunks_are_in_flight_than_keep_the_workers_busy(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", list(range(100)))
            home.publish(flow("source: items.jsonl\n    chunk: {size: 5}\n    concurrency: 2"))
            home.workers.gate.clear()
            host = await home.equipped()
            execution_id = await start(home, host, "wide")
            await until(lambda: home.workers.at_once == 2, "two chunks are on their way")
            home.workers.gate.set()
            await home.ended(execution_id)
            assert home.workers.at_once_most == 2
            home.verified()

    run(story())


def test_failed_items_are_kept_and_can_be_listed(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", list(range(9)))
            home.publish(flow("source: items.jsonl\n    chunk: {size: 2}"))
            execution_id, state = await finished(home)
            assert state.status == "completed"
            assert state.output["failed"] == 3
            found = home.failures(state.output)
            assert [(one.index, bytes(one.item), one.error.message) for one in found] == [
                (n, str(n).encode(), f"bad item {n}") for n in (2, 5, 8)
            ]
            assert home.batches(execution_id)[-1].failed == 3

    run(story())


def test_in_fail_mode_the_first_failed_item_fails_the_map(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", list(range(100)))
            home.publish(flow("source: items.jsonl\n    on_error: fail\n    concurrency: 1"))
            _, state = await finished(home)
            assert (state.status, state.failed_node) == ("failed", "wide")
            assert (state.error.type, state.error.message) == ("ValueError", "item 2: bad item 2")
            home.verified()

    run(story())


@pytest.mark.parametrize(("share", "ends"), [(0.33, "failed"), (0.34, "completed")])
def test_more_failures_than_their_share_allows_fail_the_map(tmp_path: Path, share: float, ends: str) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", list(range(300)))
            home.publish(flow(f"source: items.jsonl\n    failures_max_share: {share}"))
            _, state = await finished(home)
            assert state.status == ends
            if ends == "failed":
                assert state.error.type == "TooManyFailures"
                assert (
                    "failures_max_share 0.33 allows; one of them: item 2: ValueError" in state.error.message
                )
            home.verified()

    run(story())


def test_an_item_that_kills_its_worker_is_found_and_fails_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", [n * 3 for n in range(50)])
            home.publish(flow("source: items.jsonl\n    chunk: {size: 20}"))
            poison = b"99"

            def judge(chunk: ChunkCall) -> StepError | None:
                if any(bytes(item) == poison for item in chunk.items):
                    return StepError(type="WorkerCrashed", message="exit code 23")
                return None

            home.workers.judge = judge
            execution_id, state = await finished(home)
            (failure,) = home.failures(state.output)
            assert (failure.index, failure.error.type) == (33, "WorkerCrashed")
            assert [n for n, line in enumerate(home.results(state.output)) if line is None] == [33]
            items_once(home, execution_id, 50)
            home.verified()

    run(story())


def test_workers_that_are_away_for_a_moment_are_waited_for(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", [0, 1])
            home.publish(flow())
            away = [True]

            def judge(chunk: ChunkCall) -> StepError | None:
                return StepError(type="Unavailable", message="away") if away and away.pop() else None

            home.workers.judge = judge
            _, state = await finished(home)
            assert state.output["failed"] == 0

    run(story())


def test_what_breaks_every_chunk_fails_the_map_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", [0, 1])
            home.publish(flow())
            home.workers.judge = lambda chunk: StepError(type="EnvironmentFailed", message="no such package")
            _, state = await finished(home)
            assert (state.status, state.error.type) == ("failed", "EnvironmentFailed")

    run(story())


def test_a_source_that_cannot_be_read_fails_the_node_and_names_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            (home.files / "items.jsonl").write_text('{"n": 1}\n{"n": \n')
            home.publish(flow(each="kind: select, expression: item.n"))
            _, state = await finished(home)
            assert state.status == "failed"
            assert "items.jsonl" in state.error.message
            assert "line 2" in state.error.message
            home.publish(flow("source: missing.jsonl"))
            execution_id = await start(home, home.hosts[0], "wide")
            state = await home.ended(execution_id)
            assert state.error is not None
            assert state.error.type == "FileNotFoundError"

    run(story())


# --- crashes, pauses, cancels ---------------------------------------------------------------------------


def test_a_crash_repeats_only_items_of_chunks_that_were_not_recorded(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", [n * 3 for n in range(100)])
            home.publish(flow("source: items.jsonl\n    chunk: {size: 10}\n    concurrency: 2"))
            host = await home.equipped()

            def judge(chunk: ChunkCall) -> StepError | None:
                if len(home.workers.calls) > 5:
                    home.workers.gate.clear()
                return None

            home.workers.judge = judge
            execution_id = await start(home, host, "wide")
            await home.recorded_items(execution_id, 30)
            await host.die()
            recorded = {n for c in home.chunks(execution_id) for n in range(c.first, c.first + c.items)}
            assert 30 <= len(recorded) < 100
            home.workers.calls.clear()
            home.workers.judge = lambda chunk: None
            home.workers.gate.set()
            await home.equipped()
            state = await home.ended(execution_id)
            again = [n // 3 for n in home.workers.items()]
            assert not set(again) & recorded, "a recorded chunk is never worked on again"
            assert sorted(again) == sorted(set(range(100)) - recorded)
            assert home.results(state.output) == [{"n": n * 3} for n in range(100)]
            items_once(home, execution_id, 100)
            home.verified()

    run(story())


def test_a_source_that_changed_meanwhile_fails_the_map_clearly(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", list(range(10)))
            home.publish(flow("source: items.jsonl\n    chunk: {size: 2}\n    concurrency: 1"))
            host = await home.equipped()
            home.workers.judge = lambda chunk: home.workers.gate.clear()
            execution_id = await start(home, host, "wide")
            await home.recorded_items(execution_id, 2)
            await host.die()
            home.write("items.jsonl", list(range(11)))
            await home.equipped()
            state = await home.ended(execution_id)
            assert state.error is not None
            assert state.error.type == "SourceChanged"
            home.verified()

    run(story())


def test_a_pause_starts_no_chunk_and_a_resume_goes_on_with_the_rest(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", [n * 3 for n in range(60)])
            home.publish(flow("source: items.jsonl\n    chunk: {size: 10}\n    concurrency: 2"))
            home.workers.gate.clear()
            host = await home.equipped()
            execution_id = await start(home, host, "wide")
            await until(lambda: home.workers.at_once == 2, "two chunks are on their way")
            await send(host, execution_id, commands.Pause(at=Micros(1)))
            home.workers.gate.set()
            await home.recorded_items(execution_id, 20)
            await until(lambda: not host.has_tasks(execution_id), "nothing of it runs")
            assert len(home.workers.calls) == 2
            await send(host, execution_id, commands.Resume(at=Micros(1)))
            state = await home.ended(execution_id)
            assert home.results(state.output) == [{"n": n * 3} for n in range(60)]
            assert len(home.workers.items()) == 60
            home.verified()

    run(story())


def test_a_host_that_leaves_lets_its_chunks_end_and_another_does_the_rest(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", [n * 3 for n in range(60)])
            home.publish(flow("source: items.jsonl\n    chunk: {size: 10}\n    concurrency: 2"))
            home.workers.gate.clear()
            host = await home.equipped()
            execution_id = await start(home, host, "wide")
            await until(lambda: home.workers.at_once == 2, "two chunks are on their way")
            await host.drain(60)
            home.workers.gate.set()
            await until(lambda: not host.in_memory(), "the host gave the execution up")
            assert len(home.chunks(execution_id)) == 2
            await home.equipped()
            state = await home.ended(execution_id)
            assert home.results(state.output) == [{"n": n * 3} for n in range(60)]
            assert len(home.workers.items()) == 60, "no item was worked on twice"
            home.verified()

    run(story())


def test_a_cancel_starts_no_chunk(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", list(range(60)))
            home.publish(flow("source: items.jsonl\n    chunk: {size: 10}\n    concurrency: 2"))
            home.workers.gate.clear()
            host = await home.equipped()
            execution_id = await start(home, host, "wide")
            await until(lambda: home.workers.at_once == 2, "two chunks are on their way")
            await cancel(host, execution_id)
            assert (await home.ended(execution_id)).status == "cancelled"
            assert len(home.workers.calls) == 2
            assert home.workers.at_once == 0
            home.verified()

    run(story())


# --- items the host does ----------------------------------------------------------------------------------

INNER = """
heliograph: 1
id: inner
nodes:
  - {id: twice, kind: template, template: "{{ inputs.n * 2 }}"}
"""

GATED = """
heliograph: 1
id: inner
nodes:
  - {id: gate, kind: wait_for_signal, signal: go}
"""

CHILD = "kind: flow, flow: inner, input: {n: '${item}'}"


def test_child_executions_of_a_stream_give_a_data_set(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", [1, 2, [3], {"x": 1}])
            home.publish(INNER)
            home.publish(flow(each=CHILD))
            execution_id, state = await finished(home)
            assert home.results(state.output) == ["2", "4", "[3, 3]", None]
            (failure,) = home.failures(state.output)
            assert (failure.index, bytes(failure.item)) == (3, b'{"x":1}')
            assert failure.error.type == "ChildFailed"
            items_once(home, execution_id, 4)
            assert home.state(child_of_item(execution_id, WIDE, 0)).status == "completed"
            home.verified()

    run(story())


def test_a_slow_item_holds_up_neither_the_others_nor_their_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.wide_items.STALE_SECONDS", 0.1)

    async def story() -> None:
        async with WideHousehold(tmp_path) as home, Desk() as desk:
            home.write("items.jsonl", list(range(20)))
            desk.hold("/3")
            each = f'kind: http_request, url: "{desk.url}/{{{{ item }}}}"'
            home.publish(flow("source: items.jsonl\n    chunk: {seconds: 0.05}\n    concurrency: 2", each))
            host = await home.equipped()
            execution_id = await start(home, host, "wide")
            await home.recorded_items(execution_id, 19)
            assert desk.at_once_most == 2
            desk.release("/3")
            state = await home.ended(execution_id)
            assert [line["status"] for line in home.results(state.output)] == [200] * 20
            items_once(home, execution_id, 20)
            home.verified()

    run(story())


def test_a_crash_repeats_only_items_the_host_had_not_recorded(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home, Desk() as desk:
            home.write("items.jsonl", list(range(30)))
            desk.hold("/12")
            each = f'kind: http_request, url: "{desk.url}/{{{{ item }}}}"'
            home.publish(flow("source: items.jsonl\n    chunk: {size: 5}\n    concurrency: 1", each))
            host = await home.equipped()
            execution_id = await start(home, host, "wide")
            await desk.asked("/12")
            await home.recorded_items(execution_id, 10)
            await host.die()
            desk.release("/12")
            before = len(desk.requests)
            await home.equipped()
            state = await home.ended(execution_id)
            asked = [int(request.path[1:]) for request in desk.requests[before:]]
            assert asked == list(range(10, 30)), "what was recorded is not asked for again"
            assert state.output["items"] == 30
            sizes = [chunk.items for chunk in sorted(home.chunks(execution_id), key=lambda c: c.first)]
            assert sizes == [5] * 6
            home.verified()

    run(story())


def test_cancelling_a_wide_map_cancels_the_children_in_flight(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", list(range(9)))
            home.publish(GATED)
            home.publish(flow("source: items.jsonl\n    concurrency: 3", CHILD))
            host = await home.equipped()
            execution_id = await start(home, host, "wide")
            children = [child_of_item(execution_id, WIDE, index) for index in range(3)]
            for child in children:
                await home.recorded(child, "node_waiting")
            await cancel(host, execution_id)
            await home.ended(execution_id)
            for child in children:
                assert (await home.ended(child)).status == "cancelled"
            streams = {one.originator_id for one in home.all_events() if ":" not in one.originator_id}
            assert streams == {execution_id, *children}
            home.verified()

    run(story())


def test_a_cancel_after_a_crash_finds_the_children_of_the_former_life(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", list(range(9)))
            home.publish(GATED)
            home.publish(flow("source: items.jsonl\n    concurrency: 3", CHILD))
            host = await home.equipped()
            execution_id = await start(home, host, "wide")
            children = [child_of_item(execution_id, WIDE, index) for index in range(3)]
            for child in children:
                await home.recorded(child, "node_waiting")
            await host.die()
            after = home.host(files_root=str(home.files))
            await cancel(after, execution_id)
            await home.ended(execution_id)
            for child in children:
                assert (await home.ended(child)).status == "cancelled"
            home.verified()

    run(story())


def test_a_failed_map_cancels_the_children_in_flight(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", list(range(4)))
            home.publish(GATED)
            home.publish(flow("source: items.jsonl\n    concurrency: 2\n    on_error: fail", CHILD))
            host = await home.equipped()
            execution_id = await start(home, host, "wide")
            first, second = (child_of_item(execution_id, WIDE, index) for index in range(2))
            for child in (first, second):
                await home.recorded(child, "node_waiting")
            await cancel(host, first)
            state = await home.ended(execution_id)
            assert state.error is not None
            assert state.error.message.startswith("item 0: child execution")
            assert (await home.ended(second)).status == "cancelled"
            home.verified()

    run(story())


def test_a_paused_map_of_children_goes_on_with_all_lanes(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", list(range(4)))
            home.publish(GATED)
            home.publish(flow("source: items.jsonl\n    concurrency: 2", CHILD))
            host = await home.equipped()
            execution_id = await start(home, host, "wide")
            children = [child_of_item(execution_id, WIDE, index) for index in range(4)]
            for child in children[:2]:
                await home.recorded(child, "node_waiting")
            await send(host, execution_id, commands.Pause(at=Micros(1)))
            await signal(host, children[0], "go", 0)
            await home.ended(children[0])
            await asyncio.sleep(0)
            assert not home.log.read(children[2]), "a pause starts no item"
            await send(host, execution_id, commands.Resume(at=Micros(1)))
            await home.recorded(children[2], "node_waiting")
            for index in (1, 2):
                await signal(host, children[index], "go", index)
            await home.recorded(children[3], "node_waiting")
            await signal(host, children[3], "go", 3)
            state = await home.ended(execution_id)
            assert home.results(state.output) == [0, 1, 2, 3]
            home.verified()

    run(story())


def test_a_data_set_told_by_the_log_is_what_the_parts_hold(tmp_path: Path) -> None:
    async def story() -> None:
        async with WideHousehold(tmp_path) as home:
            home.write("items.jsonl", list(range(25)))
            home.publish(flow("source: items.jsonl\n    chunk: {size: 10}"))
            execution_id, state = await finished(home)
            dataset = datasets.parse_dataset(state.output)
            parts = list(datasets.read_parts(home.blobs, dataset))
            chunks = sorted(home.chunks(execution_id), key=lambda chunk: chunk.first)
            assert [(one.first, one.items, one.failed, one.ref, one.errors) for one in parts] == [
                (one.first, one.items, one.failed, one.results, one.errors) for one in chunks
            ]

    run(story())
