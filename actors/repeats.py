"""Messages that come too late or again because their answer was lost: the log says what to answer."""

import asyncio
from collections.abc import Iterable

from actors.messages import Reply, Send
from actors.plans import Plans
from runtime import commands, events, execution
from runtime.errors import Diverged, NotFound
from runtime.event_log import EventLog, Recorded
from runtime.ids import FlowId, FlowVersion, TenantId
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


async def answer_again(event_log: EventLog, plans: Plans, message: Send) -> Reply:
    """The answer to a message for an execution that ended, or to a cancel that was accepted before.

    Raises: NotFound; InvalidTransition unless it repeats what was recorded.
    """
    recorded = await asyncio.to_thread(event_log.read, message.execution_id)
    state = execution.fold(event.event() for event in recorded)
    if state is None:
        raise NotFound("execution not found")
    command = message.command
    if is_repeated_cancel(state, command):
        return first_answer(recorded, command.cause)
    plan = await plans.plan(TenantId(state.tenant), FlowId(state.flow_id), FlowVersion(state.flow_version))
    execution.decide(state, plan, command)
    return Reply(previous_status=state.status, version=state.version)
