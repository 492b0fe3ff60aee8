"""The chat-completions protocol: a reply as the body, or the chunks, that carry it.

Source: the OpenAI API reference, "Create chat completion" and "Streaming" (chat.completion and
chat.completion.chunk objects).
"""

from __future__ import annotations

import re
import time
from itertools import count
from typing import Any, NamedTuple, cast

import msgspec

from tests.model_server.script import Asked, Fault, Reply, ToolUse, stamped

ARGUMENT_CHARS = 8
"""Characters of a tool call's arguments in one chunk."""

ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

_call_ids = count(1)


class Said(NamedTuple):
    """What a reply says to one request: its pieces of text, and its tool calls with their ids."""

    thinking: str
    pieces: tuple[str, ...]
    calls: tuple[ToolUse, ...]

    @property
    def finish(self) -> str:
        return "tool_calls" if self.calls else "stop"


def message_of(reply: Reply, asked: Asked) -> Said:
    text, calls = reply.text, reply.calls
    if reply.value is not msgspec.UNSET:
        if asked.output_tool and not asked.body.get("response_format"):
            arguments = _object(reply.value)
            calls = (*calls, ToolUse(asked.output_tool, arguments))
        else:
            text = msgspec.json.encode(reply.value).decode()
    return Said(
        reply.thinking,
        reply.pieces or _pieces(text, reply.deltas),
        tuple(call if call.id else ToolUse(call.name, call.arguments, _new_id()) for call in calls),
    )


def _object(value: Any) -> dict[str, Any]:
    """As the model library wraps what is no object."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {"response": value}


def _new_id() -> str:
    return f"call_{time.time_ns():x}_{next(_call_ids)}"


def _pieces(text: str, wanted: int) -> tuple[str, ...]:
    if not wanted:
        return tuple(re.findall(r"\S+\s*|\s+", text))
    number = min(wanted, len(text))
    return tuple(text[n * len(text) // number : (n + 1) * len(text) // number] for n in range(number))


def usage_of(reply: Reply, asked: Asked, message: Said) -> dict[str, Any]:
    """As reported: given by the script, or one token a word."""
    taken, made = reply.input_tokens, reply.output_tokens
    if taken is None:
        taken = len(asked.text.split())
    if made is None:
        made = len(f"{message.thinking} {''.join(message.pieces)}".split()) + len(message.calls)
    return {
        "prompt_tokens": taken,
        "completion_tokens": made,
        "total_tokens": taken + made,
        "prompt_tokens_details": {"cached_tokens": reply.cached_tokens},
    }


def completion(reply: Reply, asked: Asked, message: Said) -> dict[str, Any]:
    """The whole answer as one body."""
    said: dict[str, Any] = {"role": "assistant", "content": "".join(map(stamped, message.pieces)) or None}
    if message.thinking:
        said["reasoning_content"] = message.thinking
    if message.calls:
        said["tool_calls"] = [_tool_call(call) for call in message.calls]
    return {
        **_head(asked, "chat.completion"),
        "choices": [
            {"index": 0, "message": said, "finish_reason": reply.finish or message.finish, "logprobs": None}
        ],
        "usage": usage_of(reply, asked, message),
    }


def _tool_call(call: ToolUse) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call)}}


def _arguments(call: ToolUse) -> str:
    return msgspec.json.encode(call.arguments).decode()


def _head(asked: Asked, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{asked.number}",
        "object": kind,
        "created": int(time.time()),
        "model": asked.model,
        "system_fingerprint": "fp_scripted",
    }


class Chunks:
    """The chunks of one streamed answer, each as a server-sent event."""

    def __init__(self, asked: Asked) -> None:
        self._head = msgspec.json.encode(_head(asked, "chat.completion.chunk"))[:-1]

    def _event(self, rest: dict[str, Any]) -> bytes:
        return b"data: " + self._head + b"," + msgspec.json.encode(rest)[1:] + b"\n\n"

    def _delta(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def opening(self) -> bytes:
        return self._delta({"role": "assistant", "content": ""})

    def thinking(self, text: str) -> bytes:
        return self._delta({"reasoning_content": text})

    def piece(self, text: str) -> bytes:
        return self._delta({"content": stamped(text)})

    def call(self, index: int, call: ToolUse) -> list[bytes]:
        """Its name in one chunk, its arguments in small ones."""
        function = {"name": call.name, "arguments": ""}
        opened: dict[str, Any] = {"index": index, "id": call.id, "type": "function", "function": function}
        text = _arguments(call)
        parts = [text[at : at + ARGUMENT_CHARS] for at in range(0, len(text), ARGUMENT_CHARS)]
        return [
            self._delta({"tool_calls": [opened]}),
            *(
                self._delta({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
                for part in parts
            ),
        ]

    def ending(self, finish: str, usage: dict[str, Any] | None) -> bytes:
        """``usage``: only for who asked for it by ``stream_options.include_usage``."""
        told = b"" if usage is None else self._event({"choices": [], "usage": usage})
        return self._delta({}, finish) + told + b"data: [DONE]\n\n"


def error_body(fault: Fault) -> dict[str, Any]:
    kind = ERROR_TYPES.get(fault.status, "server_error")
    return {
        "error": {"message": fault.message, "type": kind, "param": None, "code": fault.code or None},
    }
