"""The gateway's side without Ray: an outbox that repeats itself, followers that miss nothing."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ray.exceptions import RayActorError

from actors import client as client_module
from actors import host_link, messages
from actors.client import ExecutionClient, LaggedBehind
from actors.host import Host
from actors.host_link import HostLink, Moved
from actors.messages import Delta
from runtime import commands
from runtime.blob_store import BlobStore
from runtime.commands import StartExecution
from runtime.errors import InvalidTransition, NotFound, Overloaded, Unavailable
from runtime.event_log import Recorded
from runtime.ids import HostName, Micros
from tests.actors.household import Desk, Household, ScriptedHost, new_id, run, start_message, until

WAITING = """
heliograph: 1
id: waiting
nodes:
  - {id: gate, kind: wait_for_signal, signal: go}
  - {id: after, kind: template, template: "x", needs: [gate]}
"""


class _Method:
    def __init__(self, call: Callable[..., Awaitable[bytes]]) -> None:
        self._call = call

    def remote(self, *arguments: Any) -> Awaitable[bytes]:
        return asyncio.ensure_future(self._call(*arguments))


class Handle:
    """A Ray actor's handle without Ray: calls reach a host of this process, unless that is dead."""

    def __init__(self, host: ScriptedHost) -> None:
        self._host: ScriptedHost | None = host
        self.calls = 0
        self.lost_answers = 0
        self.deliver = _Method(self._deliver)
        self.feed = _Method(self._feed)
        self.status = _Method(self._status)

    @property
    def host(self) -> Host | None:
        return self._host

    @host.setter
    def host(self, host: ScriptedHost | None) -> None:
        if self._host is not None:
            self._host.lose_gateways()
        self._host = host

    async def _deliver(self, batch: bytes) -> bytes:
        self.calls += 1
        await asyncio.sleep(0)
        answers = await self._alive().deliver(batch)
        if self.lost_answers:
            self.lost_answers -= 1
            raise RayActorError
        return answers

    async def _feed(self, gateway_id: str) -> bytes:
        await asyncio.sleep(0)
        return await self._alive().feed(gateway_id)

    async def _status(self) -> bytes:
        return await self._alive().status()

    def _alive(self) -> Host:
        if self.host is None:
            raise RayActorError
        return self.host


class Gateway:
    """One client over hosts of this process."""

    def __init__(self, home: Household, **hosts: ScriptedHost) -> None:
        self.home = home
        self.handles = {name: Handle(host) for name, host in hosts.items()}
        self.links = {
            HostName(name): HostLink(HostName(name), handle, "gateway-1")
            for name, handle in self.handles.items()
        }
        self.client = ExecutionClient(home.log, BlobStore(f"file://{home.folder}/blobs"))
        self.client.connect(self.links, self.no_dedicated)

    async def no_dedicated(self, execution_id: str, _: StartExecution | None) -> HostLink:
        raise Unavailable(execution_id)

    async def __aenter__(self) -> "Gateway":
        for link in self.links.values():
            link.open()
            await link.wait_reachable()
        return self

    async def __aexit__(self, *_: object) -> None:
        for link in self.links.values():
            link.close()
        await asyncio.sleep(0)

    async def start(self, flow_id: str, **fields: Any) -> str:
        command = start_message(self.home, flow_id, **fields).command
        await self.client.start(command)
        return command.execution_id

    async def signal(self, execution_id: str, name: str = "go") -> None:
        command = commands.Signal(at=Micros(1), signal_id=new_id(), name=name)
        await self.client.send(execution_id, command)

    def follow(self, execution_id: str, **options: Any) -> "asyncio.Task[list[int]]":
        """The versions a follower sees, once the execution has ended."""

        async def versions() -> list[int]:
            stream = self.client.follow(execution_id, **options)
            return [item.originator_version async for item in stream if isinstance(item, Recorded)]

        return asyncio.ensure_future(versions())


@asynccontextmanager
async def one_host(folder: Path) -> AsyncGenerator[tuple[Household, ScriptedHost, Gateway]]:
    async with Household(folder) as home:
        home.publish(WAITING)
        host = home.host()
        async with Gateway(home, **{"host-0": host}) as gateway:
            yield home, host, gateway


def contiguous(count: int) -> list[int]:
    return list(range(1, count + 1))


def test_a_start_is_durable_when_it_returns_and_may_be_repeated(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_host(tmp_path) as (home, _, gateway):
            command = start_message(home, "waiting").command
            await gateway.client.start(command)
            assert home.kinds(command.execution_id)[0] == "queued"
            await gateway.client.start(command)
            assert home.kinds(command.execution_id).count("queued") == 1

    run(story())


def test_many_messages_travel_in_few_calls(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_host(tmp_path) as (_, _, gateway):
            await gateway.start("waiting")
            before = gateway.handles["host-0"].calls
            await asyncio.gather(*(gateway.start("waiting") for _ in range(200)))
            assert gateway.handles["host-0"].calls - before <= 4

    run(story())


def test_a_message_whose_answer_was_lost_is_sent_again_and_counts_once(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_host(tmp_path) as (home, _, gateway):
            gateway.handles["host-0"].lost_answers = 1
            execution_id = await gateway.start("waiting")
            gateway.handles["host-0"].lost_answers = 1
            await gateway.signal(execution_id)
            gateway.handles["host-0"].lost_answers = 0
            await home.ended(execution_id)
            assert home.kinds(execution_id).count("queued") == 1
            assert home.kinds(execution_id).count("signal_received") == 1
            home.verified()

    run(story())


def test_refusals_arrive_as_what_they_are(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_host(tmp_path) as (home, _, gateway):
            with pytest.raises(NotFound):
                await gateway.signal(new_id())
            with pytest.raises(NotFound):
                await gateway.start("waiting", flow_version="0123456789abcdef")
            execution_id = await gateway.start("waiting")
            cancel = commands.RequestCancel(at=Micros(1), cause="c1")
            assert (await gateway.client.send(execution_id, cancel)).version > 0
            with pytest.raises(InvalidTransition):
                await gateway.client.send(execution_id, commands.RequestCancel(at=Micros(1), cause="c2"))
            home.verified()

    run(story())


def test_a_full_outbox_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_link, "OUTBOX_MESSAGES_MAX", 5)

    async def story() -> None:
        async with one_host(tmp_path) as (_, _, gateway):
            starts = [gateway.start("waiting") for _ in range(10)]
            results = await asyncio.gather(*starts, return_exceptions=True)
            assert sum(isinstance(one, Overloaded) for one in results) == 5

    run(story())


def test_a_host_that_does_not_come_back_makes_its_messages_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_link, "ANSWER_SECONDS_MAX", 0.3)

    async def story() -> None:
        async with one_host(tmp_path) as (_, _, gateway):
            gateway.handles["host-0"].host = None
            with pytest.raises(Unavailable):
                await gateway.start("waiting")

    run(story())


def test_closing_answers_those_who_wait(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_host(tmp_path) as (home, host, gateway):
            await gateway.start("waiting")
            host.log.gate.clear()
            started = asyncio.ensure_future(gateway.start("waiting"))
            calls = gateway.handles["host-0"].calls
            await until(lambda: gateway.handles["host-0"].calls > calls, "the call is in flight")
            gateway.links[HostName("host-0")].close()
            with pytest.raises(Unavailable):
                await started
            host.log.gate.set()
            assert home.versions

    run(story())


def test_a_large_input_travels_by_reference(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_host(tmp_path) as (home, _, gateway):
            execution_id = await gateway.start("waiting", input={"text": "x" * 100_000})
            state = home.state(execution_id)
            assert state.input is None
            assert state.input_ref is not None
            blob = BlobStore(f"file://{tmp_path}/blobs").get_bytes(state.input_ref)
            assert msgspec.json.decode(blob) == {"text": "x" * 100_000}

    run(story())


# --- following ------------------------------------------------------------------------------------------


def test_a_follower_sees_every_event_once_from_whenever_it_came(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_host(tmp_path) as (home, _, gateway):
            execution_id = await gateway.start("waiting")
            early = gateway.follow(execution_id)
            await home.recorded(execution_id, "node_waiting")
            middle = [gateway.follow(execution_id) for _ in range(5)]
            position = home.log.read(execution_id)[1].position
            resumed = gateway.follow(execution_id, after=position)
            await asyncio.sleep(0)
            await gateway.signal(execution_id)
            count = (await home.ended(execution_id)).version
            late = gateway.follow(execution_id)
            for follower in (early, *middle, late):
                assert await follower == contiguous(count)
            assert await resumed == contiguous(count)[2:]

    run(story())


def test_nobody_can_follow_what_does_not_exist(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_host(tmp_path) as (_, _, gateway):
            with pytest.raises(NotFound):
                await gateway.follow(new_id())

    run(story())


def test_a_follower_goes_on_over_the_death_of_its_host(tmp_path: Path) -> None:
    async def story() -> None:
        async with one_host(tmp_path) as (home, host, gateway):
            execution_id = await gateway.start("waiting")
            follower = gateway.follow(execution_id)
            await home.recorded(execution_id, "node_waiting")
            gateway.handles["host-0"].host = None
            await host.die()
            await until(lambda: not gateway.links[HostName("host-0")].is_reachable, "the death is noticed")
            gateway.handles["host-0"].host = home.host()
            await gateway.signal(execution_id)
            count = (await home.ended(execution_id)).version
            assert "recovered" in home.kinds(execution_id)
            assert await follower == contiguous(count)

    run(story())


def test_a_follower_goes_on_when_its_execution_moves_to_another_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "RECHECK_SECONDS", 0.2)
    monkeypatch.setattr(client_module, "AWAY_SECONDS", 0.05)

    async def story() -> None:
        async with Household(tmp_path) as home, Desk() as desk:
            desk.hold("/work")
            home.publish(
                f"{{heliograph: 1, id: work, nodes: [{{id: w, kind: http_request, url: '{desk.url}/work'}}]}}"
            )
            lost, heir = home.host("host-0"), home.host("host-1")
            async with Gateway(home, **{"host-0": lost, "host-1": heir}) as gateway:
                ids = [await gateway.start("work") for _ in range(2)]
                execution_id = next(one for one in ids if home.log.owner_of(one) == "host-0")
                follower = gateway.follow(execution_id)
                await desk.asked("/work", 2)
                gateway.handles["host-0"].host = None
                await lost.die()
                await gateway.links[HostName("host-1")].send(client_module.messages.Adopt("host-0"))
                await desk.asked("/work", 3)
                desk.release("/work")
                count = (await home.ended(execution_id)).version
                assert home.log.owner_of(execution_id) == "host-1"
                assert await follower == contiguous(count)
                await home.ended(ids[0])
                await home.ended(ids[1])
                home.verified()

    run(story())


def test_a_reader_that_is_too_slow_is_cut_off_and_may_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_link, "READER_ITEMS_MAX", 10)

    async def story() -> None:
        async with one_host(tmp_path) as (home, host, gateway):
            execution_id = await gateway.start("waiting")
            await home.recorded(execution_id, "node_waiting")
            stream = gateway.client.follow(execution_id, deltas=True)
            seen: list[Recorded | Delta] = [await anext(stream)]
            seen.extend([await anext(stream) for _ in range(3)])
            waiting = asyncio.ensure_future(anext(stream))
            await until(lambda: host.is_watched(execution_id), "the follower watches")
            host.tell(Delta(execution_id, "n", "model-1", 0, "first"))
            assert await waiting == Delta(execution_id, "n", "model-1", 0, "first")
            for n in range(50):
                host.tell(Delta(execution_id, "n", "model-1", n, str(n)))
            with pytest.raises(LaggedBehind):
                seen.extend([item async for item in stream])
            assert len(seen) <= 4 + 10

    run(story())


QUEUED = """
heliograph: 1
id: queued
queue: {key: "{{ inputs.key }}", concurrency: 100}
nodes:
  - {id: gate, kind: wait_for_signal, signal: go}
"""


def test_executions_of_a_queue_go_to_one_host_and_few_queues_move_when_a_host_goes(tmp_path: Path) -> None:
    keys = [f"key-{number}" for number in range(12)]

    async def homes_of(home: Household, gateway: Gateway) -> dict[str, str]:
        """The host of each queue; it must be the same for two executions."""
        homes: dict[str, str] = {}
        for key in keys * 2:
            execution_id = await gateway.start("queued", input={"key": key}, queue_key=key)
            owner = home.log.owner_of(execution_id)
            assert owner is not None
            assert homes.setdefault(key, owner) == owner
        return homes

    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(QUEUED)
            hosts = {f"host-{number}": home.host(f"host-{number}") for number in range(3)}
            async with Gateway(home, **hosts) as gateway:
                before = await homes_of(home, gateway)
                assert set(before.values()) == set(hosts)
                left = {name: link for name, link in gateway.links.items() if name != "host-1"}
                gateway.client.connect(left, gateway.no_dedicated)
                after = await homes_of(home, gateway)
                moved = {key for key in keys if before[key] != after[key]}
                assert moved == {key for key in keys if before[key] == "host-1"}

    run(story())


def test_a_message_follows_its_execution_from_a_host_that_is_given_up(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(WAITING)
            hosts = {"host-0": home.host("host-0"), "host-1": home.host("host-1")}
            async with Gateway(home, **hosts) as gateway:
                ids = [await gateway.start("waiting") for _ in range(2)]
                [lost] = [i for i in ids if home.log.owner_of(i) == "host-0"]
                await home.recorded(lost, "node_waiting")
                gateway.handles["host-0"].host = None
                signalled = asyncio.ensure_future(gateway.signal(lost))
                link = gateway.links[HostName("host-0")]
                await until(lambda: not link.is_reachable, "the loss is noticed")
                await gateway.links[HostName("host-1")].send(messages.Adopt("host-0"))
                link.release(Moved("host-0 is lost"))
                await signalled
                assert (await home.ended(lost)).status == "completed"
                home.verified(settled=False)

    run(story())


def test_any_host_answers_for_an_execution_whose_host_has_ended_since(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(WAITING)
            hosts = {"host-0": home.host("host-0"), "host-1": home.host("host-1")}
            async with Gateway(home, **hosts) as gateway:
                ids = [await gateway.start("waiting") for _ in range(2)]
                for execution_id in ids:
                    await gateway.signal(execution_id)
                    await home.ended(execution_id)
                gateway.handles["host-0"].host = None
                link = gateway.links.pop(HostName("host-0"))
                gateway.client.connect(gateway.links, gateway.no_dedicated, are_all=False)
                link.close()
                for execution_id in ids:
                    with pytest.raises(InvalidTransition):
                        await gateway.signal(execution_id)

    run(story())


def test_a_start_passes_by_a_host_that_is_leaving(tmp_path: Path) -> None:
    async def story() -> None:
        async with Household(tmp_path) as home:
            home.publish(WAITING)
            hosts = {"host-0": home.host("host-0"), "host-1": home.host("host-1")}
            async with Gateway(home, **hosts) as gateway:
                await hosts["host-0"].drain(60)
                ids = [await gateway.start("waiting") for _ in range(4)]
                assert {home.log.owner_of(i) for i in ids} == {"host-1"}

    run(story())
