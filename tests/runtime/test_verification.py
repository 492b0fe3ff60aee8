"""The checker finds nothing in what the aggregate writes, and each broken promise in what it can't write."""

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from runtime import codec, commands, events
from runtime.event_log import Recorded
from runtime.events import Event, StepError
from runtime.ids import Position
from runtime.plan import RetryPolicy
from runtime.verification import Accepted, JournalEntry, Seen, pages, verify
from tests.runtime.scenario import EXECUTION, T0, Scenario, node, plan_of

PLAN = plan_of({"a": (), "b": ("a",)}, retry={"a": RetryPolicy(attempts=2)})
BOOM = StepError(type="ValueError", message="boom")


def recorded(log: Sequence[Event], first: int = 1, chained: bool = True) -> list[Recorded]:
    """The log as a store would hold it, from position ``first`` on."""
    stored: list[Recorded] = []
    for position, event in enumerate(log, start=first):
        prev = stored[-1].hash() if stored and chained else ""
        data = codec.encode(event, prev)
        stored.append(
            Recorded(Position(position), event.originator_id, event.originator_version, event.TOPIC, data)
        )
    return stored


def renumbered(log: Sequence[Event]) -> list[Event]:
    return [replace(event, originator_version=version) for version, event in enumerate(log, start=1)]


def rules(log: Sequence[Recorded], journal: Sequence[JournalEntry] = (), **options: Any) -> set[str]:
    return {violation.rule for violation in verify(log, journal, **options).violations}


def completed() -> Scenario:
    scenario = Scenario(PLAN).completed("a", "b")
    scenario.when(commands.Complete)
    return scenario


def head(version: int) -> dict[str, Any]:
    return {"originator_id": EXECUTION, "originator_version": version, "at": T0}


def broken(insert: int, *extra: Event) -> list[Recorded]:
    """A completed execution's log with events put in behind version ``insert``, well numbered and chained."""
    log = completed().log
    return recorded(renumbered([*log[:insert], *extra, *log[insert:]]))


def test_an_honest_log_is_clean_and_counted() -> None:
    scenario = Scenario(PLAN).started("a")
    scenario.when(commands.RecordFailed, node_id=node("a"), attempt=1, error=BOOM, draw=0.5)
    scenario.when(commands.TakeOver, owner="host-2")
    scenario.after(2).completed("a", "b")
    scenario.when(commands.Complete)
    report = verify(recorded(scenario.log, first=7), settled=True)
    assert report.is_clean
    assert (report.events, report.streams, report.open_executions) == (len(scenario.log), 1, 0)
    assert (report.first_position, report.last_position) == (7, 6 + len(scenario.log))
    assert report.executions == {"completed": 1}
    assert report.topics["execution.node_started"] == 3


def test_an_open_execution_is_a_violation_only_when_all_work_is_done() -> None:
    log = recorded(Scenario(PLAN).started("a").log)
    assert verify(log).executions == {"running": 1}
    assert rules(log) == set()
    assert rules(log, settled=True) == {"settled"}


def test_a_changed_event_breaks_the_chain() -> None:
    log = recorded(completed().log)
    changed = log[2].data.replace(b'"node_id":"a"', b'"node_id":"b"')
    assert changed != log[2].data
    log[2] = Recorded(log[2].position, EXECUTION, log[2].originator_version, log[2].topic, changed)
    assert "chain" in rules(log)


def test_events_without_their_hashes_break_the_chain() -> None:
    assert rules(recorded(completed().log, chained=False)) == {"chain"}


def test_a_missing_event_is_found_once() -> None:
    log = recorded(completed().log)
    del log[3]
    report = verify(log)
    assert {violation.rule for violation in report.violations} == {"chain", "versions", "replay"}
    assert report.found == 3


def test_two_owners_with_the_same_version_are_found() -> None:
    log = recorded(completed().log)
    twice = replace(log[3], position=Position(99))
    assert "versions" in rules([*log[:4], twice])


def test_a_stream_without_a_beginning_is_found() -> None:
    assert "first" in rules(recorded(completed().log)[1:])
    stranger = events.FlowDisabled(originator_id="flow:acme:f", originator_version=1, at=T0)
    assert rules(recorded([stranger])) == {"first"}


def test_an_event_after_the_end_is_found() -> None:
    log = recorded(completed().log)
    late = recorded([events.Paused(**head(len(log) + 1))], first=50)
    assert rules([*log, *late]) == {"last"}


def test_a_second_end_is_found() -> None:
    log = completed().log
    again = replace(log[-1], originator_version=len(log) + 1)
    assert rules(recorded([*log, again])) == {"last"}


def test_positions_that_do_not_rise_are_found() -> None:
    log = recorded(completed().log)
    log[2] = replace(log[2], position=Position(1))
    assert rules(log) == {"position"}


def test_an_unknown_event_is_found_and_does_not_end_the_check() -> None:
    log = recorded(Scenario(PLAN).log)
    strange = Recorded(
        Position(9), EXECUTION, 3, "execution.imagined", b'{"prev":"' + log[-1].hash().encode() + b'"}'
    )
    report = verify([*log, strange])
    assert [violation.rule for violation in report.violations] == ["readable"]
    assert report.events == 3


def test_an_event_that_names_another_stream_is_found() -> None:
    log = completed().log
    log[2] = replace(log[2], originator_id="someone-else")
    stored = [replace(one, originator_id=EXECUTION) for one in recorded(log)]
    assert rules(stored) == {"readable"}


def test_time_that_goes_back_is_found() -> None:
    log = completed().log
    log[3] = replace(log[3], at=T0 - 1)
    assert rules(recorded(log)) == {"time"}


def test_a_second_outcome_of_an_attempt_is_found() -> None:
    assert "outcome" in rules(broken(4, events.NodeCompleted(**head(0), node_id="a")))
    assert "outcome" in rules(broken(4, events.NodeFailed(**head(0), node_id="a", error=BOOM, retry_at=T0)))


def test_an_outcome_of_another_attempt_is_found() -> None:
    assert "outcome" in rules(broken(3, events.NodeFailed(**head(0), node_id="a", attempt=7, error=BOOM)))


def test_a_node_that_starts_again_is_found() -> None:
    assert "start" in rules(broken(4, events.NodeStarted(**head(0), node_id="a", attempt=2)))
    assert "start" in rules(broken(3, events.NodeStarted(**head(0), node_id="a", attempt=1)))


def test_a_node_that_begins_with_a_later_attempt_is_found() -> None:
    assert "start" in rules(broken(2, events.NodeStarted(**head(0), node_id="b", attempt=2)))


def test_a_start_after_an_accepted_cancel_is_found() -> None:
    request = events.CancellationRequested(**head(0), previous_status="running")
    found = rules(broken(4, request))
    assert {"start", "cancel"} <= found


def test_a_start_during_a_pause_is_found() -> None:
    assert rules(broken(4, events.Paused(**head(0)))) == {"start"}


def test_work_of_a_former_owner_is_found() -> None:
    taken = events.Recovered(**head(0), owner="host-2")
    late = events.NodeStarted(**head(0), node_id="c", where="host-1")
    assert "owner" in rules(broken(2, taken, late))
    back = events.Recovered(**head(0), owner="host-1")
    assert "owner" not in rules(broken(2, taken, back, late))


def test_two_open_executions_in_one_slot_of_a_queue_are_found() -> None:
    def told(name: str, version: int, kind: type[Event], **fields: Any) -> Event:
        return kind(originator_id=name, originator_version=version, at=T0 + version, **fields)

    def begun(name: str, slot: int, key: str = "k") -> list[Event]:
        about = {"tenant": "acme", "flow_id": "f", "flow_version": "v", "source": "s", "owner": "h"}
        queued = told(name, 1, events.Queued, total_nodes=1, queue_key=key, **about)
        return [queued, told(name, 2, events.Started, queue_slot=slot)]

    def chained(*log: Event) -> list[Recorded]:
        by_stream: dict[str, list[Event]] = {event.originator_id: [] for event in log}
        for event in log:
            by_stream[event.originator_id].append(event)
        stored = {name: iter(recorded(stream)) for name, stream in by_stream.items()}
        return [
            replace(next(stored[event.originator_id]), position=Position(place))
            for place, event in enumerate(log, start=1)
        ]

    first, end = begun("a", 0), told("a", 3, events.Cancelled)
    assert rules(chained(*first, *begun("b", 1), *begun("c", 0, "other"), end, *begun("d", 0))) == set()
    assert rules(chained(*first, *begun("d", 0), end)) == {"slot"}


def test_streams_of_callbacks_and_flows_are_checked_too() -> None:
    scheduled = events.CallbackScheduled(
        originator_id="callback:x", originator_version=1, at=T0,
        execution_id="x", tenant="acme", url="http://e", source="s", due_at=T0,
    )  # fmt: skip
    delivered = events.CallbackDelivered(
        originator_id="callback:x", originator_version=2, at=T0, attempt=1, status_code=200
    )
    assert rules(recorded([scheduled, delivered])) == set()
    again = replace(delivered, originator_version=3)
    assert rules(recorded([scheduled, delivered, again])) == {"last"}


def test_a_call_that_was_answered_and_is_made_again_is_found() -> None:
    step: dict[str, Any] = {**head(0), "node_id": "a", "step": "model-1"}
    began = events.StepStarted(**step, kind="model", name="m")
    answer = events.MessageRecorded(**step, role="assistant", content="one")
    tried = events.StepRetried(**step, tries=1, error=BOOM, retry_at=T0)
    assert rules(broken(3, began, tried, answer)) == set()
    assert rules(broken(3, began, answer, answer)) == {"answer"}
    assert rules(broken(3, began, answer, tried)) == {"answer"}
    assert rules(broken(3, began, answer, began)) == {"answer"}
    assert rules(broken(3, began, began, answer)) == {"answer"}


def test_streams_of_resources_are_checked_too() -> None:
    head_of: dict[str, Any] = {"originator_id": "resource:acme:agent:a1", "at": T0}
    made = events.ResourceCreated(
        **head_of, originator_version=1, tenant="acme", kind="agent", resource_id="a1", document={}
    )
    changed = events.ResourceChanged(**head_of, originator_version=2, changes={"name": "Ada"})
    gone = events.ResourceDeleted(**head_of, originator_version=3)
    assert rules(recorded([made, changed, gone])) == set()
    late = replace(changed, originator_version=4)
    assert rules(recorded([made, changed, gone, late])) == {"last"}
    assert rules(recorded([replace(changed, originator_version=1)])) == {"first"}


# --- what clients saw --------------------------------------------------------------------------------------


def test_an_acknowledged_start_that_is_not_in_the_log_is_found() -> None:
    assert rules([], [Accepted(EXECUTION)]) == {"accepted"}
    assert rules(recorded(completed().log), [Accepted(EXECUTION), Seen(EXECUTION, "completed")]) == set()


def test_one_idempotency_key_for_two_executions_is_found() -> None:
    log = recorded(completed().log)
    assert rules(log, [Accepted(EXECUTION, "k"), Accepted(EXECUTION, "k")]) == set()
    assert "key" in rules(log, [Accepted(EXECUTION, "k"), Accepted("other", "k")])


def test_a_terminal_status_that_changed_is_found() -> None:
    log = recorded(completed().log)
    assert rules(log, [Seen(EXECUTION, "running"), Seen(EXECUTION, "completed")]) == set()
    assert rules(log, [Seen(EXECUTION, "completed"), Seen(EXECUTION, "running")]) == {"seen"}


def test_a_terminal_status_the_log_does_not_show_is_found() -> None:
    assert rules(recorded(completed().log), [Seen(EXECUTION, "failed")]) == {"seen"}
    assert rules(recorded(Scenario(PLAN).log), [Seen(EXECUTION, "completed")]) == {"seen"}


def test_a_cancelling_execution_may_be_seen_as_cancelled() -> None:
    scenario = Scenario(PLAN).started("a")
    scenario.when(commands.RequestCancel)
    journal = [Seen(EXECUTION, "cancelling"), Seen(EXECUTION, "cancelled")]
    assert rules(recorded(scenario.log), journal) == set()
    scenario.when(commands.ConfirmCancelled)
    assert rules(recorded(scenario.log), journal) == set()


# --- bounds ------------------------------------------------------------------------------------------------


def test_violations_are_all_counted_and_the_first_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.verification.VIOLATIONS_MAX", 2)
    report = verify(recorded(completed().log, chained=False))
    assert len(report.violations) == 2
    assert report.found == len(completed().log) - 1


def test_ended_streams_beyond_the_bound_are_forgotten_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.verification.CLOSED_MAX", 0)
    log = recorded(completed().log)
    late = recorded([events.Paused(**head(len(log) + 1))], first=50)
    assert "first" in rules([*log, *late])


def test_pages_give_the_whole_log() -> None:
    log = recorded(completed().log)

    def feed(after: Position, limit: int) -> list[Recorded]:
        return [one for one in log if one.position > after][: min(limit, 3)]

    assert list(pages(feed)) == log
