"""Request bodies as the original's framework checks them: pydantic models, and its words for what they break.

A body that breaks its schema answers 422 with a list of ``{"type", "loc", "msg", "input"}``; ``loc`` begins
with ``body`` (contract section 2). Values are read leniently, as that framework does (``"5"`` is 5). Unknown
fields are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.call import Call
from gateway.envelopes import Problem

MAX_TURNS_DEFAULT = 5
ITEMS_MAX = 500
"""Of one import."""

Effort = Literal["low", "medium", "high"]
Turns = Annotated[int, Field(ge=1, le=200)]

ModelT = TypeVar("ModelT", bound=BaseModel)


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")


# --- workflows ------------------------------------------------------------------------------------------


class WorkflowFields(_Body):
    """What create, export and import have in common (contract 3.1, 3.10)."""

    title: str | None = None
    agent_id: str
    model: str | None = None
    max_turns: Turns | None = None
    output_format: str = "json"
    skill_ids: list[str] = []
    skill_tags: list[str] = []
    infinite_session: bool = True
    caveman: bool = False
    bypass_memory: bool = False
    auto_memory: bool = False
    tsv_tool_results: bool = False
    reasoning_effort: Effort | None = None
    guardrail_ids: list[str] = []
    guardrail_tags: list[str] = []
    repo_url: str | None = None
    repo_branch: str | None = None
    repo_token_name: str | None = None


class CreateWorkflow(WorkflowFields):
    credential_overrides: dict[str, str] = {}
    webhook_url: str | None = None
    error_webhook_url: str | None = None


class UpdateWorkflow(_Body):
    """Only keys that are present change; the defaults here are never used. ``null`` where it is a value."""

    title: str | None = None
    agent_id: str = ""
    model: str | None = None
    max_turns: Turns | None = None
    output_format: str = ""
    skill_ids: list[str] = []
    skill_tags: list[str] = []
    infinite_session: bool = True
    caveman: bool = False
    bypass_memory: bool = False
    auto_memory: bool = False
    tsv_tool_results: bool = False
    reasoning_effort: Effort | None = None
    guardrail_ids: list[str] = []
    guardrail_tags: list[str] = []
    repo_url: str | None = None
    repo_branch: str | None = None
    repo_token_name: str | None = None
    credential_overrides: dict[str, str] = {}
    webhook_url: str | None = None
    error_webhook_url: str | None = None
    status: str = ""


class ImportedWorkflow(WorkflowFields):
    model: str  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues] - required here


class ItemsBody(_Body, Generic[ModelT]):
    """A bundle, of which only its items count."""

    items: Annotated[list[ModelT], Field(max_length=ITEMS_MAX)]


ImportWorkflows = ItemsBody[ImportedWorkflow]


class Prompt(_Body):
    prompt: str | None = None
    request: dict[str, Any] | None = None
    reasoning_effort: Effort | None = None


# --- reading one ----------------------------------------------------------------------------------------


def broken(field: str, rule: str, given: Any) -> Problem:
    """A value of the body breaks a rule that no schema can say."""
    return Problem(
        "invalid_input",
        details=[{"type": "value_error", "loc": ["body", field], "msg": rule, "input": given}],
    )


def parsed(call: Call, data: bytes, model: type[ModelT]) -> ModelT:
    """The body ``data`` of ``call``. Raises: Problem unsupported_media_type, invalid_input."""
    if not data:
        raise Problem("invalid_input", details=[_listed("missing", (), "Field required", None)])
    media_type = call.media_type
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise Problem("unsupported_media_type")
    try:
        value: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem(
            "invalid_input", details=[_listed("json_invalid", (), "JSON decode error", {})]
        ) from None
    return checked(value, model)


def checked(value: Any, model: type[ModelT]) -> ModelT:
    """Raises: Problem invalid_input."""
    try:
        return model.model_validate(value, from_attributes=True)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        details = [_listed(each["type"], each["loc"], each["msg"], each["input"]) for each in faults]
        raise Problem("invalid_input", details=details) from None


def _listed(kind: str, loc: tuple[int | str, ...], message: str, given: Any) -> Mapping[str, Any]:
    return {"type": kind, "loc": ["body", *loc], "msg": message, "input": given}
