"""What a conversation leaves behind: short facts for later ones, found by one more call to the model."""

from typing import Any, cast

from pydantic_ai.messages import ModelMessage

from actors.agents.errors import MODEL_FAULTS, step_error
from actors.agents.models import OFFLINE
from actors.agents.side_calls import SideCalls, transcript
from runtime.events import Json

MEMORIES_MAX = 10
MEMORY_CHARS_MAX = 500
_READ_CHARS_MAX = 40_000

_ASK = (
    "Read the conversation and give what is worth remembering in later ones: lasting facts about the person,"
    " their project and their wishes, each one short sentence that can be understood alone. Nothing that"
    " holds only for this conversation, no secrets, nothing that is known already. At most 10; none is a good"
    " answer."
)
_FOUND: dict[str, Json] = {
    "type": "object",
    "title": "found",
    "properties": {"memories": {"type": "array", "items": {"type": "string"}}},
    "required": ["memories"],
    "additionalProperties": False,
}


async def found_in(history: list[ModelMessage], known: tuple[str, ...], asks: SideCalls) -> tuple[str, ...]:
    """At most ``MEMORIES_MAX`` new ones; none when the call fails: the run has its answer already."""
    if asks.named.name == OFFLINE:
        return ()  # it makes its answers up
    listed = "\n".join(f"- {memory}" for memory in known) or "- nothing"
    prompt = f"Known already:\n{listed}\n\nThe conversation:\n\n{transcript(history, _READ_CHARS_MAX)}"
    try:
        found = cast("dict[str, Any]", await asks.ask("memory", _ASK, prompt, schema=_FOUND))
    except MODEL_FAULTS as error:
        asks.journal.log("memories_failed", {"error": step_error(error).message})
        return ()
    texts = [" ".join(str(text).split())[:MEMORY_CHARS_MAX] for text in found["memories"]]
    return tuple(dict.fromkeys(text for text in texts if text and text not in known))[:MEMORIES_MAX]
