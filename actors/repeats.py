"""Cancellations that come again because their answer was lost: they are answered like the first time."""

from collections.abc import Iterable

from actors.messages import Reply
from runtime import commands, events
from runtime.errors import Diverged
from runtime.event_log import Recorded
from runtime.state import ExecutionState


def is_repeated_cancel(state: ExecutionState, command: commands.Command) -> bool:
    """The very cancellation that was accepted, sent again because its answer was lost."""
    return (
        isinstance(command, commands.RequestCancel)
        and command.cause != ""
        and command.cause == state.cancel_cause
    )


def first_answer(recorded: Iterable[Recorded], cause: str) -> Reply:
    """What the accepted cancellation with this cause was answered."""
    for one in recorded:
        if one.topic == events.CancellationRequested.TOPIC:
            event = one.event()
            if isinstance(event, events.CancellationRequested) and event.cause == cause:
                return Reply(previous_status=event.previous_status, version=event.originator_version)
    raise Diverged(f"the cancellation caused by {cause} is not in the log")
