"""A host that leaves: what it has goes to another one, and nothing that runs is interrupted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from actors import messages
from actors.messages import Refusal, Reply
from tests.actors.household import (
    Desk,
    Household,
    ScriptedHost,
    answers,
    new_id,
    run,
    send,
    signal,
    start,
    start_message,
    status,
    until,
)

TWO_CALLS = """
heliograph: 1
id: calls
nodes:
  - {{id: first, kind: http_request, url: "{url}/first"}}
  - {{id: second, kind: http_request, url: "{url}/second", needs: [first]}}
"""
WAITING = "{heliograph: 1, id: waiting, nodes: [{id: gate, kind: wait_for_signal, signal: go}]}"
PARENT = """
heliograph: 1
id: parent
nodes: [{id: child, kind: flow, flow: calls}, {id: end, kind: template, template: x}]
"""
LONG = 60.0


async def drained(host: ScriptedHost, seconds: float = LONG) -> tuple[str, ...]:
    return messages.decode_ids(await host.drain(seconds))


async def adopt(heir: ScriptedHost, owner: str, held: tuple[str, ...]) -> None:
    await answers(heir, [messages.Adopt(owner, held)])


def test_what_waits_or_has_not_begun_goes_at_once_and_what_runs_ends_its_attempt(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            home.publish(TWO_CALLS.format(url=desk.url))
            home.publish(WAITING)
            old, heir = home.host("host-0", running_max=2), home.host("host-1")
            desk.hold("/first")
            waits = await start(home, old, "waiting")
            await home.recorded(waits, "node_waiting")
            running = [await start(home, old, "calls") for _ in range(2)]
            queued = [await start(home, old, "calls") for _ in range(3)]
            await desk.asked("/first", 2)
            assert (await status(old)).queued == 3

            held = await drained(old)
            assert set(held) == set(running)
            assert (await status(old)).state == "draining"
            await adopt(heir, "host-0", held)
            await desk.asked("/first", 5)
            # What waits is claimed last.
            gone = (waits, *queued)
            await until(lambda: {home.log.owner_of(i) for i in gone} == {"host-1"}, "the heir has them")
            assert {home.log.owner_of(i) for i in running} == {"host-0"}

            desk.release("/first")
            await until(lambda: not old.in_memory(), "the attempts have ended and were recorded")
            assert all(home.state(i).nodes for i in running)
            assert await drained(old) == ()
            await adopt(heir, "host-0", ())
            assert isinstance(await signal(heir, waits, "go"), Reply)
            for execution_id in (waits, *running, *queued):
                assert (await home.ended(execution_id)).status == "completed"
                assert home.log.owner_of(execution_id) == "host-1"
            keys = [request.key for request in desk.requests]
            assert len(keys) == len(set(keys)) == 10
            home.verified()

    run(story())


def test_a_leaving_host_sends_new_starts_and_messages_elsewhere(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(WAITING)
            host = home.host()
            ended, waits = await start(home, host, "waiting"), await start(home, host, "waiting")
            await signal(host, ended, "go")
            await home.ended(ended)
            assert await drained(host) == ()
            again = start_message(home, "waiting", execution_id=waits)
            (elsewhere,) = await answers(host, [start_message(home, "waiting", execution_id=new_id())])
            assert isinstance(elsewhere, Refusal)
            assert elsewhere.branch == "Conflict"
            assert (await answers(host, [again]))[0] == Refusal("Conflict", (waits, 1))
            moved = await signal(host, waits, "go")
            assert isinstance(moved, Refusal)
            assert moved.branch == "Conflict"
            late = await send(host, ended, msgspec.structs.replace(_SIGNAL, signal_id="late"))
            assert isinstance(late, Refusal)
            assert late.branch == "InvalidTransition"

    run(story())


_SIGNAL = messages.commands.Signal(at=messages.commands.Micros(1), signal_id="", name="go")


def test_what_outlasts_the_bound_is_made_again_by_the_heir_under_the_same_key(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            home.publish(TWO_CALLS.format(url=desk.url))
            old, heir = home.host("host-0"), home.host("host-1")
            desk.hold("/first")
            execution_id = await start(home, old, "calls")
            await desk.asked("/first")
            await drained(old, 0.05)
            await until(lambda: not old.in_memory(), "the bound has passed")
            await adopt(heir, "host-0", ())
            first, second = await desk.asked("/first", 2)
            assert first.key == second.key
            desk.release("/first")
            assert (await home.ended(execution_id)).status == "completed"
            assert home.kinds(execution_id).count("node_completed") == 2
            home.verified()

    run(story())


def test_a_parent_learns_the_end_of_a_child_that_went_to_another_host(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            home.publish(TWO_CALLS.format(url=desk.url))
            home.publish(PARENT)
            old, heir = home.host("host-0"), home.host("host-1")
            desk.hold("/first")
            parent = await start(home, old, "parent")
            await desk.asked("/first")
            assert set(await drained(old)) == {parent, *(set(old.in_memory()) - {parent})}
            desk.release("/first")
            # Its parent, told that it left, looks for it: for that moment the host holds it once more.
            while (held := await drained(old)) != (parent,):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            await adopt(heir, "host-0", held)
            await until(lambda: not old.in_memory(), "the child ended there, and the parent is given up")
            await adopt(heir, "host-0", ())
            assert (await home.ended(parent)).status == "completed"
            assert [len(desk.to(path)) for path in ("/first", "/second")] == [1, 1]
            home.verified()

    run(story())
