"""Callback deliveries: the schedule of gateway rule G9 (executions contract, ability contract)."""

from collections.abc import Sequence

import pytest

from runtime import callbacks, events
from runtime.callbacks import CallbackState
from runtime.errors import Diverged, InvalidTransition
from runtime.events import Event
from runtime.ids import SECOND, ExecutionId, Micros, TenantId

RUN = ExecutionId("0190aaaa-bbbb-7ccc-8ddd-000000000001")
START = Micros(1_000 * SECOND)


def scheduled() -> tuple[Event, ...]:
    return callbacks.schedule(None, RUN, TenantId("acme"), "https://example.org/hook", "ability", at=START)


def state_of(history: Sequence[Event]) -> CallbackState:
    state = callbacks.fold_callback(history)
    assert state is not None
    return state


def failing(draw: float) -> list[Event]:
    """A delivery whose every attempt is made when it is due, and fails at once."""
    history = list(scheduled())
    while (state := state_of(history)).due_at is not None:
        history += callbacks.fail(state, "no answer", at=state.due_at, draw=draw)
    return history


def test_the_first_attempt_is_due_at_once() -> None:
    state = state_of(scheduled())
    assert (state.status, state.due_at, state.attempts) == ("pending", START, 0)
    assert state.originator_id == f"callback:{RUN}"


def test_scheduling_twice_records_nothing_more() -> None:
    state = state_of(scheduled())
    assert callbacks.schedule(state, RUN, TenantId("acme"), "https://example.org", "x", at=START) == ()


def test_attempts_are_made_at_the_times_of_the_contract() -> None:
    history = failing(draw=0.5)

    failures = [event for event in history if isinstance(event, events.CallbackFailed)]
    due = [START, *(event.retry_at for event in failures if event.retry_at is not None)]

    assert [(at - START) / SECOND for at in due] == [0, 5, 30, 120, 600, 3_600, 10_800, 21_600]
    assert [event.attempt for event in failures] == list(range(1, 9))
    assert state_of(history).status == "abandoned"
    assert state_of(history).due_at is None


@pytest.mark.parametrize(("draw", "factor"), [(0.0, 0.8), (0.999999, 1.2)])
def test_the_jitter_is_twenty_percent_either_way(draw: float, factor: float) -> None:
    due = [event.retry_at for event in failing(draw) if isinstance(event, events.CallbackFailed)]
    offsets = [(at - START) / SECOND for at in due if at is not None]
    assert offsets == pytest.approx([factor * s for s in (5, 30, 120, 600, 3_600, 10_800, 21_600)], rel=1e-4)


@pytest.mark.parametrize(
    ("retry_after", "pause"), [(None, 5.0), (1, 5.0), (90, 90.0), (3_600, 3_600.0), (86_400, 3_600.0)]
)
def test_retry_after_is_honoured_up_to_an_hour(retry_after: float | None, pause: float) -> None:
    assert callbacks.pause_seconds(1, 0.5, retry_after) == pause


def test_retry_after_makes_no_ninth_attempt() -> None:
    assert callbacks.pause_seconds(8, 0.5, 60) is None


def test_gone_ends_it() -> None:
    state = state_of(scheduled())
    [event] = callbacks.fail(state, "410 Gone", at=START, draw=0.5, status_code=410)
    after = callbacks.evolve_callback(state, event)
    assert (after.status, after.last_status_code, after.due_at) == ("abandoned", 410, None)


def test_a_final_failure_ends_it() -> None:
    state = state_of(scheduled())
    [event] = callbacks.fail(state, "address refused", at=START, draw=0.5, is_final=True)
    assert callbacks.evolve_callback(state, event).status == "abandoned"


def test_a_delivery_ends_it() -> None:
    history = list(scheduled())
    history += callbacks.fail(state_of(history), "502", at=START, draw=0.5, status_code=502)
    history += callbacks.deliver(state_of(history), 204, at=Micros(START + 6 * SECOND))

    state = state_of(history)

    assert (state.status, state.attempts, state.last_status_code, state.last_error) == (
        "delivered",
        2,
        204,
        "",
    )
    assert state.due_at is None


def test_nothing_follows_the_end() -> None:
    history = list(scheduled())
    history += callbacks.deliver(state_of(history), 200, at=START)
    state = state_of(history)
    with pytest.raises(InvalidTransition):
        callbacks.deliver(state, 200, at=START)
    with pytest.raises(InvalidTransition):
        callbacks.fail(state, "late", at=START, draw=0.5)
    late = events.CallbackDelivered(
        originator_id=state.originator_id, originator_version=3, at=1, attempt=2, status_code=200
    )
    with pytest.raises(Diverged):
        callbacks.evolve_callback(state, late)


def test_a_gateway_that_was_down_does_not_hurry_through_late_attempts() -> None:
    state = state_of(scheduled())
    late = Micros(START + 7_200 * SECOND)
    [event] = callbacks.fail(state, "no answer", at=late, draw=0.5)
    assert isinstance(event, events.CallbackFailed)
    assert event.retry_at == late + 5 * SECOND
