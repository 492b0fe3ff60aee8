"""``agent``: a model with tools answers a prompt; every call it makes is recorded as a step."""

from typing import Any

import msgspec

from runtime.agent_spec import AgentSpec
from runtime.events import Json
from runtime.kinds.kind import Binder, Kind
from runtime.plan import Act, RunAgent, Scope

_TEMPLATES = ("prompt", "system", "model")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """``prompt``, ``system`` and ``model`` are templates; the others values, or ``${...}`` that gives one.

    What each means: ``agent_spec.AgentSpec``. A null is the same as leaving the field out.
    """

    prompt: str
    system: str = ""
    model: str = ""
    history: list[Json] | str | None = None
    tools: list[Json] | str | None = None
    skills: list[Json] | str | None = None
    guardrails: list[Json] | str | None = None
    memories: list[Json] | str | None = None
    max_turns: int | str | None = None
    output_format: str | None = None
    output_schema: dict[str, Json] | str | None = None
    reasoning_effort: str | None = None
    temperature: float | str | None = None
    compaction: str | None = None
    auto_memory: bool | str | None = None
    caveman: bool | str | None = None
    tsv_tool_results: bool | str | None = None
    todos: bool | str | None = None
    repository: dict[str, Json] | str | None = None
    secrets: dict[str, Json] | str | None = None


def bind(config: msgspec.Struct, binder: Binder, *, plain: bool = False) -> Act:
    """For every kind that talks to a model: its config's fields are some of ``AgentSpec``'s."""
    fields = msgspec.structs.asdict(config)
    texts = {name: binder.template(name, fields[name]) for name in _TEMPLATES if fields.get(name)}
    values = {
        name: binder.value(name, value)
        for name, value in fields.items()
        if name not in _TEMPLATES and value is not None
    }

    def act(scope: Scope) -> RunAgent:
        given: dict[str, Any] = {name: render(scope) for name, render in texts.items()}
        for name, evaluate in values.items():
            value = evaluate(scope)
            if value is not None:
                given[name] = value
        return RunAgent(spec_of(given), plain)

    return act


def spec_of(fields: dict[str, Any]) -> AgentSpec:
    """Raises: ValueError naming the field and the rule."""
    try:
        return msgspec.convert(fields, AgentSpec)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


KIND = Kind(config=Config, bind=bind, in_map=True)
