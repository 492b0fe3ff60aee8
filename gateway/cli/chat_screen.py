"""What a person sees of a run: the answer on stdout as it comes, everything else as dim lines on stderr.

A pipe gets the last answer alone, whole. Models and tools write what they like, so control characters are
left out before anything reaches a terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Event = dict[str, Any]

ENDS = ("completed", "failed", "halted", "max_turns_reached")

ARGUMENTS_CHARS_MAX = 80
THOUGHT_CHARS_MAX = 200

_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
_HARMLESS = {number: None for number in _CONTROLS if chr(number) not in "\n\t"}


def is_end(event: Event) -> bool:
    return event["type"] == "status" and event["data"]["status"] in ENDS


class Screen:
    """One run. ``usage`` is what it has taken."""

    def __init__(self, *, shows_prompt: bool = False) -> None:
        """``shows_prompt``: the person did not just type it."""
        self._lively = sys.stdout.isatty()
        self._shows_prompt = shows_prompt
        self._streamed = ""
        self._column = 0
        self._answer = ""
        self._calls: dict[str, str] = {}
        self._console: Console | None = None
        self.status = ""
        self.usage: Mapping[str, Any] = {}

    def show(self, event: Event) -> None:
        data: dict[str, Any] = event["data"]
        match event["type"]:
            case "message_delta":
                self._streamed += data["delta"]
                self._write(data["delta"])
            case "message" if data["role"] == "assistant":
                self._whole(data.get("content") or "")
            case "log":
                self._log(data)
            case "progress":
                self._progress(data)
            case "usage":
                self.usage = data
            case "status":
                if data["status"] in ENDS:
                    self.status = data["status"]
                    self._end()
            case _:
                return

    def say(self, text: str, style: str = "dim") -> None:
        """A line on stderr, on a line of its own."""
        if self._column:
            self._write("\n")
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._console.print(text.translate(_HARMLESS), style=style, markup=False)

    def _write(self, text: str) -> None:
        if not self._lively or not text:
            return
        sys.stdout.write(text.translate(_HARMLESS))
        sys.stdout.flush()
        self._column = 0 if text.endswith("\n") else 1

    def _whole(self, content: Any) -> None:
        """The answer as recorded: what of it didn't come in pieces is written now."""
        text = content if isinstance(content, str) else _compact(content)
        if text.startswith(self._streamed):
            self._write(text[len(self._streamed) :])
        else:
            self._write("\n" + text)
        if self._column:
            self._write("\n")
        self._streamed = ""
        self._answer = text or self._answer

    def _end(self) -> None:
        if self._column:
            self._write("\n")
        if not self._lively and self.status == "completed":
            sys.stdout.write(self._answer if self._answer.endswith("\n") else self._answer + "\n")
            sys.stdout.flush()

    def _log(self, data: dict[str, Any]) -> None:
        detail = str(data.get("detail") or "")
        match data["event"]:
            case "prompt_received" if self._shows_prompt:
                self.say(f"> {detail}")
            case "tool_call":
                shown = _compact(data.get("tool_input"))
                self.say(f"-> {data.get('tool') or detail} {_cut(shown, ARGUMENTS_CHARS_MAX)}", "cyan")
            case "tool_result":
                self._tool_result(data, detail)
            case "thinking":
                self.say(_cut(" ".join(detail.split()), THOUGHT_CHARS_MAX), "dim italic")
            case "rate_limited" | "retrying":
                # What came of this answer is void: it is asked for again from its beginning.
                self._streamed = ""
                self.say(detail, "yellow")
            case "output_guardrail_violation":
                self.say(f"against the rules: {detail}", "yellow")
            case "compaction_start" | "compaction_complete" | "history_trimmed":
                self.say(data["event"].replace("_", " "))
            case _:
                return

    def _tool_result(self, data: dict[str, Any], detail: str) -> None:
        result = data.get("tool_output")
        text = result if isinstance(result, str) else _compact(result)
        tool = data.get("tool") or detail
        took = f" in {data['duration_ms']:,.0f} ms" if "duration_ms" in data else ""
        if data.get("is_error"):
            self.say(f"<- {tool} failed{took}: {_cut(text, ARGUMENTS_CHARS_MAX)}", "red")
        else:
            self.say(f"<- {tool} {_size(len(text.encode(errors='replace')))}{took}", "cyan")

    def _progress(self, data: dict[str, Any]) -> None:
        todos: list[dict[str, Any]] = data.get("todos") or []
        if not todos:
            return
        done = sum(one["status"] == "completed" for one in todos)
        going = next((f": {one['title']}" for one in todos if one["status"] == "in-progress"), "")
        self.say(f"plan: {done} of {len(todos)} done{going}")

    def summary(self) -> str:
        """Tokens and cost, as far as they are known."""
        usage = self.usage
        if not usage:
            return ""
        cached = usage.get("total_cache_read_tokens") or 0
        parts = [
            f"{usage['total_in']:,} tokens in" + (f" ({cached:,} cached)" if cached else ""),
            f"{usage['total_out']:,} out",
            _cost(usage) if usage.get("cost_known") else "cost unknown",
        ]
        return ", ".join(parts)


def _cost(usage: Mapping[str, Any]) -> str:
    cost = float(usage["cost"])
    return f"${cost:.2f}" if cost >= 1 or not cost else f"${cost:.6f}".rstrip("0")


def _size(count: int) -> str:
    return f"{count} B" if count < 1_000 else f"{count / 1_000:,.1f} kB"


def _compact(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _cut(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
