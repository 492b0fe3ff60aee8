"""Maps: order, bounds, failures, batches, and what a crash repeats."""

from pathlib import Path
from typing import Any

import msgspec

from runtime.blob_store import BlobStore
from runtime.events import NodeProgressed
from tests.actors.household import Desk, Household, cancel, run, start, status, until


def asking(url: str, more: str = "", each: str = "") -> str:
    return f"""
heliograph: 1
id: asking
nodes:
  - id: each
    kind: map
    over: inputs.items
    {more}
    each: {{kind: http_request, url: "{url}/{{{{ item }}}}" {each}}}
output: "${{nodes.each}}"
"""


PURE = """
heliograph: 1
id: pure
nodes:
  - id: each
    kind: map
    over: inputs.items
    each: {kind: template, template: "{{ index }}:{{ item }}"}
output: "${nodes.each}"
"""


def progress(home: Household, execution_id: str) -> list[NodeProgressed]:
    return [event for event in home.history(execution_id) if isinstance(event, NodeProgressed)]


def test_results_keep_the_order_of_the_items_and_are_recorded_in_batches(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(PURE)
            items = list(range(1_000))
            execution_id = await start(home, home.host(), "pure", input={"items": items})
            state = await home.ended(execution_id)
            expected = {"results": [f"{n}:{n}" for n in items], "errors": []}
            assert state.output == expected
            batches = progress(home, execution_id)
            assert 10 <= len(batches) <= 30
            assert sorted(item.index for batch in batches for item in batch.items) == items
            home.verified()

    run(story())


def test_a_map_over_nothing_gives_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(PURE)
            execution_id = await start(home, home.host(), "pure", input={"items": []})
            assert (await home.ended(execution_id)).output == {"results": [], "errors": []}

    run(story())


def test_at_most_concurrency_items_are_in_flight(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            for n in range(9):
                desk.hold(f"/{n}")
            home.publish(asking(desk.url, "concurrency: 3"))
            execution_id = await start(home, home.host(), "asking", input={"items": list(range(9))})
            for n in range(9):
                await desk.asked(f"/{n}")
                assert desk.at_once <= 3
                desk.release(f"/{n}")
            state = await home.ended(execution_id)
            assert desk.at_once_most == 3
            assert [result["status"] for result in state.output["results"]] == [200] * 9
            home.verified()

    run(story())


def test_failures_of_items_are_kept_beside_the_results(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.plan("/1", (500, '"no"'))
            home.publish(asking(desk.url))
            execution_id = await start(home, home.host(), "asking", input={"items": [0, 1, 2]})
            state = await home.ended(execution_id)
            assert state.status == "completed"
            assert state.output["results"][1] is None
            assert [error["index"] for error in state.output["errors"]] == [1]
            assert state.output["errors"][0]["error"]["type"] == "HTTPStatusError"
            home.verified()

    run(story())


def test_in_fail_mode_the_first_failure_ends_the_map_and_stops_the_others(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.plan("/1", (500, '"no"'))
            desk.hold("/0")
            home.publish(asking(desk.url, "on_error: fail"))
            execution_id = await start(home, home.host(), "asking", input={"items": [0, 1, 2]})
            state = await home.ended(execution_id)
            assert state.status == "failed"
            assert state.error is not None
            assert state.error.message.startswith("item 1: ")
            await until(lambda: desk.dropped == 1, "the other item's request was given up")
            home.verified()

    run(story())


def test_an_item_is_tried_again_under_a_key_of_its_own(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.plan("/1", (500, '"no"'), (200, '"yes"'))
            home.publish(asking(desk.url, each=", retry: {attempts: 2, backoff_seconds: 0}"))
            execution_id = await start(home, home.host(), "asking", input={"items": [0, 1]})
            state = await home.ended(execution_id)
            assert state.output["results"][1]["body"] == "yes"
            assert [r.key for r in desk.to("/1")] == [f"{execution_id}:each:1:1:{n}" for n in (1, 2)]
            home.verified()

    run(story())


def test_a_crash_half_way_repeats_only_items_that_were_not_recorded(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/3")
            home.publish(asking(desk.url, "concurrency: 1"))
            host = home.host()
            execution_id = await start(home, host, "asking", input={"items": list(range(6))})
            await desk.asked("/3")
            await home.recorded(execution_id, "node_progressed")
            recorded = {item.index for batch in progress(home, execution_id) for item in batch.items}
            assert recorded == {0, 1, 2}
            await host.die()
            desk.release("/3")
            await status(home.host())
            state = await home.ended(execution_id)
            assert [result["status"] for result in state.output["results"]] == [200] * 6
            assert [len(desk.to(f"/{n}")) for n in range(6)] == [1, 1, 1, 2, 1, 1]
            assert len({request.key for request in desk.to("/3")}) == 1
            home.verified()

    run(story())


def test_a_cancelled_map_gives_its_items_up(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            for n in range(3):
                desk.hold(f"/{n}")
            home.publish(asking(desk.url))
            host = home.host()
            execution_id = await start(home, host, "asking", input={"items": [0, 1, 2]})
            for n in range(3):
                await desk.asked(f"/{n}")
            await cancel(host, execution_id)
            assert (await home.ended(execution_id)).status == "cancelled"
            await until(lambda: desk.dropped == 3, "all requests were given up")
            home.verified()

    run(story())


def test_large_outputs_of_items_travel_by_reference(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(PURE.replace("{{ index }}:{{ item }}", "{{ item }}{{ 'x' * 50000 }}"))
            execution_id = await start(home, home.host(), "pure", input={"items": [1, 2, 3]})
            state = await home.ended(execution_id)
            assert state.output_ref is not None
            blobs = BlobStore(f"file://{tmp_path}/blobs")
            output: Any = msgspec.json.decode(blobs.get_bytes(state.output_ref))
            assert [result[:1] for result in output["results"]] == ["1", "2", "3"]
            items = [item for batch in progress(home, execution_id) for item in batch.items]
            assert all(item.output is None and item.output_ref is not None for item in items)
            assert max(len(one.data) for one in home.log.read(execution_id)) < 5_000
            home.verified()

    run(story())
