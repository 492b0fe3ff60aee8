"""Hosts without Ray over a real log in a folder, and a desk that answers their HTTP requests on demand."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, cast

import msgspec
import uuid_utils

from actors import messages
from actors.host import Host
from actors.host_config import HostConfig
from actors.messages import Answer, ExternalCommand, HostStatus, Refusal, Reply, Send, Start
from runtime import commands, events
from runtime.administration import fold_flow
from runtime.errors import Conflict, Unavailable
from runtime.event_log import Append, Chain, EventLog, Outcome, Recorded, store_env
from runtime.events import Event
from runtime.execution import fold
from runtime.flow import parse_flow
from runtime.ids import SECOND, FlowId, Micros, NodeId, TenantId, flow_stream
from runtime.state import ExecutionState, NodeState
from runtime.verification import Report, pages, verify

TENANT = TenantId("acme")
WAIT_SECONDS = 30.0
"""A bound against hangs; nothing is expected to take this long."""

Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    async def bounded() -> Result:
        async with asyncio.timeout(120):
            return await work

    return asyncio.run(bounded())


async def until(what: Callable[[], Result | None], description: str) -> Result:
    """The first true result of ``what``."""
    deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        found = what()
        if found:
            return found
        await asyncio.sleep(0.005)
    raise AssertionError(f"never: {description}")


class GatedLog(EventLog):
    """A log whose appends a test can hold back or make fail as if the store were away."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.gate = threading.Event()
        self.gate.set()
        self.away = threading.Event()
        self.tries = 0
        self.conflicts = 0

    def append(self, appends: Sequence[Append]) -> list[Outcome]:
        self.tries += 1
        self.gate.wait(WAIT_SECONDS)
        if self.away.is_set():
            raise Unavailable("the store is away")
        outcomes = super().append(appends)
        self.conflicts += sum(isinstance(outcome, Conflict) for outcome in outcomes)
        return outcomes


class ScriptedHost(Host):
    """A host whose clock, dice and log belong to the test."""

    def __init__(self, config: HostConfig) -> None:
        super().__init__(msgspec.json.encode(config), GatedLog.open)
        self.log = cast("GatedLog", self._log)
        self.later_micros = 0
        self.dice = 0.5

    def now(self) -> Micros:
        return Micros(super().now() + self.later_micros)

    def draw(self) -> float:
        return self.dice

    def advance_clock(self, seconds: float) -> None:
        """Let timers of executions in memory find that time went by."""
        self.later_micros += int(seconds * SECOND)
        for actor in tuple(self._actors.values()):
            actor.wake()

    async def look_for_due(self) -> None:
        await self._wake_ups.look()

    def in_memory(self) -> list[str]:
        return list(self._actors)

    def state_in_memory(self, execution_id: str) -> ExecutionState:
        return self._actors[execution_id].state

    def places_taken(self) -> int:
        return self._admission.admitted

    def tell(self, delta: messages.Delta) -> None:
        self._watchers.delta(delta)

    def is_watched(self, execution_id: str) -> bool:
        return execution_id in self._watchers._by_execution  # pyright: ignore[reportPrivateUsage]

    def use_workers(self, call: Any) -> None:
        """Have ``call`` (as ``Performer.call``) do what the pool's workers would."""
        self._performer.call = call

    def pool_workers(self) -> int:
        """Processes of the host's own pool, that of flows without code of their own."""
        return cast("Any", self._performer)._pool._shared.workers

    def has_tasks(self, execution_id: str) -> bool:
        return self._actors[execution_id].is_busy

    def is_awaited(self, child_id: str) -> bool:
        return child_id in self._children._waiting  # pyright: ignore[reportPrivateUsage]

    def fence_by_mistake(self, execution_id: str) -> None:
        self.fenced(self._actors[execution_id])

    def is_running(self) -> bool:
        return self._state == "running"

    def lose_gateways(self) -> None:
        """Break every connection of the feed."""
        for connection in self._feeds._connections:  # pyright: ignore[reportPrivateUsage]
            connection.cancel()

    async def die(self) -> None:
        """As `kill -9`: nothing more is written, performed or answered."""
        writer = self._writer
        with writer._wake:  # pyright: ignore[reportPrivateUsage] - the crash happens inside of it
            writer._pending.clear()  # pyright: ignore[reportPrivateUsage]
            writer._closing.set()  # pyright: ignore[reportPrivateUsage]
        self.log.away.set()
        self.log.gate.set()
        await self.close()


class Household:
    """One store and the hosts over it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.env = store_env(f"sqlite:////{str(folder).lstrip('/')}/log.db")
        self.log = EventLog.open(self.env)
        self.versions: dict[str, str] = {}
        self.hosts: list[ScriptedHost] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for host in self.hosts:
            host.log.away.clear()
            host.log.gate.set()
            await host.close()
        self.log.close()

    def host(self, name: str = "host-0", **config: Any) -> ScriptedHost:
        host = ScriptedHost(
            HostConfig(
                name=name,
                store=self.env,
                blob_url=f"file://{self.folder}/blobs",
                egress_allow="127.0.0.1",
                **config,
            )
        )
        self.hosts.append(host)
        return host

    def publish(self, text: str) -> str:
        """Publish a flow's definition; its id."""
        definition = parse_flow(text)
        flow_id = str(definition.document["id"])
        stream = flow_stream(TENANT, FlowId(flow_id))
        before = self.log.read(stream)
        event = events.FlowPublished(
            originator_id=stream,
            originator_version=len(before) + 1,
            at=1,
            tenant=TENANT,
            flow_id=flow_id,
            flow_version=definition.version,
            definition=definition.document,
        )
        self._administer(stream, before, event)
        self.versions[flow_id] = definition.version
        return flow_id

    def disable(self, flow_id: str) -> None:
        stream = flow_stream(TENANT, FlowId(flow_id))
        before = self.log.read(stream)
        self._administer(
            stream,
            before,
            events.FlowDisabled(originator_id=stream, originator_version=len(before) + 1, at=2),
        )

    def _administer(self, stream: str, before: list[Recorded], event: Event) -> None:
        history = [one.event() for one in before]
        chain = Chain(before[-1].hash() if before else "")
        outcome = self.log.append([Append(stream, [event], fold_flow([*history, event]), chain)])[0]
        assert isinstance(outcome, tuple), outcome

    # --- what the log says ----------------------------------------------------------------------------

    def all_events(self) -> list[Recorded]:
        return list(pages(self.log.feed))

    def history(self, execution_id: str) -> list[Event]:
        return [recorded.event() for recorded in self.log.read(execution_id)]

    def kinds(self, execution_id: str) -> list[str]:
        return [event.TOPIC.removeprefix("execution.") for event in self.history(execution_id)]

    def state(self, execution_id: str) -> ExecutionState:
        state = fold(self.history(execution_id))
        assert state is not None, f"{execution_id} is not in the log"
        return state

    def node(self, execution_id: str, name: str) -> NodeState:
        return self.state(execution_id).nodes[NodeId(name)]

    async def ended(self, execution_id: str) -> ExecutionState:
        """The state after the terminal event."""

        def closed() -> ExecutionState | None:
            state = fold(self.history(execution_id))
            return state if state is not None and state.is_closed else None

        return await until(closed, f"the end of {execution_id}; it has {self.kinds(execution_id)}")

    async def recorded(self, execution_id: str, kind: str, count: int = 1) -> None:
        await until(
            lambda: self.kinds(execution_id).count(kind) >= count, f"{count} {kind} of {execution_id}"
        )

    def verified(self, *, settled: bool = True) -> Report:
        """The checker's report on the whole log; it must hold every promise."""
        report = verify(pages(self.log.feed), settled=settled)
        assert not report.violations, report.violations
        return report


# --- talking to a host --------------------------------------------------------------------------------


def new_id() -> str:
    return str(uuid_utils.uuid7())


async def answers(host: Host, batch: Iterable[messages.Message]) -> tuple[Answer, ...]:
    return messages.decode_answers(await host.deliver(messages.encode(tuple(batch))))


def start_message(home: Household, flow_id: str, execution_id: str = "", **fields: Any) -> Start:
    fields.setdefault("input", {})
    fields.setdefault("flow_version", home.versions[flow_id])
    return Start(
        commands.StartExecution(
            at=_now(),
            execution_id=execution_id or new_id(),
            tenant=TENANT,
            flow_id=flow_id,
            source="executions",
            **fields,
        )
    )


def _now() -> Micros:
    return Micros(time.time_ns() // 1_000)


async def start(home: Household, host: Host, flow_id: str, execution_id: str = "", **fields: Any) -> str:
    """Start an execution; its id, once the host acknowledged it."""
    message = start_message(home, flow_id, execution_id, **fields)
    (answer,) = await answers(host, [message])
    assert isinstance(answer, Reply), answer
    return message.command.execution_id


async def refused(home: Household, host: Host, flow_id: str, **fields: Any) -> Refusal:
    (answer,) = await answers(host, [start_message(home, flow_id, **fields)])
    assert isinstance(answer, Refusal), answer
    return answer


async def send(host: Host, execution_id: str, command: ExternalCommand) -> Answer:
    return (await answers(host, [Send(execution_id, command)]))[0]


async def signal(
    host: Host, execution_id: str, name: str, payload: Any = None, signal_id: str = ""
) -> Answer:
    command = commands.Signal(at=_now(), signal_id=signal_id or new_id(), name=name, payload=payload)
    return await send(host, execution_id, command)


async def cancel(host: Host, execution_id: str, cause: str = "") -> Answer:
    return await send(host, execution_id, commands.RequestCancel(at=_now(), cause=cause))


async def status(host: Host) -> HostStatus:
    return messages.decode_status(await host.status())


# --- the desk -----------------------------------------------------------------------------------------


class Request(NamedTuple):
    path: str
    key: str
    body: str


class Desk:
    """A small HTTP server on loopback. A path is answered at once unless it is held."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.dropped = 0
        self._held: dict[str, asyncio.Event] = {}
        self._plans: dict[str, list[tuple[int, str]]] = {}
        self._server: asyncio.Server | None = None
        self._numbers = itertools.count(1)
        self.at_once = 0
        self.at_once_most = 0

    async def __aenter__(self) -> Desk:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for event in self._held.values():
            event.set()
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    def hold(self, path: str) -> None:
        """Requests to ``path`` wait from now on."""
        self._held[path] = asyncio.Event()

    def release(self, path: str) -> None:
        self._held.pop(path).set()

    def plan(self, path: str, *answers: tuple[int, str]) -> None:
        """The next answers of ``path``: status and body; the last one stays."""
        self._plans[path] = list(answers)

    def to(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    async def asked(self, path: str, count: int = 1) -> list[Request]:
        await until(lambda: len(self.to(path)) >= count, f"{count} requests to {path}")
        return self.to(path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            path = lines[0].split(" ")[1]
            self.requests.append(Request(path, headers.get("idempotency-key", ""), body.decode()))
            self.at_once += 1
            self.at_once_most = max(self.at_once_most, self.at_once)
            gone = asyncio.ensure_future(reader.read())
            held = asyncio.ensure_future(self._released(path))
            await asyncio.wait([gone, held], return_when=asyncio.FIRST_COMPLETED)
            self.at_once -= 1
            if not held.done():
                self.dropped += 1
                held.cancel()
                return
            gone.cancel()
            status, text = self._next(path)
            data = text.encode()
            writer.write(
                f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nConnection: close\r\n"
                f"Content-Length: {len(data)}\r\n\r\n".encode()
                + data
            )
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            self.dropped += 1
        finally:
            writer.close()

    async def _released(self, path: str) -> None:
        if path in self._held:
            await self._held[path].wait()

    def _next(self, path: str) -> tuple[int, str]:
        plan = self._plans.get(path)
        if not plan:
            return 200, f'{{"number": {next(self._numbers)}}}'
        return plan.pop(0) if len(plan) > 1 else plan[0]


async def all_of(*work: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*work)
