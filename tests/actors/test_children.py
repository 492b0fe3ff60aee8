"""Child flows: started once, waited for wherever they live, cancelled with their parents."""

import asyncio
from pathlib import Path

import pytest

from actors import children, messages
from actors.children import child_id
from actors.messages import Reply
from runtime.ids import NodeId
from tests.actors.household import Desk, Household, answers, cancel, run, signal, start, status, until

OUTER = """
heliograph: 1
id: outer
nodes:
  - {id: child, kind: flow, flow: inner, input: {word: "${inputs.word}"}}
  - {id: after, kind: template, template: "child said {{ nodes.child }}"}
output: "${nodes.after}"
"""

ECHO = """
heliograph: 1
id: inner
nodes:
  - {id: echo, kind: template, template: "{{ inputs.word }}"}
output: "${nodes.echo}"
"""

ASKING = """
heliograph: 1
id: inner
nodes:
  - {{id: ask, kind: http_request, url: "{url}/ask"}}
output: "done"
"""

GATED = """
heliograph: 1
id: inner
nodes:
  - {id: gate, kind: wait_for_signal, signal: go}
output: "${nodes.gate}"
"""


def test_the_output_of_a_child_is_the_nodes_output(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(ECHO)
            home.publish(OUTER)
            execution_id = await start(home, home.host(), "outer", input={"word": "hey"})
            state = await home.ended(execution_id)
            assert state.output == "child said hey"
            child = home.state(child_id(execution_id, NodeId("child"), 1))
            assert child.parent_id == execution_id
            assert child.correlation_id == execution_id
            assert child.source == "flow"
            home.verified()

    run(story())


def test_with_one_place_a_parent_and_its_child_both_get_through(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            home.publish(ASKING.format(url=desk.url))
            home.publish(OUTER)
            host = home.host(running_max=1, queued_max=10)
            ids = [await start(home, host, "outer", input={"word": "w"}) for _ in range(3)]
            for execution_id in ids:
                assert (await home.ended(execution_id)).output == "child said done"
            assert desk.at_once_most == 1
            home.verified()

    run(story())


def test_a_failed_child_fails_its_node_and_a_retry_starts_another(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.plan("/ask", (500, '"no"'), (200, '"yes"'))
            home.publish(ASKING.format(url=desk.url))
            retry = ", retry: {attempts: 2, backoff_seconds: 0}}"
            home.publish(OUTER.replace('"${inputs.word}"}}', '"${inputs.word}"}' + retry))
            execution_id = await start(home, home.host(), "outer", input={"word": "w"})
            assert (await home.ended(execution_id)).output == "child said done"
            first, second = (home.state(child_id(execution_id, NodeId("child"), n)) for n in (1, 2))
            assert (first.status, second.status) == ("failed", "completed")
            failed = next(e for e in home.history(execution_id) if e.TOPIC == "execution.node_failed")
            assert "ChildFailed" in str(failed)
            assert "500" in str(failed)
            home.verified()

    run(story())


@pytest.mark.parametrize("case", ["unknown", "disabled"])
def test_a_flow_that_is_unknown_or_disabled_fails_the_node(tmp_path: Path, case: str) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            if case == "disabled":
                home.publish(ECHO)
                home.disable("inner")
            home.publish(OUTER)
            execution_id = await start(home, home.host(), "outer", input={"word": "w"})
            state = await home.ended(execution_id)
            assert state.status == "failed"
            assert state.failed_node == "child"
            assert state.error is not None
            assert state.error.type == "ChildFailed"
            assert "not published" in state.error.message
            home.verified()

    run(story())


def test_a_flow_that_runs_itself_comes_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "DEPTH_MAX", 4)

    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish("{heliograph: 1, id: self, nodes: [{id: again, kind: flow, flow: self}]}")
            state = await home.ended(await start(home, home.host(), "self"))
            assert state.status == "failed"
            assert home.verified().executions == {"failed": 5}

    run(story())


def test_cancelling_a_parent_cancels_its_child(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/ask")
            home.publish(ASKING.format(url=desk.url))
            home.publish(OUTER)
            host = home.host()
            execution_id = await start(home, host, "outer", input={"word": "w"})
            await desk.asked("/ask")
            answer = await cancel(host, execution_id, "c1")
            assert isinstance(answer, Reply)
            assert (await home.ended(execution_id)).status == "cancelled"
            assert (await home.ended(child_id(execution_id, NodeId("child"), 1))).status == "cancelled"
            await until(lambda: desk.dropped == 1, "the child's request was given up")
            home.verified()

    run(story())


def test_a_child_that_takes_too_long_fails_its_node_and_is_cancelled(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/ask")
            home.publish(ASKING.format(url=desk.url))
            home.publish(OUTER.replace("flow: inner,", "flow: inner, timeout_seconds: 0.3,"))
            execution_id = await start(home, home.host(), "outer", input={"word": "w"})
            state = await home.ended(execution_id)
            assert state.error is not None
            assert state.error.type == "TimeoutError"
            assert (await home.ended(child_id(execution_id, NodeId("child"), 1))).status == "cancelled"
            home.verified()

    run(story())


def test_a_host_that_closes_leaves_children_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/ask")
            home.publish(ASKING.format(url=desk.url))
            home.publish(OUTER)
            host = home.host()
            execution_id = await start(home, host, "outer", input={"word": "w"})
            await desk.asked("/ask")
            await host.close()
            desk.release("/ask")
            second = home.host()
            await status(second)
            assert (await home.ended(execution_id)).output == "child said done"
            assert "cancellation_requested" not in home.kinds(child_id(execution_id, NodeId("child"), 1))
            home.verified()

    run(story())


def test_a_parent_recovers_while_its_child_waits(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GATED)
            home.publish(OUTER)
            host = home.host()
            execution_id = await start(home, host, "outer", input={"word": "w"})
            child = child_id(execution_id, NodeId("child"), 1)
            await home.recorded(child, "node_waiting")
            await until(lambda: host.in_memory() == [execution_id], "the child leaves memory, its parent not")
            await host.die()
            second = home.host()
            await status(second)
            await home.recorded(execution_id, "recovered")
            await signal(second, child, "go", "up")
            assert (await home.ended(execution_id)).output == "child said up"
            home.verified()

    run(story())


def test_a_parent_recovers_after_its_child_has_ended(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GATED)
            home.publish(OUTER)
            host, other = home.host("host-0"), home.host("host-1")
            execution_id = await start(home, host, "outer", input={"word": "w"})
            child = child_id(execution_id, NodeId("child"), 1)
            await home.recorded(child, "node_waiting")
            await host.die()
            await signal(other, child, "go", "up")
            assert (await home.ended(child)).status == "completed"
            second = home.host("host-0")
            await status(second)
            assert (await home.ended(execution_id)).output == "child said up"
            home.verified()

    run(story())


def test_the_end_of_a_child_at_another_host_is_found_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "RECHECK_SECONDS", 0.05)

    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GATED)
            home.publish(OUTER)
            host, other = home.host("host-0"), home.host("host-1")
            execution_id = await start(home, host, "outer", input={"word": "w"})
            child = child_id(execution_id, NodeId("child"), 1)
            await home.recorded(child, "node_waiting")
            await until(lambda: child not in host.in_memory(), "the child leaves memory")
            await signal(other, child, "go", "up")
            assert (await home.ended(execution_id)).output == "child said up"
            assert home.state(child).owner == other.owner
            home.verified()

    run(story())


def test_a_fenced_parent_does_not_cancel_its_child(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/ask")
            home.publish(ASKING.format(url=desk.url))
            home.publish(OUTER)
            old, heir = home.host("host-0"), home.host("host-1")
            execution_id = await start(home, old, "outer", input={"word": "w"})
            await desk.asked("/ask")
            await answers(heir, [messages.Adopt("host-0")])
            await desk.asked("/ask", 2)
            refusal = await cancel(old, execution_id, "late")
            assert not isinstance(refusal, Reply)
            await until(lambda: execution_id not in old.in_memory(), "the former owner has forgotten it")
            await asyncio.sleep(0)
            desk.release("/ask")
            assert (await home.ended(execution_id)).output == "child said done"
            home.verified()

    run(story())
