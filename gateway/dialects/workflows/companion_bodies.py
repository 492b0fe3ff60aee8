"""Bodies of the companion paths: agents, skills and guardrails, as the contract's clients send them (3.13).

A guardrail holds several rules at once; ``guardrail_rules`` gives them one by one, as a run checks them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import msgspec
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from runtime.agent_spec import Guardrail, ToolSpec
from runtime.guardrails import faults

NAME_CHARS_MAX = 200
TEXT_CHARS_MAX = 100_000
CONFIGS = {"prompt": "prompt_config", "request": "request_config", "output": "output_config"}
"""A guardrail's type to the field that holds its rules."""

Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS_MAX)]
Text = Annotated[str, Field(max_length=TEXT_CHARS_MAX)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


def _checked_tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    try:
        msgspec.convert(tools, list[ToolSpec])
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    return tools


# --- agents ---------------------------------------------------------------------------------------------


class CreateAgent(_Body):
    """``tool_definitions``: tools by kind (python, flow, http, mcp), as ``agent_spec.ToolSpec`` describes."""

    name: Name
    description: Text = ""
    system_prompt: Text = "You are a helpful assistant."
    model: str | None = None
    mcp_server_ids: list[str] = []
    mcp_server_tags: list[str] = []
    tool_definitions: list[dict[str, Any]] = []
    knowledge_source_ids: list[str] = []
    knowledge_tags: list[str] = []
    builtin_tools: list[str] = []
    custom_tool_ids: list[str] = []
    provider_id: str | None = None

    _tools = field_validator("tool_definitions")(_checked_tools)


class UpdateAgent(CreateAgent):
    name: Name = ""


# --- skills ---------------------------------------------------------------------------------------------


class CreateSkill(_Body):
    name: Name
    description: Text = ""
    instructions: Text
    tags: list[str] = []


class UpdateSkill(CreateSkill):
    name: Name = ""
    instructions: Text = ""


# --- guardrails -----------------------------------------------------------------------------------------


class PromptRules(_Body):
    """``instructions``: what a model judges the text by; an extension of ours."""

    forbidden_patterns: list[str] = []
    required_patterns: list[str] = []
    max_length: Annotated[int, Field(ge=0)] | None = None
    min_length: Annotated[int, Field(ge=0)] | None = None
    instructions: Text = ""


class RequestRules(_Body):
    """``required_fields``: that the request must hold; an extension of ours."""

    json_schema: dict[str, Any] = {}
    required_fields: list[str] = []


class OutputRules(_Body):
    """``json_schema``, ``instructions``: extensions of ours."""

    forbidden_patterns: list[str] = []
    required_patterns: list[str] = []
    max_length: Annotated[int, Field(ge=0)] | None = None
    pii_detection: bool = False
    must_be_valid_json: bool = False
    json_schema: dict[str, Any] | None = None
    instructions: Text = ""


class CreateGuardrail(_Body):
    name: Name
    description: Text = ""
    guardrail_type: Literal["prompt", "request", "output"]
    tags: list[str] = []
    enabled: bool = True
    prompt_config: PromptRules | None = None
    request_config: RequestRules | None = None
    output_config: OutputRules | None = None

    @model_validator(mode="after")
    def _has_usable_rules(self) -> Self:
        field = CONFIGS[self.guardrail_type]
        if getattr(self, field) is None:
            raise ValueError(f"{field} is required for guardrail_type='{self.guardrail_type}'")
        for rule in guardrail_rules(self):
            if fault := faults(rule):
                raise ValueError(f"{field}: {rule.pattern or 'json_schema'} {fault}")
        return self


class UpdateGuardrail(_Body):
    """Checked once more as a whole, together with what stays."""

    name: Name = ""
    description: Text = ""
    guardrail_type: Literal["prompt", "request", "output"] = "prompt"
    tags: list[str] = []
    enabled: bool = True
    prompt_config: PromptRules | None = None
    request_config: RequestRules | None = None
    output_config: OutputRules | None = None


_PII = (
    ("email address", r"[a-z0-9._%+-]+@[a-z0-9.-]+\.[a-z]{2,}"),
    ("phone number", r"(?<!\d)(?:\+?1[-. ]?)?\(?\d{3}\)?[-. ]?\d{3}[-. ]?\d{4}(?!\d)"),
    ("social security number", r"(?<!\d)\d{3}-\d{2}-\d{4}(?!\d)"),
)


def guardrail_rules(guardrail: CreateGuardrail) -> list[Guardrail]:
    """The rules of its type, in the order in which they are checked: lengths, patterns, then the rest.

    Patterns match in any case, as the contract's original has it.
    """
    name = guardrail.name
    match guardrail.guardrail_type:
        case "prompt":
            rules = guardrail.prompt_config or PromptRules()
            return [
                *_length(name, "input", rules.min_length or 0, rules.max_length),
                *_patterns(name, "input", rules.forbidden_patterns, rules.required_patterns),
                *_judged(name, "input", rules.instructions),
            ]
        case "request":
            wanted = guardrail.request_config or RequestRules()
            return [
                Guardrail(
                    name=name, stage="input", rule="required_input", fields=tuple(wanted.required_fields)
                ),
                Guardrail(name=name, stage="input", rule="json_schema", schema=wanted.json_schema),
            ]
        case "output":
            return _output_rules(name, guardrail.output_config or OutputRules())


def _output_rules(name: str, rules: OutputRules) -> list[Guardrail]:
    schema = rules.json_schema if rules.json_schema is not None else {} if rules.must_be_valid_json else None
    personal = _PII if rules.pii_detection else ()
    return [
        *_length(name, "output", 0, rules.max_length),
        *_patterns(name, "output", rules.forbidden_patterns, rules.required_patterns),
        *(
            []
            if schema is None
            else [Guardrail(name=name, stage="output", rule="json_schema", schema=schema)]
        ),
        *(
            Guardrail(
                name=name,
                stage="output",
                rule="pattern",
                pattern=f"(?i){pattern}",
                message=f"output appears to contain PII ({what}).",
            )
            for what, pattern in personal
        ),
        *_judged(name, "output", rules.instructions),
    ]


def _length(name: str, stage: Literal["input", "output"], least: int, most: int | None) -> list[Guardrail]:
    if not least and most is None:
        return []
    return [Guardrail(name=name, stage=stage, rule="length", min_chars=least, max_chars=most)]


def _patterns(
    name: str, stage: Literal["input", "output"], forbidden: list[str], required: list[str]
) -> list[Guardrail]:
    what = "prompt" if stage == "input" else "output"
    return [
        *(
            Guardrail(
                name=name,
                stage=stage,
                rule="pattern",
                pattern=f"(?i){pattern}",
                message=f"{what} matches forbidden pattern '{pattern}'.",
            )
            for pattern in forbidden
        ),
        *(
            Guardrail(
                name=name,
                stage=stage,
                rule="pattern",
                pattern=f"(?i){pattern}",
                must_match=True,
                message=f"{what} does not match required pattern '{pattern}'.",
            )
            for pattern in required
        ),
    ]


def _judged(name: str, stage: Literal["input", "output"], instructions: str) -> list[Guardrail]:
    if not instructions:
        return []
    return [Guardrail(name=name, stage=stage, rule="model", instructions=instructions)]
