"""Queues in a host: who starts when, what holds a slot, and what a crash or another host changes of it."""

from pathlib import Path

from actors.messages import Adopt, Refusal
from runtime.events import Started
from runtime.ids import SECOND, HostName
from tests.actors.household import (
    Household,
    ScriptedHost,
    answers,
    cancel,
    new_id,
    run,
    signal,
    start,
    start_message,
    status,
    until,
)

GATED = """
heliograph: 1
id: gated
queue: {{key: "{{{{ inputs.key }}}}", {limits}, priority: "{{{{ inputs.priority or 0 }}}}"}}
nodes:
  - {{id: gate, kind: wait_for_signal, signal: go}}
"""

QUICK = """
heliograph: 1
id: quick
queue: {{key: "{{{{ inputs.key }}}}", {limits}}}
nodes:
  - {{id: a, kind: template, template: x}}
"""

PARENT = """
heliograph: 1
id: parent
nodes:
  - {id: child, kind: flow, flow: gated, input: {key: k, priority: 0}}
"""


def given(key: str = "k", priority: int = 0) -> dict[str, object]:
    return {"key": key, "priority": priority}


def has_started(home: Household, execution_id: str) -> bool:
    return "started" in home.kinds(execution_id)


def slot(home: Household, execution_id: str) -> int | None:
    return home.state(execution_id).queue_slot


async def started(home: Household, *ids: str) -> None:
    for one in ids:
        await home.recorded(one, "started")


async def nothing_more_starts(home: Household, host: ScriptedHost) -> None:
    """What an execution of another key that comes later went through, those that wait could have too."""
    home.publish(QUICK.format(limits="concurrency: 1"))
    await home.ended(await start(home, host, "quick", input=given(new_id())))


def test_a_waiting_execution_holds_its_slot_to_its_end(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GATED.format(limits="concurrency: 2"))
            host = home.host()
            ids = [await start(home, host, "gated", input=given()) for _ in range(4)]
            other = await start(home, host, "gated", input=given("another key"))
            await started(home, ids[0], ids[1], other)
            await until(lambda: host.in_memory() == ids[2:], "those that began are out of memory")
            await nothing_more_starts(home, host)
            assert [has_started(home, one) for one in ids] == [True, True, False, False]
            assert {slot(home, one) for one in ids[:2]} == {0, 1}
            assert (await status(host)).queued == 0, "more places would help nobody"
            await signal(host, ids[1], "go")
            await home.ended(ids[1])
            await started(home, ids[2])
            assert slot(home, ids[2]) == slot(home, ids[1])
            assert not has_started(home, ids[3])
            await cancel(host, ids[0])
            await started(home, ids[3])
            home.verified(settled=False)

    run(story())


def test_the_higher_priority_goes_first_and_then_the_older_one(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GATED.format(limits="concurrency: 1"))
            host = home.host()
            first = await start(home, host, "gated", input=given())
            await started(home, first)
            wanted = [0, 5, -5, 5, 0]
            ids = [await start(home, host, "gated", input=given(priority=each)) for each in wanted]
            for one in [first, ids[1], ids[3], ids[0], ids[4], ids[2]]:
                await started(home, one)
                await signal(host, one, "go")
                await home.ended(one)

    run(story())


def test_after_a_crash_slots_are_held_by_those_that_are_open(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GATED.format(limits="concurrency: 2"))
            host = home.host()
            ids = [await start(home, host, "gated", input=given()) for _ in range(5)]
            await started(home, *ids[:2])
            await signal(host, ids[0], "go")
            await home.ended(ids[0])
            await started(home, ids[2])
            await host.die()
            again = home.host()
            await nothing_more_starts(home, again)
            assert [has_started(home, one) for one in ids] == [True, True, True, False, False]
            await signal(again, ids[2], "go")
            await started(home, ids[3])
            assert {slot(home, ids[1]), slot(home, ids[3])} == {0, 1}
            home.verified(settled=False)

    run(story())


def test_two_hosts_together_keep_one_limit(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GATED.format(limits="concurrency: 2"))
            hosts = [home.host("host-0"), home.host("host-1")]
            ids = [await start(home, hosts[number % 2], "gated", input=given()) for number in range(6)]
            waiting = list(ids)
            while waiting:
                begun = await until(
                    lambda: [one for one in waiting if has_started(home, one)], "the next one starts"
                )
                assert len(begun) <= 2
                for one in begun:
                    await signal(hosts[ids.index(one) % 2], one, "go")
                    await home.ended(one)
                    waiting.remove(one)
            home.verified()

    run(story())


def test_of_two_hosts_that_want_one_slot_the_later_waits_on(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GATED.format(limits="concurrency: 1"))
            slow, quick = home.host("host-0"), home.host("host-1")
            first = await start(home, quick, "gated", input=given())
            await started(home, first)
            late = await start(home, slow, "gated", input=given())
            slow.log.gate.clear()
            tries = slow.log.tries
            await signal(quick, first, "go")
            await until(lambda: slow.log.tries > tries, "the slow host tries to record a start")
            # It has the older one, so the other host waits a while for it, but not for ever.
            winner = await start(home, quick, "gated", input=given())
            await started(home, winner)
            slow.log.gate.set()
            await until(lambda: slow.log.conflicts > 0, "the store refuses a second one in the slot")
            await until(lambda: late in slow.in_memory(), "it is back in its queue")
            assert not has_started(home, late)
            await signal(quick, winner, "go")
            await started(home, late)
            await signal(slow, late, "go")
            await home.ended(late)
            home.verified()

    run(story())


def test_an_heir_does_not_add_to_what_runs_elsewhere(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GATED.format(limits="concurrency: 2"))
            lost, heir, third = (home.host(f"host-{number}") for number in range(3))
            held = [await start(home, each, "gated", input=given()) for each in (lost, third)]
            await started(home, *held)
            queued = await start(home, lost, "gated", input=given())
            await lost.die()
            await answers(heir, [Adopt(HostName("host-0"))])
            await home.recorded(queued, "recovered")
            await nothing_more_starts(home, heir)
            assert not has_started(home, queued)
            await signal(third, held[1], "go")
            await started(home, queued)
            assert {slot(home, held[0]), slot(home, queued)} == {0, 1}

    run(story())


def test_a_rate_counts_what_started_before_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(QUICK.format(limits="rate: 2/hour"))
            host = home.host()
            ids = [await start(home, host, "quick", input=given()) for _ in range(5)]
            for one in ids[:2]:
                await home.ended(one)
            await host.die()
            again = home.host()
            home.publish(GATED.format(limits="concurrency: 1"))
            await started(home, await start(home, again, "gated", input=given()))
            await until(lambda: ids[2] in again.in_memory(), "the queue is back")
            assert not any(has_started(home, one) for one in ids[2:])
            again.advance_clock(3600)
            for one in ids[2:4]:
                await home.ended(one)
            events = [event for one in ids for event in home.history(one) if isinstance(event, Started)]
            times = sorted(event.at for event in events)
            assert times[2] - times[0] >= 3600 * SECOND
            assert not has_started(home, ids[4])

    run(story())


def test_a_child_waits_for_its_queue_but_for_no_place(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GATED.format(limits="concurrency: 1"))
            home.publish(PARENT)
            host = home.host(running_max=1)
            first = await start(home, host, "gated", input=given())
            await started(home, first)
            parent = await start(home, host, "parent")
            await home.recorded(parent, "node_waiting")
            behind = await start(home, host, "gated", input=given())
            child = next(iter(home.state(parent).nodes.values())).child_id
            await home.recorded(child, "queued")
            assert not has_started(home, child)
            await signal(host, first, "go")
            await started(home, child)
            assert not has_started(home, behind)
            await signal(host, child, "go")
            await home.ended(parent)
            await started(home, behind)

    run(story())


def test_a_child_that_would_wait_for_its_own_parent_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish("""
heliograph: 1
id: self
queue: {concurrency: 1}
nodes:
  - {id: again, kind: flow, flow: self}
""")
            state = await home.ended(await start(home, home.host(), "self"))
            assert state.status == "failed"
            assert state.error is not None
            assert "its queue '*' is held by an execution that waits for this one" in state.error.message

    run(story())


def test_an_input_without_a_key_is_refused_and_others_of_the_batch_are_not(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GATED.format(limits="concurrency: 1"))
            host = home.host()
            await start(home, host, "gated", input=given())
            refusal, accepted = await answers(
                host, [start_message(home, "gated", input={}), start_message(home, "gated", input=given())]
            )
            assert isinstance(refusal, Refusal)
            assert refusal.branch == "InvalidInput"
            assert not isinstance(accepted, Refusal)

    run(story())


def test_one_tenants_full_queue_keeps_room_for_another(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GATED.format(limits="concurrency: 1"))
            host = home.host(queued_max=20)
            first = await start(home, host, "gated", input=given())
            await started(home, first)
            outcomes = [
                (await answers(host, [start_message(home, "gated", input=given(), queue_key="k")]))[0]
                for _ in range(20)
            ]
            refused = [isinstance(outcome, Refusal) for outcome in outcomes]
            assert refused == [False] * 18 + [True] * 2

    run(story())
