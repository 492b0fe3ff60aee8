"""What every store knows of queues, and that none of them lets two open executions have one slot."""

from typing import Any

from runtime import events
from runtime.errors import Conflict
from runtime.event_log import EventLog
from runtime.ids import FlowId, HostName, Micros, TenantId
from runtime.queues import Holder, QueueId, Turn
from tests.conformance.histories import START, Story

HERE, THERE = HostName("host-1"), HostName("host-2")
QUEUE = QueueId(TenantId("acme"), FlowId("greeting"), "ada")


def queued(number: int, **fields: Any) -> Story:
    """An execution of the queue that waits."""
    story = Story(number)
    story.tell(story.queued(None, **{"queue_key": "ada", **fields}))
    return story


def begun(log: EventLog, number: int, slot: int | None, **fields: Any) -> Story:
    story = queued(number, **fields)
    story.tell(story.next(events.Started, queue_slot=slot))
    put(log, story)
    return story


def put(log: EventLog, story: Story) -> object:
    """Record what of the story is not recorded yet."""
    known = len(log.read(story.id))
    append = story.tell()
    append.events = tuple(story.told[known:])
    return log.append([append])[0]


def test_a_slot_is_held_from_the_start_to_the_end(log: EventLog) -> None:
    first = begun(log, 1, 0)
    begun(log, 2, 1)
    put(log, queued(3))
    assert sorted(log.queue_use(QUEUE, HERE, Micros(0), 0, holders=True).holders) == [
        Holder(first.id, 0),
        Holder(Story(2).id, 1),
    ]
    first.tell(first.next(events.Cancelled))
    put(log, first)
    assert log.queue_use(QUEUE, HERE, Micros(0), 0, holders=True).holders == (Holder(Story(2).id, 1),)


def test_no_two_open_executions_have_one_slot(log: EventLog) -> None:
    first = begun(log, 1, 0)
    second, other = queued(2), queued(3)
    for story in (second, other):
        put(log, story)
    second.tell(second.next(events.Started, queue_slot=0))
    other.tell(other.next(events.Started, queue_slot=1))
    appends = [story.tell() for story in (second, other)]
    for append, story in zip(appends, (second, other), strict=True):
        append.events = tuple(story.told[1:])
    refused, taken = log.append(appends)
    assert isinstance(refused, Conflict)
    assert isinstance(taken, tuple), "the others of its group are recorded"
    assert [each.topic for each in log.read(second.id)] == ["execution.queued"]
    first.tell(first.next(events.Cancelled))
    put(log, first)
    assert isinstance(put(log, second), tuple), "once it is free, the slot can be had"


def test_slots_of_other_keys_flows_and_tenants_are_others(log: EventLog) -> None:
    begun(log, 1, 0)
    for number, fields in enumerate(
        [{"queue_key": "bob"}, {"flow_id": "other"}, {"tenant": "bell"}, {"queue_key": ""}], start=2
    ):
        story = queued(number, **fields)
        story.tell(story.next(events.Started, queue_slot=0))
        assert isinstance(put(log, story), tuple), fields
    assert len(log.queue_use(QUEUE, HERE, Micros(0), 0, holders=True).holders) == 1


def test_starts_are_the_latest_of_a_window_also_of_ended_executions(log: EventLog) -> None:
    for number in range(1, 5):
        story = queued(number)
        story.tell(events.Started(originator_id=story.id, originator_version=2, at=START + 10 * number))
        if number < 4:
            story.tell(
                events.Cancelled(originator_id=story.id, originator_version=3, at=START + 10 * number + 1)
            )
        put(log, story)

    def starts(since: int, most: int) -> list[int]:
        found = log.queue_use(QUEUE, HERE, Micros(START + since), most, holders=False)
        assert found.holders == ()
        return [at - START for _, at in found.starts]

    assert starts(0, 10) == [10, 20, 30, 40]
    assert starts(10, 10) == [20, 30, 40]
    assert starts(0, 2) == [30, 40]
    assert starts(40, 2) == []


def test_those_that_wait_elsewhere_are_told_in_their_order(log: EventLog) -> None:
    for number, fields in enumerate(
        [{"priority": 0}, {"priority": 5}, {"parent_id": "p"}, {"priority": 5, "owner": "host-1/x"}], start=1
    ):
        put(log, queued(number, **({"owner": "host-2/x"} | fields)))
    found = log.queue_use(QUEUE, HERE, Micros(0), 0, holders=True)
    assert found.waiting == (
        Turn(0, 0, START + 1, Story(3).id),
        Turn(1, -5, START + 1, Story(2).id),
        Turn(1, 0, START + 1, Story(1).id),
    )
    assert [
        turn.execution_id for turn in log.queue_use(QUEUE, THERE, Micros(0), 0, holders=True).waiting
    ] == [Story(4).id]
