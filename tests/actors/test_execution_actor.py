"""Effects: when they start, how often, how they end, and what of them is recorded."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from actors import execution_actor, performer, revival, scope
from actors.messages import Refusal, Reply, Send
from runtime import commands, events
from runtime.blob_store import BlobStore
from runtime.events import NodeCompleted, NodeFailed, NodeStarted
from tests.actors.household import (
    Desk,
    Household,
    answers,
    cancel,
    run,
    send,
    start,
    start_message,
    status,
    until,
)


def call(url: str, more: str = "", head: str = "") -> str:
    return f"""
heliograph: 1
id: call
{head}
nodes:
  - {{id: before, kind: template, template: "b"}}
  - {{id: call, kind: http_request, method: POST, url: "{url}", body: "{{{{ nodes.before }}}}" {more}}}
output: "${{nodes.call.body}}"
"""


def test_an_effect_starts_only_after_its_start_and_its_inputs_are_committed(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            home.publish(call(f"{desk.url}/work"))
            host = home.host()
            await status(host)
            await until(host.is_running, "recovery is over")
            host.log.gate.clear()
            message = start_message(home, "call")
            answer = asyncio.ensure_future(answers(host, [message]))
            execution_id = message.command.execution_id
            await until(
                lambda: execution_id in host.in_memory() and host.state_in_memory(execution_id).version >= 5,
                "decided up to the effect",
            )
            assert desk.requests == []
            desk.hold("/work")
            host.log.gate.set()
            await desk.asked("/work")
            assert home.kinds(execution_id)[-1] == "node_started", "committed before the request was made"
            desk.release("/work")
            await answer
            await home.ended(execution_id)
            assert [one.key for one in desk.requests] == [f"{execution_id}:call:1"]
            assert desk.requests[0].body == "b"
            home.verified()

    run(story())


def test_the_outcome_of_an_effect_is_recorded_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            home.publish(call(f"{desk.url}/work"))
            execution_id = await start(home, home.host(), "call")
            state = await home.ended(execution_id)
            assert state.output == {"number": 1}
            completed = [e for e in home.history(execution_id) if isinstance(e, NodeCompleted)]
            assert [event.node_id for event in completed] == ["before", "call"]
            home.verified()

    run(story())


def test_a_failed_attempt_is_made_again_after_its_back_off(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.plan("/work", (503, '"busy"'), (503, '"busy"'), (200, '"done"'))
            retry = ", retry: {attempts: 3, backoff_seconds: 100, backoff_factor: 2,"
            retry += " backoff_max_seconds: 1000, jitter: 0.5}"
            home.publish(call(f"{desk.url}/work", retry))
            host = home.host()
            host.dice = 0.75
            execution_id = await start(home, host, "call")
            await home.recorded(execution_id, "node_failed")
            failed = [e for e in home.history(execution_id) if isinstance(e, NodeFailed)]
            assert failed[0].retry_at == failed[0].at + 125_000_000  # 100 s and half of the jitter's half
            await until(lambda: not host.in_memory(), "a retry that is far away leaves memory")
            host.advance_clock(126)
            await host.look_for_due()
            await home.recorded(execution_id, "node_failed", 2)
            await until(lambda: not host.in_memory(), "it leaves memory again")
            host.advance_clock(251)
            await host.look_for_due()
            state = await home.ended(execution_id)
            assert state.output == "done"
            assert state.retry_count == 2
            assert [one.key for one in desk.requests] == [f"{execution_id}:call:{n}" for n in (1, 2, 3)]
            home.verified()

    run(story())


def test_fail_on_status_is_the_nodes_choice(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.plan("/work", (404, '"nothing"'))
            home.publish(call(f"{desk.url}/work"))
            host = home.host()
            state = await home.ended(await start(home, host, "call"))
            assert state.status == "failed"
            assert state.failed_node == "call"
            assert state.error is not None
            assert state.error.type == "HTTPStatusError"
            home.publish(call(f"{desk.url}/work", ", fail_on_status: false"))
            state = await home.ended(await start(home, host, "call"))
            assert state.output == "nothing"

    run(story())


@pytest.mark.parametrize(
    ("url", "error"),
    [("http://host:port/x", "InvalidURL"), ("http://127.0.0.1:1025/", "ConnectError")],
)
def test_a_url_that_leads_nowhere_fails_the_node(tmp_path: Path, url: str, error: str) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(call(url))
            execution_id = await start(home, home.host(), "call")
            state = await home.ended(execution_id)
            assert state.error is not None
            assert state.error.type == error
            assert home.kinds(execution_id).count("node_started") == 2

    run(story())


def test_an_attempt_that_takes_too_long_fails_with_its_timeout(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/work")
            home.publish(call(f"{desk.url}/work", ", timeout_seconds: 0.2"))
            state = await home.ended(await start(home, home.host(), "call"))
            assert state.error is not None
            assert state.error.type == "TimeoutError"
            assert "0.2 s" in state.error.message
            await until(lambda: desk.dropped == 1, "the request was given up")

    run(story())


def test_without_a_timeout_of_its_own_a_request_has_the_default_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(performer, "HTTP_TIMEOUT_SECONDS", 0.2)

    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/work")
            home.publish(call(f"{desk.url}/work"))
            state = await home.ended(await start(home, home.host(), "call"))
            assert state.error is not None
            assert state.error.type == "TimeoutError"

    run(story())


def test_the_deadline_of_an_execution_ends_it_and_cancels_what_runs(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/work")
            home.publish(call(f"{desk.url}/work"))
            host = home.host()
            execution_id = await start(home, host, "call", timeout_seconds=100.0)
            await desk.asked("/work")
            host.advance_clock(101)
            state = await home.ended(execution_id)
            assert state.status == "timed_out"
            await until(lambda: desk.dropped == 1, "the request was given up")
            await until(lambda: not host.in_memory(), "it is forgotten")
            home.verified()

    run(story())


# --- cancellation, pause --------------------------------------------------------------------------------


def test_cancelling_stops_what_runs_before_it_is_confirmed(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/work")
            home.publish(call(f"{desk.url}/work"))
            host = home.host()
            execution_id = await start(home, host, "call")
            await desk.asked("/work")
            first = await cancel(host, execution_id, "request-1")
            assert isinstance(first, Reply)
            assert first.previous_status == "running"
            same = await cancel(host, execution_id, "request-1")
            assert isinstance(same, Reply)
            assert same.previous_status == "running"
            state = await home.ended(execution_id)
            assert state.status == "cancelled"
            await until(lambda: desk.dropped == 1, "the request was given up")
            assert home.kinds(execution_id)[-2:] == ["cancellation_requested", "cancelled"]
            same = await cancel(host, execution_id, "request-1")
            assert isinstance(same, Reply)
            assert same.previous_status == "running"
            home.verified()

    run(story())


def test_an_effect_that_ignores_its_cancellation_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution_actor, "STOP_SECONDS_MAX", 0.2)

    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            home.publish(call(f"{desk.url}/work"))
            host = home.host()
            await status(host)
            stubborn = asyncio.Event()

            async def perform(*_: object) -> execution_actor.StepOutcome:
                while not stubborn.is_set():
                    try:
                        await stubborn.wait()
                    except asyncio.CancelledError:
                        continue
                return execution_actor.StepOutcome(output="late")

            monkeypatch.setattr(host, "perform", perform)
            execution_id = await start(home, host, "call")
            await home.recorded(execution_id, "node_started", 2)
            await cancel(host, execution_id)
            state = await home.ended(execution_id)
            assert state.status == "cancelled"
            stubborn.set()
            await until(lambda: not host.in_memory(), "it is forgotten")
            assert home.kinds(execution_id)[-1] == "cancelled"
            home.verified()

    run(story())


def test_a_start_and_its_cancel_in_one_batch_leave_nothing_running(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            home.publish(call(f"{desk.url}/work"))
            host = home.host()
            await home.ended(await start(home, host, "call"))
            message = start_message(home, "call")
            execution_id = message.command.execution_id
            order = commands.RequestCancel(at=host.now(), cause="c")
            replies = await answers(host, [message, Send(execution_id, order)])
            assert all(isinstance(reply, Reply) for reply in replies)
            assert (await home.ended(execution_id)).status == "cancelled"
            assert len(desk.requests) == 1, "only the execution before"
            home.verified()

    run(story())


def test_an_outcome_that_arrives_in_a_pause_is_kept_and_the_rest_waits(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/work")
            home.publish(call(f"{desk.url}/work"))
            host = home.host()
            execution_id = await start(home, host, "call")
            await desk.asked("/work")
            await send(host, execution_id, commands.Pause(at=host.now()))
            desk.release("/work")
            await home.recorded(execution_id, "node_completed", 2)
            assert home.state(execution_id).status == "paused"
            await send(host, execution_id, commands.Resume(at=host.now()))
            assert (await home.ended(execution_id)).status == "completed"
            home.verified()

    run(story())


# --- large values ---------------------------------------------------------------------------------------

LARGE = """
heliograph: 1
id: large
inputs: {type: object, properties: {text: {type: string}}}
nodes:
  - {id: wide, kind: template, template: "{{ inputs.text }}{{ inputs.text }}"}
  - {id: long, kind: template, template: "{{ nodes.wide | length }}"}
  - {id: gate, kind: wait_for_signal, signal: go, needs: [long]}
  - {id: again, kind: template, template: "{{ nodes.wide | length }}", needs: [gate]}
output: {wide: "${nodes.wide}", lengths: ["${nodes.long}", "${nodes.again}"]}
"""


def test_large_values_travel_by_reference_and_survive_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(LARGE)
            blobs = BlobStore(f"file://{tmp_path}/blobs")
            text = "ä" * 50_000
            ref = blobs.put_bytes(msgspec.json.encode({"text": text}))
            host = home.host()
            execution_id = await start(home, host, "large", input=None, input_ref=ref)
            await until(lambda: not host.in_memory() and "node_waiting" in home.kinds(execution_id), "a wait")
            await host.die()
            second = home.host()
            await send(second, execution_id, commands.Signal(at=second.now(), signal_id="1", name="go"))
            state = await home.ended(execution_id)
            assert state.output_ref is not None
            output = msgspec.json.decode(blobs.get_bytes(state.output_ref))
            assert output == {"wide": text * 2, "lengths": ["100000", "100000"]}
            assert max(len(recorded.data) for recorded in home.log.read(execution_id)) < 40_000
            home.verified()

    run(story())


def test_a_large_answer_and_a_missing_blob_are_told_apart(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.plan("/work", (200, '"' + "x" * 100_000 + '"'))
            home.publish(call(f"{desk.url}/work"))
            host = home.host()
            state = await home.ended(await start(home, host, "call"))
            assert state.output_ref is not None
            assert state.output is None
            lost = events.BlobRef(sha256="0" * 64, size=5)
            state = await home.ended(await start(home, host, "call", input=None, input_ref=lost))
            assert state.status == "failed"
            assert state.error is not None
            assert state.error.type == "NotFound"
            assert home.verified().executions == {"completed": 1, "failed": 1}

    run(story())


def test_loaded_values_beyond_the_bound_are_dropped_and_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scope, "LOADED_BYTES_MAX", 50_000)
    nodes = [f"  - {{id: w{i}, kind: template, template: \"{{{{ '{i}' * 40000 }}}}\"}}" for i in range(4)]
    reads = " ~ ".join(f"nodes.w{i}[0]" for i in range(4))
    flow = "\n".join(
        [
            "heliograph: 1",
            "id: many",
            "nodes:",
            *nodes,
            '  - {id: one, kind: template, template: "{{ nodes.w0[0] }}"}',
            f'  - {{id: all, kind: template, template: "{{{{ {reads} }}}}", needs: [one]}}',
            'output: {one: "${nodes.one}", all: "${nodes.all}"}',
        ]
    )

    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(flow)
            state = await home.ended(await start(home, home.host(), "many"))
            assert state.output == {"one": "0", "all": "0123"}

    run(story())


# --- faults of our own ----------------------------------------------------------------------------------


def test_a_fault_of_ours_is_recovered_from_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revival, "REVIVE_SECONDS", 0.01)
    faults = iter([True])
    real = execution_actor.scheduling.is_finished

    def is_finished(state: object) -> bool:
        if next(faults, False):
            raise RuntimeError("a fault of ours")
        return real(state)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(execution_actor.scheduling, "is_finished", is_finished)

    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            home.publish(call(f"{desk.url}/work"))
            execution_id = await start(home, home.host(), "call")
            state = await home.ended(execution_id)
            assert state.status == "completed"
            assert len(desk.requests) == 1
            home.verified()

    run(story())


def test_an_event_that_cannot_be_stored_ends_the_execution_with_internal_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same fault again and again: a bounded number of recoveries, then an end that says so."""
    monkeypatch.setattr(revival, "REVIVE_SECONDS", 0.01)

    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(
                """
heliograph: 1
id: poison
nodes:
  - {id: gate, kind: wait_for_signal, signal: go}
  - {id: bad, kind: template, template: "{{ '\\\\ud800' }}", needs: [gate]}
"""
            )
            host = home.host()
            execution_id = await start(home, host, "poison")
            await home.recorded(execution_id, "node_waiting")
            answer = await send(host, execution_id, commands.Signal(at=host.now(), signal_id="1", name="go"))
            assert isinstance(answer, Refusal), "what could not be recorded is not acknowledged"
            await send(host, execution_id, commands.Signal(at=host.now(), signal_id="1", name="go"))
            await send(host, execution_id, commands.Signal(at=host.now(), signal_id="1", name="go"))
            state = await home.ended(execution_id)
            assert state.status == "failed"
            assert state.error is not None
            assert state.error.type == "InternalError"
            assert not host.in_memory()
            home.verified()

    run(story())


def test_a_host_says_where_each_attempt_ran(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            home.publish(call(f"{desk.url}/work"))
            host = home.host()
            execution_id = await start(home, host, "call")
            await home.ended(execution_id)
            started = [e for e in home.history(execution_id) if isinstance(e, NodeStarted)]
            assert {event.where for event in started} == {host.owner}
            queued = home.history(execution_id)[0]
            assert isinstance(queued, events.Queued)
            assert queued.owner == host.owner

    run(story())
