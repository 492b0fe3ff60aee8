"""The host: what it acknowledges, admits, keeps in memory and gives back."""

import asyncio
from pathlib import Path

from actors import execution_actor
from actors.messages import Refusal, Reply, Start
from runtime import commands
from runtime.ids import Micros
from tests.actors.household import (
    Household,
    all_of,
    answers,
    cancel,
    new_id,
    refused,
    run,
    send,
    signal,
    start,
    start_message,
    status,
    until,
)

GREETING = """
heliograph: 1
id: greeting
nodes:
  - {id: a, kind: template, template: "Hello {{ inputs.who }}"}
  - {id: b, kind: template, template: "{{ nodes.a }}!"}
  - {id: c, kind: template, template: "{{ nodes.b }} Bye."}
output: "${nodes.c}"
"""

WAITING = """
heliograph: 1
id: waiting
nodes:
  - {id: gate, kind: wait_for_signal, signal: go}
  - {id: after, kind: template, template: "got {{ nodes.gate.word }}"}
output: "${nodes.after}"
"""


def chain(length: int) -> str:
    nodes = ["  - {id: n0, kind: template, template: x}"]
    nodes += [f"  - {{id: n{i}, kind: template, template: x, needs: [n{i - 1}]}}" for i in range(1, length)]
    return "\n".join(["heliograph: 1", "id: chain", "nodes:", *nodes, f'output: "${{nodes.n{length - 1}}}"'])


def test_three_templates_are_nine_events_in_order(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GREETING)
            execution_id = await start(home, home.host(), "greeting", input={"who": "you"})
            state = await home.ended(execution_id)
            assert state.output == "Hello you! Bye."
            assert home.kinds(execution_id) == [
                "queued",
                "started",
                *["node_started", "node_completed"] * 3,
                "completed",
            ]
            home.verified()

    run(story())


def test_a_start_is_acknowledged_only_when_it_is_in_the_log(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GREETING)
            host = home.host()
            await start(home, host, "greeting", input={"who": "first"})
            host.log.gate.clear()
            message = start_message(home, "greeting", input={"who": "you"})
            acknowledged = asyncio.ensure_future(answers(host, [message]))
            other = asyncio.ensure_future(answers(host, [message]))
            await until(lambda: host.log.tries > 1, "the writer at the gate")
            assert not acknowledged.done()
            assert home.history(message.command.execution_id) == []
            host.log.gate.set()
            assert isinstance((await acknowledged)[0], Reply)
            assert isinstance((await other)[0], Reply)
            assert home.kinds(message.command.execution_id)[0] == "queued"

    run(story())


def test_the_same_id_twice_is_one_execution(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GREETING)
            home.publish(WAITING)
            host = home.host()
            message = start_message(home, "greeting", input={"who": "you"})
            both = await answers(host, [message, message])
            assert all(isinstance(answer, Reply) for answer in both)
            execution_id = message.command.execution_id
            await home.ended(execution_id)
            again = await answers(host, [message])
            assert isinstance(again[0], Reply)

            passivated = start_message(home, "waiting")
            await answers(host, [passivated])
            await until(lambda: not host.in_memory(), "passivation")
            assert isinstance((await answers(host, [passivated]))[0], Reply)
            await until(lambda: not host.in_memory(), "passivation of what was found again")
            assert isinstance(await signal(host, passivated.command.execution_id, "go", {"word": "x"}), Reply)
            await home.ended(passivated.command.execution_id)
            assert home.kinds(execution_id).count("queued") == 1
            home.verified()

    run(story())


def test_the_same_start_at_two_hosts_is_one_execution_of_the_first(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(WAITING)
            one, other = home.host("host-0"), home.host("host-1")
            message = start_message(home, "waiting")
            await answers(one, [message])
            await home.recorded(message.command.execution_id, "node_waiting")
            assert isinstance((await answers(other, [message]))[0], Reply)
            await until(lambda: not other.in_memory(), "the second host has forgotten it")
            assert other.places_taken() == 0
            assert home.state(message.command.execution_id).owner == one.owner
            assert home.kinds(message.command.execution_id).count("started") == 1
            home.verified(settled=False)

    run(story())


def test_a_start_that_another_host_only_queued_gets_no_second_beginning(tmp_path: Path) -> None:
    """The other owner wrote one event, this host was about to write several: none may slip in behind."""

    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GREETING)
            full, other = home.host("host-0", running_max=0), home.host("host-1")
            await start(home, other, "greeting", input={"who": "warm"})
            message = start_message(home, "greeting", input={"who": "you"})
            await answers(full, [message])
            assert home.kinds(message.command.execution_id) == ["queued"]
            assert isinstance((await answers(other, [message]))[0], Reply)
            assert home.kinds(message.command.execution_id) == ["queued"]
            assert home.state(message.command.execution_id).owner == full.owner

    run(story())


def test_a_version_that_was_never_published_is_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GREETING)
            host = home.host()
            message = start_message(home, "greeting", flow_version="0123456789abcdef")
            (answer,) = await answers(host, [message])
            assert isinstance(answer, Refusal)
            assert answer.branch == "NotFound"
            assert home.history(message.command.execution_id) == []

    run(story())


def test_at_its_bound_the_queue_refuses_and_creates_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GREETING)
            host = home.host(running_max=0, queued_max=2)
            batch = [start_message(home, "greeting", input={"who": "you"}) for _ in range(5)]
            replies = await answers(host, batch)
            refusals = [one for one in replies if isinstance(one, Refusal)]
            assert len(refusals) == 3
            assert {refusal.branch for refusal in refusals} == {"Overloaded"}
            accepted = [m for m, a in zip(batch, replies, strict=True) if isinstance(a, Reply)]
            kept = [message for message in batch if home.history(message.command.execution_id)]
            assert kept == accepted
            assert (await refused(home, host, "greeting")).branch == "Overloaded"
            assert (await status(host)).queued == 2

    run(story())


def test_the_next_is_admitted_when_one_ends_or_leaves_memory(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(WAITING)
            home.publish(GREETING)
            host = home.host(running_max=1)
            waiting = [await start(home, host, "waiting") for _ in range(3)]
            for execution_id in waiting:
                await home.recorded(execution_id, "node_waiting")
            greeted = await start(home, host, "greeting", input={"who": "you"})
            await home.ended(greeted)
            await until(lambda: not host.in_memory(), "all are out of memory")
            assert host.places_taken() == 0

    run(story())


def test_a_queued_execution_that_is_cancelled_never_starts_a_node(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GREETING)
            host = home.host(running_max=0)
            execution_id = await start(home, host, "greeting", input={"who": "you"})
            answer = await cancel(host, execution_id, "request-1")
            assert answer == Reply(previous_status="queued", version=3)
            assert home.kinds(execution_id) == ["queued", "cancellation_requested", "cancelled"]
            await until(lambda: not host.in_memory(), "it is forgotten")
            assert (await status(host)).queued == 0

    run(story())


def test_a_burst_of_pure_nodes_goes_on_beyond_its_bound(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            length = execution_actor.BURST_STEPS_MAX * 3 + 1
            home.publish(chain(length))
            execution_id = await start(home, home.host(), "chain")
            state = await home.ended(execution_id)
            assert state.status == "completed"
            assert state.version == 2 + 2 * length + 1
            home.verified()

    run(story())


def test_a_long_chain_lets_others_have_their_turn(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(chain(1_000))
            home.publish(GREETING)
            host = home.host()
            await start(home, host, "greeting", input={"who": "warm"})
            await home.ended(await start(home, host, "chain"))  # its plan is at hand from here on
            long, short = new_id(), new_id()
            both = [
                start_message(home, "chain", long),
                start_message(home, "greeting", short, input={"who": "you"}),
            ]
            await answers(host, both)  # in one batch, so that neither begins before the other is there
            await home.ended(short)
            await home.ended(long)
            ends = [one.originator_id for one in home.all_events() if one.topic == "execution.completed"]
            assert ends[-2:] == [short, long]
            home.verified()

    run(story())


def test_messages_of_one_batch_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(WAITING)
            host = home.host()
            ids = [await start(home, host, "waiting") for _ in range(20)]
            for execution_id in ids:
                await home.recorded(execution_id, "node_waiting")
            await until(lambda: not host.in_memory(), "all are out of memory")
            before = host.log.tries
            await all_of(*(signal(host, one, "go", {"word": "w"}) for one in ids))
            for execution_id in ids:
                assert (await home.ended(execution_id)).output == "got w"
            assert host.log.tries - before < 40
            home.verified()

    run(story())


def test_one_message_that_fails_by_our_fault_does_not_take_the_batch_along(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GREETING)
            host = home.host()
            good = start_message(home, "greeting", input={"who": "you"})
            bad = Start(
                commands.StartExecution(
                    at=Micros(1),
                    execution_id=new_id(),
                    tenant="nobody",
                    flow_id="nothing",
                    flow_version="none",
                    source="executions",
                )
            )
            replies = await answers(host, [bad, good])
            assert isinstance(replies[0], Refusal)
            assert isinstance(replies[1], Reply)
            await home.ended(good.command.execution_id)

    run(story())


# --- waiting, passivation, timers -----------------------------------------------------------------------


def test_waiting_for_a_signal_leaves_memory_and_the_signal_brings_it_back(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(WAITING)
            host = home.host()
            execution_id = await start(home, host, "waiting")
            await home.recorded(execution_id, "node_waiting")
            await until(lambda: not host.in_memory(), "passivation")
            assert host.places_taken() == 0
            answer = await signal(host, execution_id, "go", {"word": "up"})
            assert isinstance(answer, Reply)
            assert answer.previous_status == "waiting"
            assert (await home.ended(execution_id)).output == "got up"
            home.verified()

    run(story())


def test_an_early_signal_is_kept_and_a_repeated_one_counts_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(WAITING)
            host = home.host(running_max=0)
            execution_id = await start(home, host, "waiting")
            await signal(host, execution_id, "go", {"word": "early"}, "s1")
            again = await signal(host, execution_id, "go", {"word": "early"}, "s1")
            assert isinstance(again, Reply)
            await host.die()
            second = home.host()
            await status(second)
            assert (await home.ended(execution_id)).output == "got early"
            assert home.kinds(execution_id).count("signal_received") == 1
            late = await signal(second, execution_id, "go", {"word": "early"}, "s1")
            assert isinstance(late, Reply), "a signal whose answer was lost may be sent again after the end"
            other = await signal(second, execution_id, "go", {"word": "late"}, "s2")
            assert isinstance(other, Refusal)
            assert other.branch == "InvalidTransition"
            home.verified()

    run(story())


SLEEPING = """
heliograph: 1
id: sleeping
nodes:
  - {id: nap, kind: sleep, seconds: 3600}
  - {id: after, kind: template, template: "awake", needs: [nap]}
output: "${nodes.after}"
"""


def test_a_durable_timer_fires_after_passivation(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(SLEEPING)
            host = home.host()
            execution_id = await start(home, host, "sleeping")
            await home.recorded(execution_id, "node_waiting")
            await until(lambda: not host.in_memory(), "passivation")
            await host.look_for_due()
            assert not host.in_memory()
            host.advance_clock(3601)
            await host.look_for_due()
            assert (await home.ended(execution_id)).output == "awake"
            assert "timer_fired" in home.kinds(execution_id)
            home.verified()

    run(story())


def test_a_durable_timer_fires_after_a_restart(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(SLEEPING)
            host = home.host()
            execution_id = await start(home, host, "sleeping")
            await home.recorded(execution_id, "node_waiting")
            await host.die()
            second = home.host()
            second.later_micros = 3_601_000_000
            await status(second)
            assert (await home.ended(execution_id)).output == "awake"
            kinds = home.kinds(execution_id)
            assert kinds[kinds.index("node_waiting") + 1] == "recovered"
            home.verified()

    run(story())


def test_a_short_timer_is_kept_in_memory_and_fires_by_itself(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(SLEEPING.replace("3600", "0.2"))
            host = home.host()
            execution_id = await start(home, host, "sleeping")
            assert (await home.ended(execution_id)).output == "awake"

    run(story())


def test_a_timer_in_the_store_wakes_the_host_by_itself(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(SLEEPING.replace("3600", "1.3"))
            host = home.host()
            execution_id = await start(home, host, "sleeping")
            await until(lambda: not host.in_memory(), "passivation")
            assert "completed" not in home.kinds(execution_id)
            assert (await home.ended(execution_id)).output == "awake"
            home.verified()

    run(story())


def test_a_timer_that_rings_too_early_is_set_again(tmp_path: Path) -> None:
    """The loop's clock and the wall clock differ: a wake-up a moment early must not be the last one."""

    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(SLEEPING.replace("3600", "0.5"))
            host = home.host()
            execution_id = await start(home, host, "sleeping")
            await home.recorded(execution_id, "node_waiting")
            host.advance_clock(-0.4)
            host.advance_clock(0)
            assert (await home.ended(execution_id)).output == "awake"

    run(story())


def test_a_paused_execution_starts_nothing_until_it_is_resumed(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(WAITING)
            host = home.host()
            execution_id = await start(home, host, "waiting")
            await home.recorded(execution_id, "node_waiting")
            await send(host, execution_id, commands.Pause(at=host.now()))
            await signal(host, execution_id, "go", {"word": "up"})
            await home.recorded(execution_id, "node_completed")
            await until(lambda: not host.in_memory(), "a paused execution leaves memory")
            assert home.state(execution_id).status == "paused"
            assert home.kinds(execution_id).count("node_started") == 1
            twice = await send(host, execution_id, commands.Pause(at=host.now()))
            assert isinstance(twice, Reply)
            await until(lambda: not host.in_memory(), "it leaves memory again")
            await send(host, execution_id, commands.Resume(at=host.now()))
            assert (await home.ended(execution_id)).output == "got up"
            refusal = await send(host, execution_id, commands.Resume(at=host.now()))
            assert isinstance(refusal, Refusal)
            home.verified()

    run(story())


# --- cancellation ---------------------------------------------------------------------------------------


def test_cancelling_a_waiting_execution_ends_it_at_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(WAITING)
            host = home.host()
            execution_id = await start(home, host, "waiting")
            await until(lambda: not host.in_memory(), "passivation")
            first = await cancel(host, execution_id, "request-1")
            assert isinstance(first, Reply)
            assert first.previous_status == "waiting"
            assert home.kinds(execution_id)[-2:] == ["cancellation_requested", "cancelled"]
            home.verified()

    run(story())


def test_a_second_cancel_is_refused_but_the_same_one_is_answered_like_the_first(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(WAITING)
            host = home.host()
            execution_id = await start(home, host, "waiting")
            await home.recorded(execution_id, "node_waiting")
            first = await cancel(host, execution_id, "request-1")
            same = await cancel(host, execution_id, "request-1")
            assert isinstance(first, Reply)
            assert isinstance(same, Reply)
            assert same.previous_status == first.previous_status == "waiting"
            other = await cancel(host, execution_id, "request-2")
            assert isinstance(other, Refusal)
            assert other.branch == "InvalidTransition"

    run(story())


def test_a_cancel_after_the_end_is_refused_and_says_so(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GREETING)
            host = home.host()
            execution_id = await start(home, host, "greeting", input={"who": "you"})
            await home.ended(execution_id)
            refusal = await cancel(host, execution_id, "request-1")
            assert isinstance(refusal, Refusal)
            assert refusal.branch == "InvalidTransition"
            assert "completed" in refusal.args[0]
            nobody = await cancel(host, new_id(), "request-2")
            assert isinstance(nobody, Refusal)
            assert nobody.branch == "NotFound"

    run(story())


# --- faults of the store --------------------------------------------------------------------------------


def test_work_goes_on_when_a_store_that_was_away_is_back(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GREETING)
            host = home.host()
            await start(home, host, "greeting", input={"who": "warm"})
            host.log.away.set()
            message = start_message(home, "greeting", input={"who": "you"})
            answer = asyncio.ensure_future(answers(host, [message]))
            tries = host.log.tries
            await until(lambda: host.log.tries > tries + 2, "tries while the store is away")
            assert not answer.done()
            host.log.away.clear()
            assert isinstance((await answer)[0], Reply)
            await home.ended(message.command.execution_id)
            home.verified()

    run(story())


def test_closing_writes_what_is_decided_and_refuses_what_comes_later(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(GREETING)
            host = home.host()
            await start(home, host, "greeting", input={"who": "warm"})
            message = start_message(home, "greeting", input={"who": "you"})
            host.log.gate.clear()
            answer = asyncio.ensure_future(answers(host, [message]))
            await until(lambda: message.command.execution_id in host.in_memory(), "the start is decided")
            closing = asyncio.ensure_future(host.close())
            host.log.gate.set()
            await closing
            assert isinstance((await answer)[0], Reply)
            assert home.kinds(message.command.execution_id)[0] == "queued"
            (late,) = await answers(host, [start_message(home, "greeting")])
            assert isinstance(late, Refusal)
            assert late.branch == "Unavailable"
            second = home.host()
            await status(second)
            await home.ended(message.command.execution_id)
            home.verified()

    run(story())
