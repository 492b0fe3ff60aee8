"""The stream of a run: whatever is cut, lost or repeated, each happening comes once and each text whole."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from gateway.happenings import Happening, Logged, Message, RunEnded, TextDelta
from gateway.run_stream import TEXT_CHARS_MAX, Cursor, Numbered, RunStream
from runtime import events
from runtime.events import Event
from tests.gateway.run_histories import INTERRUPTED, Piece, RunTeller, random_runs, tool_call

Items = list[tuple[int, Event] | Piece]


def fed(stream: RunStream, items: Iterable[tuple[int, Event] | Piece]) -> list[Numbered]:
    found: list[Numbered] = []
    for item in items:
        found += stream.delta(*item) if isinstance(item, Piece) else stream.event(*item)
    return found


def told(numbered: Iterable[Numbered]) -> list[Happening]:
    return [happening for _, happening in numbered]


def texts_and_messages(happenings: Iterable[Happening]) -> list[tuple[str, str]]:
    """For each answer: its pieces joined since the last time they became void, and the message."""
    pieces: dict[tuple[str, str], str] = {}
    found: list[tuple[str, str]] = []
    for each in happenings:
        match each:
            case TextDelta():
                key = (each.node_id, each.step)
                pieces[key] = pieces.get(key, "") + each.text
            case Logged(event="retrying" | "rate_limited"):
                pieces.pop((str(each.detail["node"]), str(each.detail["step"])), None)
            case Message() if each.message.role == "assistant":
                found.append((pieces.pop((each.node_id, each.step), ""), each.message.content))
            case _:
                continue
    return found


def without_text(happenings: Iterable[Happening]) -> list[Happening]:
    return [each for each in happenings if not isinstance(each, TextDelta)]


def snapshots(items: Items) -> list[Piece]:
    """What the feed tells a follower that comes now: of every answer in flight all there is, at once."""
    texts: dict[tuple[str, str], str] = {}
    for item in items:
        if isinstance(item, Piece):
            known = texts.get((item.node_id, item.step), "")
            if item.offset <= len(known):
                texts[item.node_id, item.step] = (
                    known[: item.offset] + item.text + known[item.offset + len(item.text) :]
                )
        else:
            match item[1]:
                case events.StepRetried() | events.MessageRecorded() as event:
                    texts.pop((event.node_id, event.step), None)
                case _:
                    continue
    return [Piece(node, step, 0, text) for (node, step), text in texts.items() if text]


@given(items=random_runs())
def test_every_text_is_its_message_and_ids_rise(items: Items) -> None:
    found = fed(RunStream(), items)
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers))
    assert all(pieces == message for pieces, message in texts_and_messages(told(found)))
    assert isinstance(found[-1][1], RunEnded)


@given(items=random_runs(), data=st.data())
def test_a_client_may_leave_and_come_back_anywhere(items: Items, data: st.DataObject) -> None:
    """Cut after any frame, back at any later time: no gap, nothing twice."""
    got: list[Numbered] = []
    now = 0  # items that have happened
    for _ in range(data.draw(st.integers(1, 3))):
        stream = RunStream(after=got[-1][0] if got else 0)
        back = data.draw(st.integers(now, len(items)))
        arrived = [item for item in items[:back] if not isinstance(item, Piece)]
        late = snapshots(items[:back]) if data.draw(st.booleans()) else []
        waiting: Items = [*arrived, *late, *items[back:]]
        stop = data.draw(st.integers(0, len(waiting)))
        batch = fed(stream, waiting[:stop])
        lost = data.draw(st.integers(0, len(batch)))
        got += batch[: len(batch) - lost]
        now = max(back, back + stop - len(arrived) - len(late))
    last = RunStream(after=got[-1][0] if got else 0)
    got += fed(last, [item for item in items if not isinstance(item, Piece)])

    numbers = [number for number, _ in got]
    assert numbers == sorted(set(numbers))
    assert all(pieces == message for pieces, message in texts_and_messages(told(got)))
    replay = fed(RunStream(), [item for item in items if not isinstance(item, Piece)])
    assert without_text(told(got)) == without_text(told(replay))


@given(items=random_runs(), frames=st.integers(0, 200))
def test_with_two_frames_each_a_cut_between_them_loses_neither(items: Items, frames: int) -> None:
    """What a dialect does that makes frames n and n + 1 of one happening."""

    def numbers(found: list[Numbered], after: int) -> list[int]:
        made: list[int] = []
        for number, happening in found:
            made += [number] if isinstance(happening, TextDelta) else [number, number + 1]
        return [number for number in made if number > after]

    recorded = [item for item in items if not isinstance(item, Piece)]
    whole = numbers(fed(RunStream(frames_each=2), recorded), 0)
    cut = min(frames, len(whole) - 1)
    resumed = numbers(fed(RunStream(after=whole[cut], frames_each=2), recorded), whole[cut])
    assert whole[: cut + 1] + resumed == whole


def test_text_is_told_as_it_comes_and_its_message_adds_what_the_feed_lost() -> None:
    teller = RunTeller()
    teller.begin()
    teller.call("model-1")
    teller.say("model-1", 0, "Hel")
    teller.say("model-1", 3, "lo")
    teller.say("model-1", 7, "here")  # what stood before it was lost
    teller.answer("model-1", "Hello there")
    teller.end("Hello there")
    found = told(fed(RunStream(), teller.items))
    assert [each.text for each in found if isinstance(each, TextDelta)] == ["Hel", "lo", " there"]


def test_the_text_of_a_second_agent_waits_for_the_first_ones() -> None:
    teller = RunTeller(total_nodes=2)
    teller.begin("left", "right")
    teller.call("model-1", "left")
    teller.call("model-1", "right")
    teller.say("model-1", 0, "right says", "right")
    teller.say("model-1", 0, "left says", "left")
    teller.answer("model-1", "left says", node="left")
    teller.say("model-1", 10, " more", "right")
    teller.answer("model-1", "right says more", node="right")
    teller.end("", "left", "right")
    found = told(fed(RunStream(), teller.items))
    assert [each.text for each in found if isinstance(each, TextDelta)] == [
        "left says",
        "right says",
        " more",
    ]


def test_only_the_named_nodes_text_is_told() -> None:
    teller = RunTeller(total_nodes=2)
    teller.begin("left", "right")
    for node in ("left", "right"):
        teller.call("model-1", node)
        teller.say("model-1", 0, node, node)
        teller.answer("model-1", f"{node}!", node=node)
    teller.end("", "left", "right")
    found = told(fed(RunStream(text_nodes=("right",)), teller.items))
    assert [each.text for each in found if isinstance(each, TextDelta)] == ["right", "!"]


def test_text_of_a_try_that_was_given_up_is_marked_void() -> None:
    teller = RunTeller()
    teller.begin()
    teller.call("model-1")
    teller.say("model-1", 0, "Once upon")
    teller.retry("model-1", INTERRUPTED)
    teller.say("model-1", 0, "Hello")
    teller.answer("model-1", "Hello")
    teller.end("Hello")
    found = told(fed(RunStream(), teller.items))
    void = next(each for each in found if isinstance(each, Logged) and each.event == "retrying")
    assert (void.detail["error_type"], void.detail["step"]) == ("Interrupted", "model-1")
    assert texts_and_messages(found) == [("Hello", "Hello")]


def test_a_late_piece_of_a_given_up_try_does_not_spoil_the_text() -> None:
    teller = RunTeller()
    teller.begin()
    teller.call("model-1")
    teller.retry("model-1", INTERRUPTED)
    teller.say("model-1", 0, "Once")
    teller.answer("model-1", "Hello")
    teller.end("Hello")
    found = told(fed(RunStream(), teller.items))
    assert [
        each.detail["error_type"] for each in found if isinstance(each, Logged) and each.event == "retrying"
    ] == [
        "Interrupted",
        "TextReplaced",
    ]
    assert texts_and_messages(found) == [("Hello", "Hello")]


def test_nothing_comes_after_a_cancel_was_accepted() -> None:
    teller = RunTeller()
    teller.begin()
    teller.call("model-1")
    teller.say("model-1", 0, "Hel")
    teller.add(events.CancellationRequested, previous_status="running")
    teller.say("model-1", 3, "lo")
    teller.add(events.Cancelled)
    found = told(fed(RunStream(), teller.items))
    assert isinstance(found[-1], RunEnded)
    assert found[-1].status == "cancelled"
    assert [each.event for each in found if isinstance(each, Logged)][-1] == "halted"
    assert [each.text for each in found if isinstance(each, TextDelta)] == ["Hel"]


def test_an_answer_past_the_bound_comes_whole_with_its_message() -> None:
    text = "x" * (TEXT_CHARS_MAX + 10)
    teller = RunTeller()
    teller.begin()
    teller.call("model-1")
    teller.say("model-1", 0, text[:-5])
    teller.say("model-1", len(text) - 5, text[-5:])
    teller.answer("model-1", text)
    teller.end("")
    found = fed(RunStream(), teller.items)
    assert "".join(each.text for each in told(found) if isinstance(each, TextDelta)) == text
    numbers = [number for number, _ in found]
    assert numbers == sorted(set(numbers))


def test_side_calls_are_logged_but_never_told_as_text() -> None:
    teller = RunTeller()
    teller.begin()
    teller.call("compaction-1", purpose="compaction")
    teller.say("compaction-1", 0, "a summary")
    teller.answer("compaction-1", "a summary", purpose="compaction")
    teller.call("model-1")
    teller.answer("model-1", "", [tool_call(1)])
    teller.tool(tool_call(1), {"now": 12})
    teller.end("")
    found = told(fed(RunStream(), teller.items))
    assert not [each for each in found if isinstance(each, TextDelta)]
    assert [each.message.role for each in found if isinstance(each, Message)] == ["assistant", "tool"]


@given(position=st.integers(1, 2**33 - 1), chars=st.integers(0, TEXT_CHARS_MAX), slot=st.integers(0, 7))
def test_an_id_holds_its_three_numbers_and_fits_a_double(position: int, chars: int, slot: int) -> None:
    cursor = Cursor(position, chars, slot)
    assert Cursor.of(cursor.number) == cursor
    assert int(float(cursor.number)) == cursor.number
