"""Calls to the model that serve the run and are no part of its conversation: recorded, with a purpose."""

from typing import Any

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage
from pydantic_ai.usage import UsageLimits

from actors.agents.claim_check import ClaimCheck
from actors.agents.messages import messages_of, text_of
from actors.agents.models import NamedModel
from actors.agents.recorded_model import Calls, RecordedModel
from actors.agents.structured import OUTPUT_RETRIES, output_spec
from actors.step_journal import StepJournal
from runtime.events import Json

_AGENT: Agent[object, Any] = Agent(deps_type=object, name="heliograph-side-call")
_NO_LIMITS = UsageLimits(request_limit=None)


class SideCalls:
    """Of one run, by its own model."""

    def __init__(self, named: NamedModel, journal: StepJournal, calls: Calls, claims: ClaimCheck) -> None:
        self.named = named
        self.journal = journal
        self._calls = calls
        self._claims = claims
        self._models: dict[str, RecordedModel] = {}

    async def ask(
        self,
        purpose: str,
        instructions: str,
        prompt: str,
        *,
        schema: dict[str, Json] | None = None,
        first_step: str = "",
    ) -> Json:
        """The answer: text, or with a schema an object. Its step is ``<purpose>-<n>``, or ``first_step``.

        Raises: what a model's last try raised; UnexpectedModelBehavior when no answer fits the schema.
        """
        key = first_step or purpose
        model = self._models.get(key)
        if model is None:
            model = self._models[key] = RecordedModel(
                self.named, self.journal, self._calls, self._claims, purpose=purpose, first_step=first_step
            )
        result = await _AGENT.run(
            prompt,
            output_type=output_spec(self.named, schema),
            model=model,
            instructions=instructions,
            deps=None,
            usage_limits=_NO_LIMITS,
            retries={"output": OUTPUT_RETRIES},
            infer_name=False,
        )
        return result.output


def transcript(history: list[ModelMessage], chars_max: int) -> str:
    """What was said, for a model to read; the beginning is left out when it is longer than ``chars_max``."""
    lines: list[str] = []
    for message in messages_of(history):
        text = text_of(message)
        calls = message.get("tool_calls") or ()
        called = "".join(f"\n[calls {call['name']} with {call['arguments']}]" for call in calls)
        who = f"tool {message.get('name')}" if message["role"] == "tool" else str(message["role"])
        lines.append(f"{who}: {text}{called}")
    whole = "\n\n".join(lines)
    return whole if len(whole) <= chars_max else f"[...]\n{whole[-chars_max:]}"
