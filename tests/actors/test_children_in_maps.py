"""Child executions as the items of a map: derived ids, found again after a crash, cancelled with the map."""

import uuid
from pathlib import Path
from typing import Any

import pytest

from actors.children import child_id, child_of_item
from runtime.ids import NodeId
from tests.actors.household import Household, cancel, new_id, run, signal, start, status, until

EACH = NodeId("each")

OUTER = """
heliograph: 1
id: outer
nodes:
  - id: each
    kind: map
    over: inputs.items
    each: {kind: flow, flow: inner, input: {n: "${item}"}}
"""

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


def children_of(home: Household, execution_id: str, count: int) -> list[str]:
    return [child_of_item(execution_id, EACH, index) for index in range(count)]


def test_each_item_is_an_execution_with_an_id_of_its_own(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(INNER)
            home.publish(OUTER)
            execution_id = await start(home, home.host(), "outer", input={"items": [1, 2, "x"]})
            state = await home.ended(execution_id)
            assert state.output == {"results": ["2", "4", "xx"], "errors": []}
            for child in children_of(home, execution_id, 3):
                assert home.state(child).parent_id == execution_id
                assert home.state(child).parent_node == "each"
            home.verified()

    run(story())


def test_an_item_that_breaks_the_input_schema_of_its_flow_fails_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(INNER + "inputs: {type: object, properties: {n: {type: integer}}}\n")
            home.publish(OUTER)
            execution_id = await start(home, home.host(), "outer", input={"items": [1, "x"]})
            output = (await home.ended(execution_id)).output
            assert output["results"] == ["2", None]
            [error] = output["errors"]
            assert error["index"] == 1
            assert error["error"]["message"].startswith("child flow inner: n: the value is not of type")
            assert not home.log.read(children_of(home, execution_id, 2)[1])

    run(story())


def test_an_item_may_name_the_version_of_its_flow(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(INNER)
            first = home.versions["inner"]
            home.publish(INNER.replace("* 2", "* 3"))
            home.publish(OUTER.replace("flow: inner,", 'flow: inner, version: "${inputs.version}",'))
            given = {"items": [1], "version": first}
            execution_id = await start(home, home.host(), "outer", input=given)
            assert (await home.ended(execution_id)).output["results"] == ["2"]
            (child,) = children_of(home, execution_id, 1)
            assert home.state(child).flow_version == first

    run(story())


def test_a_failed_child_is_tried_again_as_another_execution(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(INNER.replace("* 2", "/ 0"))
            home.publish(
                OUTER.replace("{kind: flow,", "{kind: flow, retry: {attempts: 2, backoff_seconds: 0},")
            )
            execution_id = await start(home, home.host(), "outer", input={"items": [1]})
            state = await home.ended(execution_id)
            assert [error["error"]["type"] for error in state.output["errors"]] == ["ChildFailed"]
            tries = [home.state(child_of_item(execution_id, EACH, 0, tries)) for tries in (1, 2)]
            assert [one.status for one in tries] == ["failed", "failed"]
            home.verified()

    run(story())


def test_a_crash_finds_the_children_it_started(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GATED)
            home.publish(OUTER)
            host = home.host()
            execution_id = await start(home, host, "outer", input={"items": [0, 1]})
            first, second = children_of(home, execution_id, 2)
            for child in (first, second):
                await home.recorded(child, "node_waiting")
            await host.die()
            after = home.host()
            await status(after)
            for child, payload in ((first, "a"), (second, "b")):
                await signal(after, child, "go", payload)
            assert (await home.ended(execution_id)).output["results"] == ["a", "b"]
            streams = {one.originator_id for one in home.all_events()}
            assert {one for one in streams if ":" not in one} == {execution_id, first, second}
            home.verified()

    run(story())


def test_a_cancelled_map_cancels_its_children_but_a_leaving_host_does_not(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GATED)
            home.publish(OUTER)
            host = home.host()
            execution_id = await start(home, host, "outer", input={"items": [0]})
            (child,) = children_of(home, execution_id, 1)
            await home.recorded(child, "node_waiting")
            await host.close()
            assert not home.state(child).is_closed
            after = home.host()
            await status(after)
            await until(lambda: after.is_awaited(child), "the parent waits for its child again")
            await cancel(after, execution_id)
            await home.ended(execution_id)
            assert (await home.ended(child)).status == "cancelled"
            home.verified()

    run(story())


def test_a_childs_id_begins_with_its_parents_time() -> None:
    parent = new_id()
    of_node, of_item = child_id(parent, EACH, 1), child_of_item(parent, EACH, 7)
    grandchild = child_of_item(of_item, EACH, 0)
    assert len({parent, of_node, of_item, grandchild}) == 4
    for one in (of_node, of_item, grandchild):
        assert one[:13] == parent[:13], "48 bits of time"
        assert uuid.UUID(one).variant == uuid.RFC_4122
        assert one[14] == "8"


@pytest.mark.parametrize("parent", ["e", "0199a000-0000-4000-8000-000000000001"])
def test_without_a_time_in_the_parents_id_the_childs_is_a_hash(parent: Any) -> None:
    ids = {child_of_item(parent, EACH, index)[:13] for index in range(5)}
    assert len(ids) == 5
