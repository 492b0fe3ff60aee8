"""Any sequence of appends against a model that is a dictionary of lists (hypothesis prints the seed)."""

from typing import Any

import hypothesis.strategies as st
import pytest
from eventsourcing.persistence import OperationalError
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from projections import execution_summary
from projections.inline_rebuild import check
from projections.store import ReadStore
from runtime import codec, events
from runtime.errors import Conflict
from runtime.event_log import Append, EventLog, Recorded, store_env
from runtime.events import Event
from runtime.ids import HostName, Position
from tests.conformance.histories import Story

STREAMS = 4
streams = st.integers(min_value=0, max_value=STREAMS - 1)
kinds = st.sampled_from(["recover", "message", "pause", "resume"])


class LogMachine(RuleBasedStateMachine):
    """Writers with right and stale knowledge append groups; acknowledgements get lost."""

    folder: Any

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[Recorded] = []
        self.writers: dict[int, Story] = {}
        self.stale: dict[int, Story] = {}

    @initialize(url=st.sampled_from(["sqlite", "memory"]))
    def open_log(self, url: str) -> None:
        number = len(list(self.folder.iterdir()))
        (self.folder / f"{number}").mkdir()
        self.env = store_env("memory://" if url == "memory" else f"sqlite:///{self.folder}/{number}/log.db")
        self.log = EventLog.open(self.env)
        self.store = ReadStore.over(self.log)

    def step(self, story: Story, kind: str) -> Append:
        if story.version == 0:
            return story.begun()
        told: Event
        match kind:
            case "recover":
                told = story.next(events.Recovered, owner=f"host-{story.version % 3}")
            case "message":
                told = story.next(events.NodeLogged, node_id="n0", event="told", detail={"v": story.version})
            case "pause":
                told = story.next(events.Paused)
            case _:
                told = story.next(events.Resumed)
        return story.tell(told)

    def note(self, outcomes: list[Any]) -> None:
        for outcome in outcomes:
            assert isinstance(outcome, tuple), outcome
            self.recorded += outcome

    @rule(numbers=st.lists(st.tuples(streams, kinds), max_size=6))
    def append_a_group(self, numbers: list[tuple[int, str]]) -> None:
        """Streams may repeat; each writer knows its stream's head."""
        group = [
            self.step(self.writers.setdefault(number, Story(number + 1)), kind) for number, kind in numbers
        ]
        self.note(self.log.append(group))

    @rule(number=streams)
    def fall_behind(self, number: int) -> None:
        """From here on another writer of the stream knows only what is recorded now."""
        if number in self.writers:
            self.stale[number] = self.writers[number].fork()

    @rule(number=streams, other=streams, kind=kinds)
    def append_with_stale_knowledge(self, number: int, other: int, kind: str) -> None:
        """Refused when the stream went on meanwhile, whoever else is in the group."""
        loser = self.stale.pop(number, None)
        if loser is None or other == number:
            return
        knew = loser.version
        # A reason of its own, so that it can't be taken for what the right writer recorded.
        told = loser.next(events.NodeLogged, node_id="n0", event="stale", detail=kind)
        winner = self.step(self.writers.setdefault(other, Story(other + 1)), kind)
        outcomes = self.log.append([loser.tell(told), winner])
        if knew == self.writers[number].version:
            self.note(outcomes)
            self.writers[number] = loser
        else:
            assert isinstance(outcomes[0], Conflict)
            assert outcomes[0].version == knew + 1
            self.note(outcomes[1:])

    @rule(numbers=st.lists(st.tuples(streams, kinds), min_size=1, max_size=4), is_committed=st.booleans())
    def append_and_lose_the_answer(self, numbers: list[tuple[int, str]], is_committed: bool) -> None:
        real = self.log.recorder.insert_events
        calls = 0

        def fails_once(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > 1:
                return real(*args, **kwargs)
            if is_committed:
                real(*args, **kwargs)
            raise OperationalError("no answer")

        group = [
            self.step(self.writers.setdefault(number, Story(number + 1)), kind) for number, kind in numbers
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.log.recorder, "insert_events", fails_once)
            self.note(self.log.append(group))

    @rule()
    def reopen(self) -> None:
        """A second opener first, so that the memory store outlives the change."""
        again = EventLog.open(self.env)
        self.log.close()
        self.log = again
        self.store = ReadStore.over(again)

    @invariant()
    def the_log_is_what_was_acknowledged(self) -> None:
        found = self.log.feed(Position(0), 5_000)
        assert found == self.recorded
        assert self.log.max_position() == (found[-1].position if found else 0)

    @invariant()
    def every_stream_is_its_writers_history(self) -> None:
        for story in self.writers.values():
            found = self.log.read(story.id)
            assert [one.event() for one in found] == story.told
            head = ""
            for one in found:
                assert codec.previous_hash(one.data) == head
                head = one.hash()
            assert story.chain.head == head

    @invariant()
    def every_row_is_the_fold_of_its_stream(self) -> None:
        assert list(check(self.store)) == []
        owners: dict[HostName, int] = {}
        for story in self.writers.values():
            if story.state is None:
                continue
            row = execution_summary.get(self.store, story.id)
            assert row is not None
            assert (row.version, row.status, row.owner) == (
                story.version,
                story.state.status,
                story.state.owner,
            )
            owners[HostName(row.owner)] = owners.get(HostName(row.owner), 0) + 1
        assert self.log.owners() == owners

    def teardown(self) -> None:
        if hasattr(self, "log"):
            self.log.close()


def test_the_log_does_what_a_dictionary_of_lists_would(tmp_path: Any) -> None:
    machine = type("Machine", (LogMachine,), {"folder": tmp_path})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=20,
            deadline=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
