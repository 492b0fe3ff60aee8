"""What happens after a crash: nothing recorded is done again, what was not recorded is made again once."""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from actors import messages
from actors.messages import Refusal, Reply
from runtime import administration, commands
from runtime.errors import Unavailable
from runtime.event_log import Append, Chain, Recorded
from runtime.events import Event, NodeCompleted, NodeProgressed, Recovered
from runtime.execution import fold
from tests.actors.household import (
    Desk,
    Household,
    answers,
    cancel,
    run,
    send,
    signal,
    start,
    status,
    until,
)

INNER = """
heliograph: 1
id: inner
nodes:
  - {{id: ask, kind: http_request, url: "{url}/inner"}}
output: "${{nodes.ask.body}}"
"""

MIXED = """
heliograph: 1
id: mixed
nodes:
  - {{id: words, kind: template, template: "w"}}
  - {{id: ask, kind: http_request, method: POST, url: "{url}/ask", body: "{{{{ nodes.words }}}}"}}
  - {{id: nap, kind: sleep, seconds: 0.01, needs: [ask]}}
  - {{id: gate, kind: wait_for_signal, signal: go, needs: [nap]}}
  - id: each
    kind: map
    over: "[`0`, `1`, `2`]"
    concurrency: 1
    needs: [gate]
    each: {{kind: http_request, url: "{url}/item/{{{{ item }}}}"}}
  - {{id: child, kind: flow, flow: inner, needs: [each]}}
output: {{child: "${{nodes.child}}", items: "${{nodes.each.results[].status}}"}}
"""

INSIDE_OF_A_DECISION = ("execution.timer_fired", "execution.signal_received")
"""Followed by the node's completion in the same decision: appended together or not at all."""

EXPECTED_ITEMS = [200, 200, 200]


def copy_prefix(source: list[Recorded], target: Household) -> None:
    """The log as it was after these events."""
    by_stream: dict[str, list[Event]] = defaultdict(list)
    for recorded in source:
        by_stream[recorded.originator_id].append(recorded.event())
    for stream, history in by_stream.items():
        state = administration.fold_flow(history) if stream.startswith("flow:") else fold(history)
        outcome = target.log.append([Append(stream, history, state, Chain())])[0]
        assert isinstance(outcome, tuple), outcome


def recorded_effects(history: Iterable[Event], execution_id: str) -> set[str]:
    """Idempotency keys of the effects whose outcome stands in the log."""
    keys: set[str] = set()
    for event in history:
        match event:
            case NodeCompleted():
                keys.add(f"{event.originator_id}:{event.node_id}:{event.attempt}")
            case NodeProgressed():
                keys |= {f"{execution_id}:{event.node_id}:{event.attempt}:{i.index}:1" for i in event.items}
            case _:
                pass
    return keys


@pytest.mark.slow
def test_recovery_at_every_event_completes_and_repeats_only_what_was_not_recorded(tmp_path: Path) -> None:
    async def story() -> None:
        async with Desk() as desk:
            async with Household(tmp_path / "first") as home:
                home.publish(INNER.format(url=desk.url))
                home.publish(MIXED.format(url=desk.url))
                host = home.host()
                execution_id = await start(home, host, "mixed")
                await home.recorded(execution_id, "timer_fired")
                await signal(host, execution_id, "go", {"a": 1}, "s1")
                state = await home.ended(execution_id)
                assert state.status == "completed", state.error
                assert state.output["items"] == EXPECTED_ITEMS
                home.verified()
                whole = home.all_events()
            all_keys = {request.key for request in desk.requests}
            assert len(desk.requests) == len(all_keys) == 5
            first = next(i for i, one in enumerate(whole) if one.originator_id == execution_id)
            for length in range(first + 1, len(whole)):
                if whole[length - 1].topic in INSIDE_OF_A_DECISION:
                    continue
                await recover(desk, tmp_path / f"at-{length}", whole[:length], execution_id, all_keys)

    async def recover(
        desk: Desk, folder: Path, prefix: list[Recorded], execution_id: str, all_keys: set[str]
    ) -> None:
        desk.requests.clear()
        async with Household(folder) as home:
            copy_prefix(prefix, home)
            done = recorded_effects((one.event() for one in prefix), execution_id)
            before = {one.originator_id: one.originator_version for one in prefix}
            host = home.host()
            await status(host)
            kinds = home.kinds(execution_id)
            if "signal_received" not in kinds and "completed" not in kinds:
                await signal(host, execution_id, "go", {"a": 1}, "s1")
            state = await home.ended(execution_id)
            assert state.status == "completed", (len(prefix), state.error)
            assert state.output["items"] == EXPECTED_ITEMS
            report = home.verified()
            assert report.executions == {"completed": 2}
            made = [request.key for request in desk.requests]
            assert len(made) == len(set(made)), "each effect once in this life"
            assert set(made) == all_keys - done, (len(prefix), "the unrecorded ones, under the same keys")
            added = [
                one for one in home.log.read(execution_id) if one.originator_version > before[execution_id]
            ]
            if added:
                assert isinstance(added[0].event(), Recovered)

    run(story())


def test_a_killed_host_is_followed_by_one_that_goes_on(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/ask")
            home.publish(INNER.format(url=desk.url))
            home.publish(MIXED.format(url=desk.url))
            host = home.host()
            ids = [await start(home, host, "mixed") for _ in range(5)]
            await desk.asked("/ask", 5)
            await host.die()
            second = home.host()
            await status(second)
            await desk.asked("/ask", 10)
            desk.release("/ask")
            for execution_id in ids:
                await home.recorded(execution_id, "timer_fired")
                await signal(second, execution_id, "go")
                assert (await home.ended(execution_id)).status == "completed"
            keys = [request.key for request in desk.to("/ask")]
            assert sorted(keys) == sorted([f"{one}:ask:1" for one in ids] * 2)
            home.verified()

    run(story())


def test_what_is_queued_at_a_crash_is_queued_again_and_keeps_its_bound(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/inner")
            home.publish(INNER.format(url=desk.url))
            host = home.host(running_max=1)
            ids = [await start(home, host, "inner") for _ in range(3)]
            await desk.asked("/inner")
            await host.die()
            second = home.host(running_max=1)
            await status(second)
            await until(second.is_running, "recovery is over")
            await desk.asked("/inner", 2)
            assert second.places_taken() == 1
            assert (await status(second)).queued == 2
            desk.release("/inner")
            for execution_id in ids:
                assert (await home.ended(execution_id)).status == "completed"
            home.verified()

    run(story())


def test_a_crash_in_a_pause_with_an_attempt_running_waits_for_the_resume(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/inner")
            home.publish(INNER.format(url=desk.url))
            host = home.host()
            execution_id = await start(home, host, "inner")
            await desk.asked("/inner")
            await send(host, execution_id, commands.Pause(at=host.now()))
            await host.die()
            second = home.host()
            await status(second)
            await until(second.is_running, "recovery is over")
            await home.recorded(execution_id, "recovered")
            assert len(desk.requests) == 1, "nothing runs in a pause"
            desk.release("/inner")
            await send(second, execution_id, commands.Resume(at=second.now()))
            assert (await home.ended(execution_id)).status == "completed"
            assert [r.key for r in desk.requests] == [f"{execution_id}:ask:1"] * 2
            home.verified()

    run(story())


def test_a_crash_while_cancelling_ends_in_cancelled(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/inner")
            home.publish(INNER.format(url=desk.url))
            host = home.host()
            stubborn = asyncio.Event()

            async def perform(*_: object) -> None:
                while not stubborn.is_set():
                    try:
                        await stubborn.wait()
                    except asyncio.CancelledError:
                        continue

            host.perform = perform  # type: ignore[method-assign] - an effect that doesn't stop
            execution_id = await start(home, host, "inner")
            await home.recorded(execution_id, "node_started")
            await cancel(host, execution_id, "c1")
            assert home.kinds(execution_id)[-1] == "cancellation_requested"
            await host.die()
            stubborn.set()
            second = home.host()
            await status(second)
            assert (await home.ended(execution_id)).status == "cancelled"
            assert home.kinds(execution_id)[-2:] == ["recovered", "cancelled"]
            again = await cancel(second, execution_id, "c1")
            assert isinstance(again, Reply)
            assert again.previous_status == "running"
            home.verified()

    run(story())


def test_a_cancel_during_recovery_is_carried_out(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/inner")
            home.publish(INNER.format(url=desk.url))
            host = home.host()
            execution_id = await start(home, host, "inner")
            await desk.asked("/inner")
            await host.die()
            second = home.host()
            answer = await cancel(second, execution_id, "c1")
            assert isinstance(answer, Reply)
            assert (await home.ended(execution_id)).status == "cancelled"
            home.verified()

    run(story())


def test_a_deadline_that_passed_while_nobody_lived_ends_the_execution(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/inner")
            home.publish(INNER.format(url=desk.url))
            home.publish("{heliograph: 1, id: outer, nodes: [{id: child, kind: flow, flow: inner}]}")
            host = home.host()
            execution_id = await start(home, host, "outer", timeout_seconds=100.0)
            await desk.asked("/inner")
            child_id = home.node(execution_id, "child").child_id
            await host.die()
            second = home.host()
            second.later_micros = 101_000_000
            await status(second)
            assert (await home.ended(execution_id)).status == "timed_out"
            assert (await home.ended(child_id)).status == "cancelled"
            home.verified()

    run(story())


def test_recovery_waits_for_a_store_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/inner")
            home.publish(INNER.format(url=desk.url))
            host = home.host()
            execution_id = await start(home, host, "inner")
            await desk.asked("/inner")
            await host.die()
            second = home.host()
            faults = iter([True, True, True, True])
            for name in ("open_executions", "read", "due"):
                real = getattr(second.log, name)

                def flaky(*args: object, real: object = real, **kwargs: object) -> object:
                    if next(faults, False):
                        raise Unavailable("the store is away")
                    return real(*args, **kwargs)  # type: ignore[operator] - a method of the log

                monkeypatch.setattr(second.log, name, flaky)
            await status(second)
            desk.release("/inner")
            assert (await home.ended(execution_id)).status == "completed"
            assert next(faults, False) is False, "all faults were met"
            home.verified()

    run(story())


def test_an_execution_that_cannot_be_read_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/inner")
            home.publish(INNER.format(url=desk.url))
            host = home.host()
            broken = await start(home, host, "inner", timeout_seconds=100.0)
            sound = await start(home, host, "inner")
            await desk.asked("/inner", 2)
            await host.die()
            store = home.log.recorder
            with cast("Any", store).datastore.transaction(commit=True) as cursor:
                cursor.execute(
                    "UPDATE stored_events SET topic = 'execution.unheard_of' WHERE originator_id = ?"
                    " AND originator_version = 2",
                    (broken,),
                )
            second = home.host()
            second.later_micros = 101_000_000
            await status(second)
            desk.release("/inner")
            assert (await home.ended(sound)).status == "completed"
            await until(second.is_running, "recovery is over")
            answer = await cancel(second, broken, "c1")
            assert isinstance(answer, Refusal)
            assert answer.branch == "Unavailable"

    run(story())


# --- the fence ------------------------------------------------------------------------------------------


def test_a_former_owner_that_wakes_up_records_nothing_more(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/inner")
            home.publish(INNER.format(url=desk.url))
            old, heir = home.host("host-0"), home.host("host-1")
            execution_id = await start(home, old, "inner")
            await desk.asked("/inner")
            (answer,) = await answers(heir, [messages.Adopt("host-0")])
            assert isinstance(answer, Reply)
            await desk.asked("/inner", 2)
            assert execution_id in old.in_memory(), "it does not know yet"
            await send(old, execution_id, commands.Pause(at=old.now()))
            await until(lambda: execution_id not in old.in_memory(), "the former owner has forgotten it")
            await until(lambda: desk.dropped == 1, "and cancelled its effect")
            assert old.places_taken() == 0
            assert execution_id in heir.in_memory()
            desk.release("/inner")
            state = await home.ended(execution_id)
            assert state.status == "completed"
            assert state.owner == heir.owner
            assert "paused" not in home.kinds(execution_id)
            home.verified()

    run(story())


def test_many_late_writes_of_a_former_owner_leave_no_trace(tmp_path: Path) -> None:
    """The heir wrote one event; the former owner has several appends on their way, one behind the other."""

    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish("{heliograph: 1, id: wait, nodes: [{id: gate, kind: wait_for_signal, signal: go}]}")
            old, heir = home.host("host-0"), home.host("host-1")
            execution_id = await start(home, old, "wait")
            await until(lambda: not old.in_memory(), "passivation")
            old.log.gate.clear()
            late = [
                asyncio.ensure_future(signal(old, execution_id, "other", signal_id=str(n))) for n in range(3)
            ]
            tries = old.log.tries
            await until(lambda: old.log.tries > tries, "the first late write at the gate")
            late.append(asyncio.ensure_future(signal(old, execution_id, "other", signal_id="more")))
            await asyncio.sleep(0)
            await answers(heir, [messages.Adopt("host-0")])
            await home.recorded(execution_id, "recovered")
            old.log.gate.set()
            refusals = await asyncio.gather(*late)
            assert all(isinstance(one, Refusal) for one in refusals)
            await until(lambda: not heir.in_memory(), "the heir keeps it as a row")
            assert "signal_received" not in home.kinds(execution_id)
            assert isinstance(await signal(heir, execution_id, "go"), Reply)
            assert (await home.ended(execution_id)).status == "completed"
            home.verified()

    run(story())


def test_the_waiting_executions_of_a_lost_host_find_their_timers_and_signals_at_the_heir(
    tmp_path: Path,
) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish("{heliograph: 1, id: wait, nodes: [{id: gate, kind: wait_for_signal, signal: go}]}")
            home.publish("{heliograph: 1, id: nap, nodes: [{id: nap, kind: sleep, seconds: 3600}]}")
            lost, heir = home.host("host-0"), home.host("host-1")
            waiting = [await start(home, lost, "wait") for _ in range(5)]
            sleeping = await start(home, lost, "nap")
            await until(lambda: not lost.in_memory(), "passivation")
            await lost.die()
            await answers(heir, [messages.Adopt("host-0")])
            for execution_id in (*waiting, sleeping):
                await home.recorded(execution_id, "recovered")
            await until(lambda: not heir.in_memory(), "the heir keeps them as rows")
            assert set(home.log.owners()) == {"host-1"}
            heir.later_micros = 3_601_000_000
            await heir.look_for_due()
            assert (await home.ended(sleeping)).status == "completed"
            for execution_id in waiting:
                await signal(heir, execution_id, "go")
                assert (await home.ended(execution_id)).status == "completed"
            home.verified()

    run(story())


def test_a_host_takes_back_what_the_log_says_is_its_own(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/inner")
            home.publish(INNER.format(url=desk.url))
            host = home.host()
            execution_id = await start(home, host, "inner")
            await desk.asked("/inner")
            host.fence_by_mistake(execution_id)
            await desk.asked("/inner", 2)
            desk.release("/inner")
            assert (await home.ended(execution_id)).status == "completed"
            assert "recovered" not in home.kinds(execution_id)
            home.verified()

    run(story())


STRANDED = """
heliograph: 1
id: stranded
nodes:
  - {id: gate, kind: wait_for_signal, signal: never}
  - {id: first, kind: sleep, seconds: 0.01}
  - {id: second, kind: template, template: "after the nap", needs: [first]}
"""


def test_a_node_that_was_due_when_the_rest_waited_is_started_after_a_crash(tmp_path: Path) -> None:
    """The row says waiting, and neither a timer nor a message would ever come for the node."""

    async def story() -> None:
        async with Household(tmp_path / "before") as before:
            before.publish(STRANDED)
            execution_id = await start(before, before.host(), "stranded")
            await before.recorded(execution_id, "node_completed", 2)
            whole = before.all_events()
        cut = next(
            index
            for index, recorded in enumerate(whole)
            if recorded.topic == "execution.node_started" and b'"second"' in recorded.data
        )
        async with Household(tmp_path / "after") as after:
            copy_prefix(whole[:cut], after)
            after.versions.update(before.versions)
            assert after.state(execution_id).status == "waiting"
            host = after.host()
            await status(host)
            await after.recorded(execution_id, "node_completed", 2)
            assert after.node(execution_id, "second").output == "after the nap"
            assert after.state(execution_id).status == "waiting"
            after.verified(settled=False)

    run(story())
