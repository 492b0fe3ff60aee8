"""A conversation that outgrows its model's context: its oldest part is dropped, or told in fewer words.

Cut is only where a turn begins, or within the present turn where a round of tools begins; so a call never
stands without its result, and the prompt that is being answered always stays. What a cut leaves out is
remembered for the run, so every later request, and the history handed to the next run, begin alike.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolReturnPart, UserPromptPart
from pydantic_ai.models import ModelRequestParameters

from actors.agents.side_calls import SideCalls, transcript
from actors.step_journal import StepJournal
from runtime.events import Json

ANSWER_TOKENS_MAX = 16_384
"""Kept free for the answer; a quarter of a small context."""

BYTES_PER_TOKEN = 3.5
"""Low, so that a text rather counts too long than too short."""

_MESSAGE_BYTES = 16
_PRIOR = "Summary of the conversation so far:\n\n"
_SUMMARISE = (
    "Sum up the conversation for yourself, so that you can go on without it: what the person wants, what was"
    " found and decided, names, numbers, file paths and open points. Facts only, at most 400 words."
)


class Cut:
    """What is sent instead of the whole: ``summary``, the prompt at ``turn``, and all from ``rest`` on."""

    def __init__(self, turn: int, rest: int, summary: str = "") -> None:
        self.turn = turn
        self.rest = rest
        self.summary = summary

    def of(self, messages: Sequence[ModelMessage]) -> list[ModelMessage]:
        asked = messages[self.turn]
        assert isinstance(asked, ModelRequest)
        # Results of calls that are cut away must not stay behind.
        parts = [part for part in asked.parts if not isinstance(part, ToolReturnPart)]
        if self.summary:
            parts = [UserPromptPart(_PRIOR + self.summary), *parts]
        return [replace(asked, parts=parts), *messages[self.rest :]]

    @property
    def dropped(self) -> int:
        """Messages left out."""
        return self.rest - 1


def cuts(messages: Sequence[ModelMessage]) -> list[Cut]:
    """Where ``messages`` may be cut, from the smallest loss to the greatest."""
    turns = [
        index
        for index, message in enumerate(messages)
        if isinstance(message, ModelRequest)
        and any(isinstance(part, UserPromptPart) for part in message.parts)
    ]
    found = [Cut(turn, turn + 1) for turn in turns if turn]
    if turns:
        present = turns[-1]
        found += [
            Cut(present, index)
            for index in range(present + 2, len(messages))
            if isinstance(messages[index], ModelResponse)
        ]
    return found


def size_of(messages: Sequence[ModelMessage]) -> int:
    """Roughly the bytes a provider makes of them."""
    return sum(_MESSAGE_BYTES + sum(_part_size(part) for part in message.parts) for message in messages)


def _part_size(part: Any) -> int:
    content: Json = getattr(part, "content", None)
    if content is None:
        content = getattr(part, "args", None)
    if isinstance(content, str):
        return len(content) if content.isascii() else len(content.encode(errors="replace"))
    return 0 if content is None else len(msgspec.json.encode(content, enc_hook=str))


class Context:
    """Keeps the requests of one run within the model's context."""

    def __init__(self, context_tokens: int, journal: StepJournal, asks: SideCalls | None) -> None:
        """``asks``: who sums up; None: the oldest part is dropped."""
        self._journal = journal
        self._bytes_max = int(
            (context_tokens - min(ANSWER_TOKENS_MAX, context_tokens // 4)) * BYTES_PER_TOKEN
        )
        self._asks = asks
        self._cut: Cut | None = None

    def of(self, messages: Sequence[ModelMessage]) -> list[ModelMessage]:
        """``messages`` without what was cut away so far."""
        return list(messages) if self._cut is None else self._cut.of(messages)

    async def fit(
        self, messages: list[ModelMessage], parameters: ModelRequestParameters, is_new: bool
    ) -> list[ModelMessage]:
        """``messages`` as they are sent. ``is_new``: the call was not answered in an earlier life.

        Raises: what a model's last try raised, when it is asked to sum up.
        """
        room = self._bytes_max - _overhead(parameters)
        fitting = self.of(messages)
        if size_of(fitting) <= room:
            return fitting
        behind = 0 if self._cut is None else self._cut.rest
        # A summary costs a call, so it makes room for more than this one request.
        wanted = room if self._asks is None else room // 2
        allowed = [cut for cut in cuts(messages) if cut.rest > behind]
        chosen = next((cut for cut in allowed if size_of(cut.of(messages)) <= wanted), None)
        if chosen is None:
            if not allowed:
                return fitting  # nothing can go: the provider decides
            chosen = allowed[-1]
        if self._asks is not None:
            chosen.summary = await self._summary(messages, chosen, room, is_new)
        elif is_new:
            self._journal.log("history_trimmed", {"dropped": chosen.dropped})
        self._cut = chosen
        return chosen.of(messages)

    async def _summary(self, messages: list[ModelMessage], cut: Cut, room: int, is_new: bool) -> str:
        assert self._asks is not None
        before = "" if self._cut is None else f"{self._cut.summary}\n\n"
        start = 0 if self._cut is None else self._cut.turn
        left_out = [message for index, message in enumerate(messages[: cut.rest]) if index >= start]
        if is_new:
            self._journal.log("compaction_start", {"messages": cut.dropped})
        text = before + transcript(left_out, max(2_000, room - len(before)))
        summary = str(await self._asks.ask("compaction", _SUMMARISE, text))
        if is_new:
            detail = {"messages": cut.dropped, "summary_chars": len(summary)}
            self._journal.log("compaction_complete", detail)
        return summary


def _overhead(parameters: ModelRequestParameters) -> int:
    """Bytes of what goes with every request: instructions and tools."""
    told = sum(len(part.content) for part in parameters.instruction_parts or ())
    tools = (*parameters.function_tools, *parameters.output_tools)
    return told + sum(
        len(tool.description or "") + len(msgspec.json.encode(tool.parameters_json_schema)) for tool in tools
    )
