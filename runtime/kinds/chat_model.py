"""``chat_model``: one answer of a model, without tools; the answer is the output."""

from functools import partial

import msgspec

from runtime.events import Json
from runtime.kinds import agent
from runtime.kinds.kind import Kind


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """``prompt``, ``system`` and ``model`` are templates; see ``agent_spec.AgentSpec``."""

    prompt: str
    system: str = ""
    model: str = ""
    history: list[Json] | str | None = None
    output_format: str | None = None
    output_schema: dict[str, Json] | str | None = None
    reasoning_effort: str | None = None
    temperature: float | str | None = None


KIND = Kind(config=Config, bind=partial(agent.bind, plain=True), in_map=True)
