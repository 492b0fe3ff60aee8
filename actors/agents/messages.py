"""A conversation as plain JSON, and as the model library wants it.

One message is ``{role, content}`` plus, by role: ``assistant``: ``tool_calls`` (as ``events.ToolCall``) and
``raw`` when the library's own answer holds more than that; ``tool``: ``tool_call_id``, ``name`` and
``is_error``. This form stands in events, in ``AgentOutput.messages`` and in what a request's hash is taken
over, so a replayed conversation is the same as the one that was recorded, whatever times and ids the library
adds.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import msgspec
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    RetryFeedbackPart,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings

from runtime.events import Json, ToolCall

Message = dict[str, Json]

_PLAIN_ENDS = frozenset({None, "stop", "tool_call"})
"""Ways to finish that need no mention: the rest changes what the library does with the answer."""

_HASHED_SETTINGS = ("temperature", "thinking", "max_tokens")

_encode_sorted = msgspec.json.Encoder(order="deterministic").encode


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A model's answer as it is recorded. ``raw``: see ``MessageRecorded``."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    raw: Json = None


# --- answers ----------------------------------------------------------------------------------------


def answer_of(response: ModelResponse) -> Answer:
    """What is to be recorded of ``response``."""
    text = "".join(part.content for part in response.parts if isinstance(part, TextPart))
    calls = tuple(_tool_call(part) for part in response.parts if isinstance(part, ToolCallPart))
    return Answer(text=text, tool_calls=calls, raw=None if _is_plain(response) else _raw_of(response))


def response_of(answer: Answer) -> ModelResponse:
    """The library's form of ``answer``: the same whether it came just now or from the log."""
    if answer.raw is not None:
        [response] = ModelMessagesTypeAdapter.validate_python([answer.raw])
        return cast("ModelResponse", response)
    parts: list[ModelResponsePart] = [TextPart(answer.text)] if answer.text else []
    parts += [
        ToolCallPart(call.name, call.arguments, tool_call_id=call.tool_call_id) for call in answer.tool_calls
    ]
    return ModelResponse(parts=parts)


def with_unique_calls(response: ModelResponse, taken: set[str]) -> ModelResponse:
    """``response`` whose tool call ids are in ``taken`` neither before nor twice; adds them to it.

    Some servers count from 1 in every answer. A call's id names its step, so it must be the only one.
    """
    parts = list(response.parts)
    for index, part in enumerate(parts):
        if not isinstance(part, ToolCallPart):
            continue
        name, number = part.tool_call_id, 2
        while name in taken:
            # Only letters, digits, - and _: the strictest provider takes nothing else.
            name, number = f"{part.tool_call_id}__{number}", number + 1
        taken.add(name)
        if name != part.tool_call_id:
            parts[index] = replace(part, tool_call_id=name)
    response.parts = parts
    return response


def _is_plain(response: ModelResponse) -> bool:
    """Whether text, then tool calls, is all there is to it."""
    if response.finish_reason not in _PLAIN_ENDS or response.state != "complete":
        return False
    for index, part in enumerate(response.parts):
        if isinstance(part, TextPart):
            if index or not part.content:
                return False
        elif not isinstance(part, ToolCallPart):
            return False
        if part.id or part.provider_details:
            return False
    return True


def _raw_of(response: ModelResponse) -> Json:
    [dumped] = ModelMessagesTypeAdapter.dump_python([response], mode="json", exclude_none=True)
    for name in ("usage", "timestamp", "run_id", "conversation_id"):
        dumped.pop(name, None)
    return dumped


def _tool_call(part: ToolCallPart) -> ToolCall:
    """``arguments`` as an object; text that isn't one stays as the model wrote it."""
    arguments: Json = part.args or {}
    if isinstance(arguments, str):
        try:
            decoded: Json = msgspec.json.decode(arguments)
        except msgspec.DecodeError:
            decoded = None
        if isinstance(decoded, dict):
            arguments = cast("Json", decoded)
    return ToolCall(tool_call_id=part.tool_call_id, name=part.tool_name, arguments=arguments)


# --- conversations ----------------------------------------------------------------------------------


def messages_of(history: Iterable[ModelMessage]) -> list[Message]:
    """``history`` as plain JSON; what only the library needs (its own markers) is left out."""
    messages: list[Message] = []
    for message in history:
        if isinstance(message, ModelResponse):
            messages.append(_assistant(answer_of(message)))
        else:
            messages.extend(plain for part in message.parts if (plain := _plain_part(part)) is not None)
    return messages


def history_of(messages: Sequence[Json]) -> list[ModelMessage]:
    """The library's form of ``messages``: neighbours that the model is told together are one request.

    Raises: ValueError for a message that is none.
    """
    history: list[ModelMessage] = []
    parts: list[ModelRequestPart] = []
    for number, message in enumerate(messages):
        if not isinstance(message, dict):
            raise ValueError(f"message {number} of the history is no object")
        plain = cast("Message", message)
        if plain.get("role") == "assistant":
            if parts:
                history.append(ModelRequest(parts=parts))
                parts = []
            history.append(response_of(_recorded_answer(plain)))
        else:
            parts.append(_request_part(plain, number))
    if parts:
        history.append(ModelRequest(parts=parts))
    return history


def text_of(message: Message) -> str:
    """The message's content as text."""
    content = message.get("content")
    if content is None:
        return ""
    return content if isinstance(content, str) else msgspec.json.encode(content).decode()


def _assistant(answer: Answer) -> Message:
    message: Message = {"role": "assistant", "content": answer.text or None}
    if answer.tool_calls:
        message["tool_calls"] = list(msgspec.to_builtins(answer.tool_calls))
    if answer.raw is not None:
        message["raw"] = answer.raw
    return message


def _recorded_answer(message: Message) -> Answer:
    calls = msgspec.convert(message.get("tool_calls") or (), tuple[ToolCall, ...])
    return Answer(text=text_of(message), tool_calls=calls, raw=message.get("raw"))


def _plain_part(part: ModelRequestPart) -> Message | None:
    match part:
        case SystemPromptPart():
            return {"role": "system", "content": part.content}
        case UserPromptPart():
            return {"role": "user", "content": _user_text(part)}
        case RetryFeedbackPart():
            return {"role": "user", "content": part.model_response()}
        case ToolReturnPart():
            message: Message = {
                "role": "tool",
                "tool_call_id": part.tool_call_id,
                "name": part.tool_name,
                "content": _jsonable(part.content),
            }
            if part.outcome in ("failed", "retried"):
                message["is_error"] = True
            return message
        case _:
            return None


def _request_part(message: Message, number: int) -> ModelRequestPart:
    match message.get("role"):
        case "system":
            return SystemPromptPart(text_of(message))
        case "user":
            return UserPromptPart(text_of(message))
        case "tool":
            return ToolReturnPart(
                str(message.get("name") or ""),
                message.get("content"),
                str(message.get("tool_call_id") or ""),
                outcome="failed" if message.get("is_error") else "success",
            )
        case role:
            raise ValueError(f"message {number} of the history has the role {role!r}")


def _user_text(part: UserPromptPart) -> str:
    if isinstance(part.content, str):
        return part.content
    return "\n".join(str(item) for item in part.content)


def _jsonable(content: Any) -> Json:
    return msgspec.to_builtins(content, enc_hook=str)


# --- requests ---------------------------------------------------------------------------------------


def request_hash(
    model: str,
    messages: Sequence[ModelMessage],
    settings: ModelSettings | None,
    parameters: ModelRequestParameters,
) -> str:
    """SHA-256 in hex of what the model is asked, without times, run ids and headers."""
    instructions = [part.content for part in parameters.instruction_parts or ()]
    given: dict[str, Any] = dict(settings or {})
    output = parameters.output_object
    canonical = {
        "model": model,
        "instructions": instructions,
        "messages": messages_of(messages),
        "tools": [
            (tool.name, tool.description, tool.parameters_json_schema)
            for tool in (*parameters.function_tools, *parameters.output_tools)
        ],
        "output": None if output is None else output.json_schema,
        "settings": {name: given[name] for name in _HASHED_SETTINGS if name in given},
    }
    return hashlib.sha256(_encode_sorted(canonical)).hexdigest()
