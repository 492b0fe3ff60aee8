"""What the model server answers: rules, each for some conversations, with one answer for each turn.

A rule answers by what the conversation holds, never by how many requests came before, so that a request made
again after a crash gets what it would have got. The one exception is a turn with several answers: they are
given to the tries of the same request, one after the other.

A rule is any function from `Asked` to an answer, or to None when it is not for that conversation; `Rule` is
the one that can be written as JSON.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, cast

import msgspec

SENT_NS = "{sent_ns}"
"""In a reply's text: the clock (`time.time_ns`) when the piece that holds it is sent."""


class ToolUse(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call the model asks for. ``id`` empty: a new one for every answer, as providers do."""

    name: str
    arguments: dict[str, Any] = {}
    id: str = ""


class Reply(msgspec.Struct, frozen=True, kw_only=True, tag="reply", forbid_unknown_fields=True):
    """An answer of status 200.

    ``text``: may hold ``{prompt}``, ``{system}``, ``{results}`` (of tools, since the prompt), ``{model}``,
    ``{turn}`` and, in pieces, ``{sent_ns}``. ``deltas``: pieces it is streamed in; 0 = one a word; ``pieces``
    gives them one by one instead. ``value``: a structured answer, by whatever way the request asks for one
    (a response format, or an output tool). ``thinking``: told before the text, as ``reasoning_content``.
    ``input_tokens``, ``output_tokens``: as reported; none = counted in words.

    ``first_seconds``: silence before the first piece. ``over_seconds``: from then to the end of the answer,
    the pieces evenly between. ``hang``: the answer stops after ``hang_after`` pieces until the test releases
    the gate of this name. ``cut_after``: the connection breaks after so many pieces.
    """

    text: str = ""
    pieces: tuple[str, ...] = ()
    deltas: int = 0
    calls: tuple[ToolUse, ...] = ()
    value: Any = msgspec.UNSET
    thinking: str = ""
    finish: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int = 0
    first_seconds: float = 0.0
    over_seconds: float = 0.0
    hang: str = ""
    hang_after: int = 0
    cut_after: int | None = None


class Fault(msgspec.Struct, frozen=True, kw_only=True, tag="fault", forbid_unknown_fields=True):
    """An answer of another status. ``retry_after``: the header, in seconds."""

    status: int
    message: str = "scripted fault"
    code: str = ""
    retry_after: float | None = None
    first_seconds: float = 0.0


Answer = Reply | Fault
Turn = Answer | tuple[Answer, ...]


class Asked:
    """One request, and what the conversation in it holds. ``tries``: how often the same one came before."""

    def __init__(self, body: dict[str, Any], number: int, tries: int, headers: dict[str, str]) -> None:
        self.body = body
        self.number = number
        self.tries = tries
        self.headers = headers
        self.model: str = body.get("model", "")
        self.messages: list[dict[str, Any]] = body.get("messages", [])
        self.streams: bool = body.get("stream") is True

    @cached_property
    def _since_prompt(self) -> list[dict[str, Any]]:
        """The messages from the last one of the user on."""
        last = max((n for n, each in enumerate(self.messages) if each["role"] == "user"), default=0)
        return self.messages[last:]

    @cached_property
    def prompt(self) -> str:
        """The last message of the user."""
        return content_text(self._since_prompt[0]) if self._since_prompt else ""

    @cached_property
    def system(self) -> str:
        return "\n\n".join(content_text(m) for m in self.messages if m["role"] in ("system", "developer"))

    @cached_property
    def turn(self) -> int:
        """Answers of the model since the prompt: 0 for the first call of a run."""
        return sum(message["role"] == "assistant" for message in self._since_prompt)

    @cached_property
    def results(self) -> list[str]:
        """What tools answered since the prompt."""
        return [content_text(message) for message in self._since_prompt if message["role"] == "tool"]

    @cached_property
    def tools(self) -> dict[str, dict[str, Any]]:
        """Name to declaration (description, parameters) of the tools offered."""
        return {tool["function"]["name"]: tool["function"] for tool in self.body.get("tools") or ()}

    @cached_property
    def text(self) -> str:
        """Everything said in the conversation."""
        return "\n".join(content_text(message) for message in self.messages)

    @property
    def output_tool(self) -> str:
        """The tool by which the model library wants a structured answer; empty when there is none."""
        for name in self.tools:
            if name.startswith("final_result"):
                return name
        chosen = self.body.get("tool_choice")
        return cast("dict[str, Any]", chosen)["function"]["name"] if isinstance(chosen, dict) else ""


RuleFunction = Callable[[Asked], Answer | None]


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The answers for a conversation that fits all that is given; the last turn stands for all after it.

    ``model``: its name. ``prompt``, ``system``, ``anywhere``: found in the last message of the user, in the
    system messages, in any message. ``tool``: offered. ``streams``: asked for as a stream, or not.
    """

    turns: tuple[Turn, ...]
    model: str = ""
    prompt: str = ""
    system: str = ""
    anywhere: str = ""
    tool: str = ""
    streams: bool | None = None

    def __call__(self, asked: Asked) -> Answer | None:
        if not self._fits(asked):
            return None
        turn = self.turns[min(asked.turn, len(self.turns) - 1)]
        return turn[min(asked.tries, len(turn) - 1)] if isinstance(turn, tuple) else turn

    def _fits(self, asked: Asked) -> bool:
        return (
            self.model in ("", asked.model)
            and self.prompt in asked.prompt
            and self.system in asked.system
            and self.anywhere in asked.text
            and (not self.tool or self.tool in asked.tools)
            and self.streams in (None, asked.streams)
        )


NO_RULE = Fault(status=400, message="no rule of the model server's script fits this conversation")


def answer_of(script: Sequence[RuleFunction], asked: Asked) -> Answer:
    """The first that a rule gives, its placeholders filled in."""
    for rule in script:
        answer = rule(asked)
        if answer is not None:
            return _filled(answer, asked) if isinstance(answer, Reply) else answer
    return NO_RULE


def _filled(reply: Reply, asked: Asked) -> Reply:
    if "{" not in reply.text:
        return reply
    text = reply.text
    for name, value in (
        ("prompt", asked.prompt),
        ("system", asked.system),
        ("results", "\n".join(asked.results)),
        ("model", asked.model),
        ("turn", str(asked.turn)),
    ):
        text = text.replace(f"{{{name}}}", value)
    return msgspec.structs.replace(reply, text=text)


def stamped(piece: str) -> str:
    """The piece with the time of its sending."""
    return piece.replace(SENT_NS, str(time.time_ns())) if SENT_NS in piece else piece


def content_text(message: dict[str, Any]) -> str:
    """A message's text, whether it is one or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        parts = cast("list[dict[str, Any]]", content)
        return "".join(part.get("text", "") for part in parts if part.get("type") == "text")
    return content or ""


# --- short ways to write scripts --------------------------------------------------------------------------


def says(text: str, **options: Any) -> Reply:
    """A text; the options are those of `Reply`."""
    return Reply(text=text, **options)


def calls(tool: str, /, **arguments: Any) -> Reply:
    """One tool call; for more, or beside a text: ``Reply(calls=(ToolUse(...), ...))``."""
    return Reply(calls=(ToolUse(tool, arguments),))


def gives(value: Any, **options: Any) -> Reply:
    """A structured answer, as the request asks for it."""
    return Reply(value=value, **options)


def fails(status: int, *, times: int = 1, then: Answer, **options: Any) -> tuple[Answer, ...]:
    """A turn that fails some times before it answers."""
    return (*[Fault(status=status, **options)] * times, then)


def tool_loop(tool: str, arguments: dict[str, Any], text: str = "{results}", **fits: Any) -> Rule:
    """A run of two model calls: the tool, then a text (the tool's result)."""
    return Rule(turns=(calls(tool, **arguments), says(text)), **fits)


def endless_tool_loop(tool: str, arguments: dict[str, Any], **fits: Any) -> Rule:
    """A model that calls the tool again whatever it answers."""
    return Rule(turns=(calls(tool, **arguments),), **fits)


def slowly(text: str, *, deltas: int = 20, seconds: float = 2.0, **fits: Any) -> Rule:
    return Rule(turns=(says(text, deltas=deltas, over_seconds=seconds),), **fits)


ECHO = Rule(turns=(says("{prompt}"),))
"""Returns the prompt it was sent."""

SCRIPT_OF_JSON = tuple[Rule, ...]
"""What a file with a script holds: a list of rules."""


def read_script(text: bytes) -> tuple[Rule, ...]:
    """Raises: msgspec.ValidationError naming the place."""
    return msgspec.json.decode(text, type=SCRIPT_OF_JSON)
