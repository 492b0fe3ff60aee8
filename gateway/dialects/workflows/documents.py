"""The workflow as it is kept: its fields, who made it, and which run was the last.

``latest_run`` is a claim first and a run later: a prompt writes the id its execution will have, then starts
it (see `prompts`). What a run did stands in the execution, never here.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway.registry import Resource

EXPORTED = (
    "title",
    "agent_id",
    "model",
    "max_turns",
    "skill_ids",
    "skill_tags",
    "output_format",
    "infinite_session",
    "caveman",
    "bypass_memory",
    "auto_memory",
    "tsv_tool_results",
    "reasoning_effort",
    "guardrail_ids",
    "guardrail_tags",
    "repo_url",
    "repo_branch",
    "repo_token_name",
)
"""Fields of an exported item, in this order (contract 3.10)."""


class WorkflowDocument(msgspec.Struct, frozen=True, kw_only=True):
    """``model`` empty: the server's default at the time of a run. ``claimed_at``: of ``latest_run``, in
    microseconds. ``previous_run``: what ``latest_run`` was before, to go back to when a start fails."""

    agent_id: str
    github_user: str = ""
    title: str | None = None
    model: str = ""
    max_turns: int = 5
    output_format: Literal["json", "markdown"] = "json"
    skill_ids: list[str] = []
    skill_tags: list[str] = []
    infinite_session: bool = True
    caveman: bool = False
    bypass_memory: bool = False
    auto_memory: bool = False
    tsv_tool_results: bool = False
    reasoning_effort: Literal["low", "medium", "high"] | None = None
    guardrail_ids: list[str] = []
    guardrail_tags: list[str] = []
    repo_url: str | None = None
    repo_branch: str | None = None
    repo_token_name: str | None = None
    credential_overrides: dict[str, str] = {}
    webhook_url: str | None = None
    error_webhook_url: str | None = None
    status: Literal["active", "inactive"] = "active"
    latest_run: str = ""
    previous_run: str = ""
    claimed_at: int = 0


def document_of(resource: Resource) -> WorkflowDocument:
    return msgspec.convert(resource.document, WorkflowDocument)


def subject_of(workflow_id: str) -> str:
    """What the runs of a workflow say they belong to."""
    return f"workflow:{workflow_id}"


def workflow_id_of(subject: str) -> str:
    """Empty when the run is none of a workflow."""
    kind, _, workflow_id = subject.partition(":")
    return workflow_id if kind == "workflow" else ""


def exported(resource: Resource) -> dict[str, Any]:
    """The workflow as an item of a bundle: no ids, history, status, webhooks or credentials."""
    document = document_of(resource)
    return {name: getattr(document, name) for name in EXPORTED}
