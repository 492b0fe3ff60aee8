"""The process manager of callbacks, on a real log and over real sockets (gateway rule G9)."""

import asyncio
import json
import socket
import stat
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from actors.egress import EgressGuard, EgressRules
from gateway.webhook_signing import Signatures, new_secret, stored_secret
from gateway.webhooks import CREATE, IN_FLIGHT_PER_HOST_MAX, READER, Callbacks, retry_after_seconds
from projections import callbacks as rows
from projections.execution_summary import ExecutionRow
from projections.store import ReadStore
from runtime import events
from runtime.event_log import EventLog, store_env
from runtime.ids import SECOND, ExecutionId, Micros, callback_stream
from tests.conformance.histories import Story

NOW = Micros(1_800_000_000 * SECOND)
SECRET = "whsec_" + "QUFB" * 10
OLD_SECRET = "whsec_" + "QkJC" * 10


class Post:
    """One request as it arrived, with header names in lower case."""

    def __init__(self, head: str, body: bytes) -> None:
        first, *lines = head.rstrip().split("\r\n")
        self.line = first
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        self.body = body


class Receiver:
    """Answers each post with the next of ``answers``; the last one stays."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.posts: list[Post] = []
        self.url = ""
        self.hold: asyncio.Event | None = None
        self.waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator["Receiver"]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        async with server:
            yield self
            await asyncio.gather(*self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        await task

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(Post(head, b"").headers["content-length"])
                self.posts.append(Post(head, await reader.readexactly(length)))
                if self.hold is not None:
                    self.waiting += 1
                    await self.hold.wait()
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client went away, as it should
        finally:
            writer.close()


class World:
    """A log, a clock that tests move, and gateways that deliver."""

    def __init__(self, env: dict[str, str], allow: str = "127.0.0.0/8") -> None:
        self.log = EventLog.open(env)
        self.store = ReadStore.over(self.log)
        for statement in CREATE:
            self.store.execute(statement)
        self.guard = EgressGuard(EgressRules.parse(allow))
        self.at = NOW
        self.rendered: list[str] = []

    def gateway(self, *secrets: str) -> Callbacks:
        return Callbacks(
            self.log,
            self.store,
            self.guard,
            Signatures(secrets or (SECRET,)),
            {"ability": self.render},
            clock=lambda: self.at,
            draw=lambda: 0.5,
        )

    async def render(self, row: ExecutionRow) -> bytes:
        self.rendered.append(row.execution_id)
        return json.dumps({"request_id": row.execution_id, "status": row.status, "text": "Grüße"}).encode()

    def end(self, number: int, url: str, source: str = "ability") -> ExecutionId:
        """An execution that ran and completed, and asked for a callback at ``url`` (none if empty)."""
        story = Story(number, nodes=0)
        queued = story.tell(story.queued(callback_url=url, source=source))
        self.log.append([queued])
        self.log.append([story.tell(story.next(events.Started))])
        self.log.append([story.tell(story.next(events.Completed, output="done"))])
        return ExecutionId(story.id)

    def row(self, execution_id: str) -> rows.CallbackRow:
        found = rows.get(self.store, execution_id)
        assert found is not None
        return found

    def recorded(self, execution_id: ExecutionId) -> list[events.Event]:
        return [each.event() for each in self.log.read(callback_stream(execution_id))]


@pytest.fixture
def world() -> Iterator[World]:
    made = World(store_env("memory://"))
    yield made
    made.guard.close()
    made.log.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres), "memory"])
def any_world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A world on each store."""
    match request.param:
        case "sqlite":
            url = f"sqlite:///{tmp_path}/log.db"
        case "postgres":
            url = request.getfixturevalue("postgres_url")
        case _:
            url = "memory://"
    made = World(store_env(url))
    yield made
    made.guard.close()
    made.log.close()


async def pass_once(gateway: Callbacks) -> None:
    """Follow what is there, make the attempts that are due, and wait for their records."""
    while await gateway.follow_once():
        pass
    await gateway.deliver_due()
    await gateway.settled()


async def until(is_so: Callable[[], bool]) -> None:
    """Wait for what another task does; bounded, so that a failure shows as one."""
    for _ in range(20_000):
        if is_so():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError


def play(receiver: Receiver, act: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with receiver.listening():
            await act()

    asyncio.run(main())


def test_a_delivery_is_retried_as_the_contract_says_until_it_is_taken(any_world: World) -> None:
    world = any_world
    receiver = Receiver("500 Oops", "503 Busy", "204 No Content")

    async def act() -> None:
        gateway = world.gateway()
        execution_id = world.end(1, receiver.url)
        await pass_once(gateway)
        assert len(receiver.posts) == 1
        assert world.row(execution_id).due_at == NOW + 5 * SECOND
        await pass_once(gateway)  # not due yet
        assert len(receiver.posts) == 1
        for seconds in (5, 25):
            world.at = Micros(world.at + seconds * SECOND)
            await pass_once(gateway)
        assert world.row(execution_id).status == "delivered"
        world.at = Micros(world.at + 86_400 * SECOND)
        await pass_once(gateway)
        assert len(receiver.posts) == 3
        outcomes = world.recorded(execution_id)
        assert [type(event).__name__ for event in outcomes] == [
            "CallbackScheduled",
            "CallbackFailed",
            "CallbackFailed",
            "CallbackDelivered",
        ]
        assert isinstance(outcomes[2], events.CallbackFailed)
        assert (outcomes[2].attempt, outcomes[2].status_code, outcomes[2].error) == (2, 503, "HTTP 503")
        await gateway.settled()

    play(receiver, act)
    first = receiver.posts[0]
    assert {post.headers["webhook-id"] for post in receiver.posts} == {first.headers["webhook-id"]}
    assert [post.headers["webhook-attempt"] for post in receiver.posts] == ["1", "2", "3"]
    stamps = [int(post.headers["webhook-timestamp"]) for post in receiver.posts]
    assert stamps == [NOW // SECOND, NOW // SECOND + 5, NOW // SECOND + 30]
    for post in receiver.posts:
        assert post.line == "POST /hook HTTP/1.1"
        assert post.headers["content-type"] == "application/json"
        assert post.body == first.body
    assert json.loads(first.body)["text"] == "Grüße"


def test_a_signature_is_what_standard_webhooks_verifies() -> None:
    at = Micros(time.time_ns() // 1_000)
    body = '{"text":"Grüße"}'.encode()
    headers = Signatures((SECRET, OLD_SECRET)).headers("run-1", at, 1, body)
    assert len(headers["Webhook-Signature"].split()) == 2
    for secret in (SECRET, OLD_SECRET):
        assert Webhook(secret).verify(body, headers) == {"text": "Grüße"}
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + b" ", headers)


@pytest.mark.parametrize("secret", ["", "whsec_", "QUFB" * 10, "whsec_QUFB", "whsec_" + "*" * 40])
def test_a_weak_or_malformed_secret_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_") as caught:
        Signatures((secret,))
    assert not secret or secret == "whsec_" or secret not in str(caught.value)


def test_without_a_secret_nothing_is_signed() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Signatures(())


def test_the_stored_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    secret = stored_secret(folder)
    assert stored_secret(folder) == secret
    assert Signatures((secret,))
    [file] = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_410_ends_the_deliveries(world: World) -> None:
    receiver = Receiver("410 Gone")

    async def act() -> None:
        execution_id = world.end(1, receiver.url)
        await pass_once(world.gateway())
        assert world.row(execution_id).status == "abandoned"

    play(receiver, act)


def test_retry_after_is_honoured_to_one_hour(world: World) -> None:
    receiver = Receiver("429 Slow\r\nRetry-After: 60", "429 Slow\r\nRetry-After: 999999")

    async def act() -> None:
        gateway = world.gateway()
        execution_id = world.end(1, receiver.url)
        await pass_once(gateway)
        assert world.row(execution_id).due_at == NOW + 60 * SECOND
        world.at = Micros(NOW + 60 * SECOND)
        await pass_once(gateway)
        assert world.row(execution_id).due_at == world.at + 3_600 * SECOND

    play(receiver, act)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", None),
        ("soon", None),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("-7", None),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert retry_after_seconds(text, NOW) == seconds


def test_a_redirect_is_a_failure_and_is_not_followed(world: World) -> None:
    receiver = Receiver("302 Found\r\nLocation: /elsewhere")

    async def act() -> None:
        execution_id = world.end(1, receiver.url)
        await pass_once(world.gateway())
        assert world.row(execution_id).last_status_code == 302

    play(receiver, act)
    assert len(receiver.posts) == 1


def test_an_address_that_turned_private_is_refused_at_delivery() -> None:
    receiver = Receiver("204 No Content")
    world = World(store_env("memory://"), allow="")

    async def act() -> None:
        execution_id = world.end(1, receiver.url)
        await pass_once(world.gateway())
        row = world.row(execution_id)
        assert (row.status, row.attempts) == ("pending", 1)
        assert "not public" in row.last_error

    play(receiver, act)
    assert receiver.posts == []
    world.guard.close()
    world.log.close()


def test_a_receiver_that_is_away_is_a_recorded_failure(world: World) -> None:
    async def act() -> None:
        with socket.create_server(("127.0.0.2", 0)) as closed:
            port = closed.getsockname()[1]
        execution_id = world.end(1, f"http://127.0.0.2:{port}/")
        await pass_once(world.gateway())
        row = world.row(execution_id)
        assert (row.attempts, row.last_status_code) == (1, 0)
        assert row.last_error.startswith("ConnectError")

    asyncio.run(act())


def test_only_executions_that_asked_get_a_callback(world: World) -> None:
    receiver = Receiver("204 No Content")

    async def act() -> None:
        world.end(1, "")
        world.end(2, receiver.url, source="executions")  # this dialect has no callbacks
        await pass_once(world.gateway())

    play(receiver, act)
    assert receiver.posts == []


def test_following_twice_and_from_the_start_schedules_once(world: World) -> None:
    receiver = Receiver("204 No Content")

    async def act() -> None:
        execution_id = world.end(1, receiver.url)
        first, second = world.gateway(), world.gateway()
        await first.follow_once()
        assert world.store.tracked(READER) == world.log.max_position() - 1  # all but what it scheduled
        await second.follow_once()
        await pass_once(second)
        await pass_once(first)
        assert len(world.recorded(execution_id)) == 2

    play(receiver, act)
    assert len(receiver.posts) == 1


def test_two_gateways_do_not_both_post(any_world: World) -> None:
    world = any_world
    receiver = Receiver("204 No Content")

    async def act() -> None:
        ids = [world.end(number, receiver.url) for number in range(1, 9)]
        first, second = world.gateway(), world.gateway()
        await first.follow_once()
        await asyncio.gather(first.deliver_due(), second.deliver_due())
        await asyncio.gather(first.settled(), second.settled())
        assert {world.row(each).status for each in ids} == {"delivered"}

    play(receiver, act)
    assert len(receiver.posts) == 8


def test_an_attempt_whose_outcome_was_lost_is_made_again_once_its_claim_lapsed(any_world: World) -> None:
    world = any_world
    receiver = Receiver("204 No Content")
    receiver.hold = asyncio.Event()

    async def act() -> None:
        execution_id = world.end(1, receiver.url)
        dying, heir = world.gateway(), world.gateway()
        await dying.follow_once()
        await dying.deliver_due()
        await until(lambda: receiver.waiting > 0)
        await pass_once(heir)  # the claim holds
        assert len(receiver.posts) == 1
        world.at = Micros(world.at + 20 * SECOND)
        receiver.hold.set()  # type: ignore[union-attr]
        receiver.hold = None
        await pass_once(heir)
        await dying.settled()
        # Both were answered; one outcome is recorded, under one id.
        assert [type(event).__name__ for event in world.recorded(execution_id)] == [
            "CallbackScheduled",
            "CallbackDelivered",
        ]

    play(receiver, act)
    assert len({post.headers["webhook-id"] for post in receiver.posts}) == 1
    assert {post.headers["webhook-attempt"] for post in receiver.posts} == {"1"}


def test_a_slow_receiver_does_not_hold_up_the_others(world: World) -> None:
    slow, quick = Receiver("204 No Content"), Receiver("204 No Content")
    slow.hold = asyncio.Event()

    async def act() -> None:
        async with quick.listening():
            for number in range(1, 41):
                world.end(number, slow.url)
            ours = world.end(41, quick.url)
            gateway = world.gateway()
            await gateway.follow_once()
            await gateway.deliver_due()
            await until(lambda: world.row(ours).status == "delivered")
            assert len(slow.posts) <= IN_FLIGHT_PER_HOST_MAX
            assert slow.hold is not None
            slow.hold.set()
            while rows.next_due(world.store) is not None:
                await pass_once(gateway)

    play(slow, act)
    assert len(slow.posts) == 40


def test_the_loops_deliver_by_themselves_and_stop_when_told(world: World) -> None:
    receiver = Receiver("204 No Content")

    async def act() -> None:
        running = asyncio.create_task(world.gateway().run())
        execution_id = world.end(1, receiver.url)
        await until(lambda: bool(receiver.posts) and world.row(execution_id).status == "delivered")
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    play(receiver, act)
    assert len(receiver.posts) == 1
