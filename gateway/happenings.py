"""What happens in an agent run, in no contract's wording: the vocabulary that streams and views share.

The words of ``Logged.event`` are those of the workflows contract 3.8 (an open set): prompt_received,
model_call, thinking, model_response, tool_call, tool_result, compaction_start, compaction_complete,
rate_limited, retrying, output_guardrail_violation, completed, error, halted, max_turns_reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from runtime.events import Json, StepError, ToolCall


class RunMessage(msgspec.Struct, frozen=True, kw_only=True):
    """``content``: text, or the JSON a tool gave. ``tool_call_id``, ``name``: of a tool's answer.

    ``raw``: an assistant's answer as the model library needs it back, when that is more than the rest says.
    """

    role: Literal["user", "assistant", "tool"]
    content: Json = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    is_error: bool = False
    raw: Json = None


class RunUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the run so far; they never fall. ``cost`` in US dollars, ``cost_known`` false once a model
    without a price was called."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    model_calls: int = 0
    cost: float = 0.0
    cost_known: bool = True


# --- what happens, in the order of the log ------------------------------------------------------------


class RunStarted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The run left the queue. ``prompt`` is empty for a flow without an input of that name."""

    at: int
    prompt: str = ""
    input: Json = None


class Logged(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """``detail``: the event's own facts; ``tool_input`` and ``tool_output`` for tool events.

    ``current_turn``: tool rounds done by then.
    """

    at: int
    event: str
    detail: Mapping[str, Json] = {}
    tool_input: Json = None
    tool_output: Json = None
    current_turn: int = 0


class TextDelta(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The next piece of the answer in flight; what came since the step's last ``retrying`` or
    ``rate_limited`` makes up the message that follows."""

    at: int
    node_id: str
    step: str
    text: str


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    at: int
    node_id: str
    step: str
    message: RunMessage


class UsageTotal(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    at: int
    usage: RunUsage
    current_turn: int = 0


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The plan a model shows: ``todos`` are {id, title, status: not-started, in-progress, completed}."""

    at: int
    todos: tuple[Json, ...] = ()
    current_step: Json = None
    percent_complete: float = 0.0


class StepBegan(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A node of the flow began its first attempt. ``number`` counts the flow's nodes from 1, in its order."""

    at: int
    node_id: str
    name: str
    kind: str
    number: int
    total: int


class StepEnded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A node ended for good. ``ended``: how many of ``total`` have.

    ``result``: the node's output; of an agent node its answer.
    """

    at: int
    node_id: str
    name: str
    kind: str
    number: int
    total: int
    ended: int
    success: bool
    skipped: bool = False
    result: Json = None
    error: StepError | None = None


class RunEnded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Once, and last. ``answer``: what the agent answered, or the flow's output; ``output`` as recorded.

    ``stop_reason``: ``max_turns`` when the run is completed but was stopped by that bound.
    """

    at: int
    status: Literal["completed", "failed", "cancelled", "timed_out"]
    answer: Json = None
    output: Json = None
    error: StepError | None = None
    failed_node: str = ""
    stop_reason: str = ""
    current_turn: int = 0


Happening = (
    RunStarted | Logged | TextDelta | Message | UsageTotal | Progress | StepBegan | StepEnded | RunEnded
)
