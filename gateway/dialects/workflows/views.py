"""Workflows and tasks as the contract shows them: the document, and what its latest run did."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec

from gateway.context import Gateway
from gateway.dialects.workflows.documents import document_of, subject_of, workflow_id_of
from gateway.dialects.workflows.wire import (
    AGENT,
    WORKFLOW,
    LogObject,
    MessageObject,
    ProgressObject,
    TaskObject,
    TaskSummary,
    TodoObject,
    UsageObject,
    WorkflowObject,
    encode,
    is_unfinished,
    iso,
    iso_or_none,
    task_status,
)
from gateway.happenings import Logged, Progress, RunMessage, RunUsage
from gateway.registry import Resource
from gateway.run_view import RunView
from projections import execution_summary, run_counts
from projections.execution_summary import ExecutionRow
from runtime.ids import SECOND

Json = Any


class Views:
    """Reads and folds runs."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    # --- runs -------------------------------------------------------------------------------------------

    async def run(self, row: ExecutionRow) -> RunView:
        return await self._gateway.agent_runs.view(row)

    # --- workflows --------------------------------------------------------------------------------------

    async def workflow(self, resource: Resource) -> WorkflowObject:
        return (await self.workflows(resource.tenant, [resource]))[0]

    async def workflows(self, tenant: str, resources: Sequence[Resource]) -> list[WorkflowObject]:
        """In the order given."""
        store = self._gateway.store
        runs = [str(each.document.get("latest_run", "")) for each in resources]
        wanted = [execution_id for execution_id in runs if execution_id]
        subjects = [subject_of(each.resource_id) for each in resources]

        def read() -> tuple[Mapping[str, ExecutionRow], Mapping[str, int]]:
            rows = execution_summary.get_many(store, wanted) if wanted else {}
            return rows, run_counts.counts(store, tenant, subjects)

        rows, counts = await asyncio.to_thread(read)
        views = await asyncio.gather(*(self.run(row) for row in rows.values()))
        by_id = dict(zip(rows, views, strict=True))
        return [
            workflow_object(each, rows.get(run), by_id.get(run), counts.get(subject, 0))
            for each, run, subject in zip(resources, runs, subjects, strict=True)
        ]

    # --- tasks ------------------------------------------------------------------------------------------

    async def task(self, row: ExecutionRow) -> TaskObject:
        view = await self.run(row)
        summary = (await self.tasks([row]))[0]
        return TaskObject(
            **{name: getattr(summary, name) for name in TaskSummary.__struct_fields__},
            response=response_text(view),
            progress=progress_object(view.progress),
            logs=log_objects(view.logs),
            messages=message_objects(view.messages),
            usage=usage_object(view.usage),
        )

    async def tasks(self, rows: Sequence[ExecutionRow]) -> list[TaskSummary]:
        """In the order given; all of one tenant."""
        if not rows:
            return []
        tenant, registry = rows[0].tenant, self._gateway.registry
        views = await asyncio.gather(*(self.run(row) for row in rows))
        ids = [workflow_id_of(row.subject) for row in rows]
        workflows = {
            each.resource_id: document_of(each)
            for each in await registry.get_many(tenant, WORKFLOW, list(dict.fromkeys(ids)))
        }
        agent_ids = list(dict.fromkeys(each.agent_id for each in workflows.values()))
        names = {
            each.resource_id: str(each.document.get("name", ""))
            for each in await registry.get_many(tenant, AGENT, agent_ids)
        }
        now = self._gateway.clock()
        summaries: list[TaskSummary] = []
        for row, view, workflow_id in zip(rows, views, ids, strict=True):
            workflow = workflows.get(workflow_id)
            summaries.append(
                task_summary(
                    row,
                    view,
                    now,
                    title=None if workflow is None else workflow.title,
                    agent_name=None if workflow is None else names.get(workflow.agent_id),
                )
            )
        return summaries


def workflow_object(
    resource: Resource, row: ExecutionRow | None, view: RunView | None, task_count: int
) -> WorkflowObject:
    """``row`` and ``view``: of the latest run, None before the first."""
    document = document_of(resource)
    status = document.status
    if row is not None and is_unfinished(row) and status == "active":
        status = "running"
    kept = {name: getattr(document, name) for name in _KEPT_FIELDS}
    return WorkflowObject(
        **kept,
        id=resource.resource_id,
        session_id=resource.resource_id if document.infinite_session and row is not None else None,
        status=status,
        current_turn=0 if view is None else view.current_turn,
        usage=None if view is None else usage_object(view.usage),
        logs=[] if view is None else log_objects(view.logs),
        messages=[] if view is None else message_objects(view.messages),
        task_count=task_count,
        last_task_status=None if row is None else task_status(row, "" if view is None else view.stop_reason),
        last_task_at=None if row is None else iso(row.created_at),
        created_at=iso(resource.created_at),
        updated_at=iso(resource.updated_at),
    )


_KEPT_FIELDS = tuple(
    name
    for name in WorkflowObject.__struct_fields__
    if name
    not in {
        "id",
        "session_id",
        "status",
        "current_turn",
        "usage",
        "logs",
        "messages",
        "task_count",
        "last_task_status",
        "last_task_at",
        "created_at",
        "updated_at",
    }
)


def task_summary(
    row: ExecutionRow, view: RunView, now: int, *, title: str | None, agent_name: str | None
) -> TaskSummary:
    """``now``: for the elapsed time of one that still runs."""
    given = cast("dict[str, Json]", view.input) if isinstance(view.input, dict) else {}
    ended_at = row.cancel_requested_at if row.cancel_requested_at is not None else row.ended_at
    return TaskSummary(
        id=row.execution_id,
        workflow_id=workflow_id_of(row.subject),
        workflow_title=title,
        agent_name=agent_name,
        prompt=view.prompt,
        status=task_status(row, view.stop_reason),
        worker=row.owner or None,
        model=view.model or _text(given.get("model")),
        reasoning_effort=_text(given.get("reasoning_effort")),
        tool_calls=sum(message.role == "tool" for message in view.messages),
        started_at=iso_or_none(row.started_at),
        finished_at=iso_or_none(ended_at),
        elapsed_seconds=elapsed_seconds(row, now),
        created_at=iso(row.created_at),
    )


def elapsed_seconds(row: ExecutionRow, now: int) -> float | None:
    """From the start to the end, or to ``now``; None before the start."""
    if row.started_at is None:
        return None
    ended_at = row.cancel_requested_at if row.cancel_requested_at is not None else row.ended_at
    return ((now if ended_at is None else ended_at) - row.started_at) / SECOND


def response_text(view: RunView) -> str | None:
    """The answer of a completed run as text; an answer that is an object as JSON."""
    if view.status != "completed" or view.stop_reason:
        return None
    return text_of(view.answer)


def text_of(value: Json) -> str | None:
    return value if isinstance(value, str) or value is None else encode(value).decode()


def _text(value: Json) -> str | None:
    return value if isinstance(value, str) and value else None


# --- parts of them --------------------------------------------------------------------------------------


def usage_object(usage: RunUsage | None) -> UsageObject | None:
    if usage is None:
        return None
    return UsageObject(
        total_input_tokens=usage.input_tokens,
        total_output_tokens=usage.output_tokens,
        total_cache_read_tokens=usage.cache_read_tokens,
        total_cache_write_tokens=usage.cache_write_tokens,
        total_premium_requests=0.0,
        total_cost=usage.cost,
    )


def log_objects(logs: Iterable[Logged]) -> list[LogObject]:
    return [LogObject(iso(log.at), log.event, log_detail(log)) for log in logs]


def log_detail(log: Logged) -> str:
    """What a log says in one text: clients show it as it is."""
    detail = log.detail
    match log.event:
        case "prompt_received":
            return str(detail.get("prompt", ""))
        case "model_call":
            purpose = f" for {detail['purpose']}" if detail.get("purpose") else ""
            return f"Calling {detail.get('model') or 'the model'}{purpose}"
        case "model_response":
            calls = ", ".join(map(str, detail.get("tool_calls") or ()))
            return f"The model asks for {calls}" if calls else "The model answered"
        case "tool_call":
            return f"Calling {detail.get('tool')}"
        case "tool_result":
            failed = " failed" if detail.get("is_error") else " answered"
            return f"{detail.get('tool')}{failed}"
        case "thinking":
            return str(detail.get("text", ""))
        case "rate_limited" | "retrying":
            return f"{detail.get('error')}; again in {detail.get('retry_in_seconds')} s"
        case "error":
            return str(detail.get("error", ""))
        case "output_guardrail_violation":
            return "; ".join(map(str, detail.get("violations") or ()))
        case "completed" | "halted" | "max_turns_reached" if not detail:
            return _ENDS[log.event]
        case _:
            return encode(detail).decode() if detail else ""


_ENDS = {
    "completed": "The task is completed",
    "halted": "The task was halted",
    "max_turns_reached": "The task used up its turns",
}


def message_objects(messages: Iterable[RunMessage]) -> list[MessageObject]:
    return [message_object(message) for message in messages]


def message_object(message: RunMessage) -> MessageObject:
    calls: list[dict[str, Any]] = [
        {
            "id": call.tool_call_id,
            "type": "function",
            "function": {"name": call.name, "arguments": encode(call.arguments).decode()},
        }
        for call in message.tool_calls
    ]
    return MessageObject(
        role=message.role,
        content=text_of(message.content),
        tool_calls=calls or None,
        tool_call_id=message.tool_call_id or None,
        name=message.name or None,
    )


def progress_object(progress: Progress | None) -> ProgressObject | None:
    if progress is None:
        return None
    todos = [msgspec.convert(todo, TodoObject, strict=False) for todo in progress.todos]
    step: Any = progress.current_step
    return ProgressObject(todos, step if isinstance(step, int) else None, progress.percent_complete)
