"""Group commit: order, isolation of conflicts, a store that is away, closing."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from actors.writer import GroupCommitWriter
from runtime import commands, execution
from runtime.errors import Conflict, InvariantViolated, Unavailable
from runtime.event_log import Append, Chain, EventLog, Recorded, store_env
from runtime.ids import Micros
from runtime.state import ExecutionState
from tests.actors.household import GatedLog, new_id, run, until
from tests.runtime.scenario import plan_of

PLAN = plan_of({"a": ()})


class Stream:
    """One execution's stream as its owner writes it."""

    def __init__(self, execution_id: str = "", owner: str = "host-0") -> None:
        self.execution_id = execution_id or new_id()
        self.owner = owner
        self.chain = Chain()
        self.state: ExecutionState | None = None

    def next(self, version_is_text: bool = False) -> Append:
        if self.state is None:
            command = commands.StartExecution(
                at=Micros(1),
                execution_id=self.execution_id,
                tenant="acme",
                flow_id="f",
                flow_version="v",
                source="executions",
                owner=f"{self.owner}/1",
                correlation_id="\ud800" if version_is_text else "",
            )
            decision = execution.start(command, PLAN)
        else:
            take_over = commands.TakeOver(at=Micros(1), owner=f"{self.owner}/{self.state.version}")
            decision = execution.decide(self.state, PLAN, take_over)
        self.state = decision.state
        return Append(self.execution_id, decision.events, decision.state, self.chain)


class Desk:
    """A writer over a gated log, and what it told of commits."""

    def __init__(self, folder: Path) -> None:
        env = store_env(f"sqlite:////{str(folder).lstrip('/')}/log.db")
        log: EventLog = GatedLog.open(env)
        assert isinstance(log, GatedLog)
        self.log = log
        self.told: list[str] = []
        self.writer = GroupCommitWriter(log, asyncio.get_running_loop(), self._note)

    def _note(self, committed: Sequence[Recorded]) -> None:
        self.told += [f"{one.originator_id}:{one.originator_version}" for one in committed]

    async def __aenter__(self) -> "Desk":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.log.away.clear()
        self.log.gate.set()
        await asyncio.to_thread(self.writer.close)
        self.log.close()


def test_what_arrives_during_a_commit_goes_into_the_next_one(tmp_path: Path) -> None:
    async def story() -> None:
        async with Desk(tmp_path) as desk:
            desk.log.gate.clear()
            first = desk.writer.append(Stream().next())
            await until(lambda: desk.log.tries == 1, "the first commit")
            streams = [Stream() for _ in range(50)]
            others = [desk.writer.append(stream.next()) for stream in streams for _ in range(3)]
            desk.log.gate.set()
            await asyncio.gather(first, *others)
            assert desk.log.tries == 2
            assert desk.told[1:] == [f"{stream.execution_id}:{n}" for stream in streams for n in (1, 2, 3)]

    run(story())


def test_commits_are_told_before_the_futures_resolve(tmp_path: Path) -> None:
    async def story() -> None:
        async with Desk(tmp_path) as desk:
            seen: list[int] = []
            stream = Stream()
            committed = desk.writer.append(stream.next())
            committed.add_done_callback(lambda _: seen.append(len(desk.told)))
            await committed
            await until(lambda: seen, "the callback")
            assert seen == [1]

    run(story())


def test_a_conflict_fails_its_own_stream_only(tmp_path: Path) -> None:
    async def story() -> None:
        async with Desk(tmp_path) as desk:
            taken = Stream()
            await desk.writer.append(taken.next())
            desk.log.gate.clear()
            blocker = desk.writer.append(Stream().next())
            await until(lambda: desk.log.tries == 2, "the writer at the gate")
            sound = Stream()
            good = desk.writer.append(sound.next())
            lost = desk.writer.append(Stream(taken.execution_id, "host-1").next())
            good_too = desk.writer.append(sound.next())
            desk.log.gate.set()
            await asyncio.gather(blocker, good, good_too)
            with pytest.raises(Conflict):
                await lost

    run(story())


def test_nothing_of_a_lost_stream_is_written_behind_the_conflict(tmp_path: Path) -> None:
    """The other owner wrote one event; our second append would fit behind it by its version alone."""

    async def story() -> None:
        async with Desk(tmp_path) as desk:
            owner = Stream()
            await desk.writer.append(owner.next())
            ghost = Stream(owner.execution_id, "host-1")
            with pytest.raises(Conflict):
                await desk.writer.append(ghost.next())
            with pytest.raises(Conflict):
                await desk.writer.append(ghost.next())
            await desk.writer.append(owner.next())
            assert [r.originator_version for r in desk.log.read(owner.execution_id)] == [1, 2]

    run(story())


def test_what_can_not_be_stored_fails_its_own_stream_and_all_behind_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with Desk(tmp_path) as desk:
            desk.log.gate.clear()
            blocker = desk.writer.append(Stream().next())
            await until(lambda: desk.log.tries == 1, "the writer at the gate")
            bad, sound = Stream(), Stream()
            first = desk.writer.append(bad.next(version_is_text=True))
            second = desk.writer.append(bad.next())
            good = desk.writer.append(sound.next())
            desk.log.gate.set()
            await asyncio.gather(blocker, good)
            for one in (first, second):
                with pytest.raises(InvariantViolated):
                    await one
            with pytest.raises(Conflict):
                await desk.writer.append(bad.next())
            assert desk.log.read(bad.execution_id) == []

    run(story())


def test_a_fault_of_ours_while_writing_leaves_the_other_streams_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with Desk(tmp_path) as desk:
            desk.log.gate.clear()
            blocker = desk.writer.append(Stream().next())
            await until(lambda: desk.log.tries == 1, "the writer at the gate")
            bad, sound = Stream(), Stream()
            real = EventLog.append

            def append(self: EventLog, appends: Sequence[Append]) -> object:
                if any(one.originator_id == bad.execution_id for one in appends):
                    raise KeyError("a fault of ours")
                return real(self, appends)

            monkeypatch.setattr(EventLog, "append", append)
            lost, good = desk.writer.append(bad.next()), desk.writer.append(sound.next())
            desk.log.gate.set()
            await asyncio.gather(blocker, good)
            with pytest.raises(InvariantViolated):
                await lost

    run(story())


def test_a_store_that_was_away_loses_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        async with Desk(tmp_path) as desk:
            desk.log.away.set()
            streams = [Stream() for _ in range(10)]
            pending = [desk.writer.append(stream.next()) for stream in streams for _ in range(2)]
            await until(lambda: desk.log.tries >= 3, "three tries")
            assert not any(one.done() for one in pending)
            desk.log.away.clear()
            await asyncio.gather(*pending)
            assert len(desk.told) == 20

    run(story())


def test_closing_writes_what_is_pending(tmp_path: Path) -> None:
    async def story() -> None:
        async with Desk(tmp_path) as desk:
            desk.log.gate.clear()
            first = desk.writer.append(Stream().next())
            await until(lambda: desk.log.tries == 1, "the first commit")
            pending = [desk.writer.append(Stream().next()) for _ in range(10)]
            closing = asyncio.ensure_future(asyncio.to_thread(desk.writer.close))
            desk.log.gate.set()
            await closing
            await asyncio.gather(first, *pending)
            with pytest.raises(Unavailable):
                await desk.writer.append(Stream().next())

    run(story())


def test_closing_does_not_wait_for_a_store_that_is_away(tmp_path: Path) -> None:
    async def story() -> None:
        async with Desk(tmp_path) as desk:
            desk.log.away.set()
            pending = desk.writer.append(Stream().next())
            await until(lambda: desk.log.tries >= 1, "a try")
            await asyncio.to_thread(desk.writer.close)
            with pytest.raises(Unavailable):
                await pending

    run(story())
