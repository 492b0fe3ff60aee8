"""The routes of the External API, and the two that tell about itself (external contract, sections 3 to 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from gateway.dialects.external import agents, analysis, docs, execution, tasks
from gateway.dialects.external.chat import Chats
from gateway.dialects.external.wire import ENVELOPE, PREFIX, VERSION, iso, success
from gateway.envelopes import Problem
from gateway.keys import READ, RUN
from gateway.routes import Dialect, Operation, Resource
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.call import Call


async def health(call: Call) -> Response:
    runtime = call.gateway.runtime
    if runtime is None or not runtime.readiness().is_ready:
        raise Problem("unavailable")
    answer = {
        "status": "healthy",
        "timestamp": iso(call.gateway.clock()),
        "version": VERSION,
        "service": "mcp-server-external-api",
    }
    return success(answer)


async def info(call: Call) -> Response:
    answer = {
        "name": "MCP Server External API",
        "version": VERSION,
        "description": "External API for MCP Server Agent execution and management",
        "endpoints": {"agents": f"{PREFIX}/agents", "tasks": f"{PREFIX}/tasks"},
    }
    return success(answer)


def dialect(settings: Settings) -> Dialect:
    chats = Chats()
    agent, task = f"{PREFIX}/agents/{{agent_id}}", f"{PREFIX}/tasks/{{task_id}}"
    resources = (
        Resource(f"{PREFIX}/health", {"GET": Operation(handler=health, scope="", doc=docs.HEALTH)}),
        Resource(f"{PREFIX}/info", {"GET": Operation(handler=info, scope=READ, doc=docs.INFO)}),
        Resource(
            f"{PREFIX}/agents",
            {
                "GET": Operation(handler=agents.list_agents, scope=READ, doc=docs.LIST_AGENTS),
                "POST": Operation(handler=agents.create_agent, scope=RUN, doc=docs.CREATE_AGENT),
            },
        ),
        Resource(agent, {"GET": Operation(handler=agents.show_agent, scope=READ, doc=docs.SHOW_AGENT)}),
        Resource(
            f"{agent}/execute",
            {"POST": Operation(handler=execution.execute_agent, scope=RUN, doc=docs.EXECUTE_AGENT)},
        ),
        Resource(
            f"{agent}/execute/stream",
            {
                "POST": Operation(
                    handler=execution.stream_agent, scope=RUN, doc=docs.STREAM_AGENT, streams=True
                )
            },
        ),
        Resource(
            f"{agent}/cancel/{{execution_id}}",
            {"POST": Operation(handler=execution.cancel_agent, scope=RUN, doc=docs.CANCEL_AGENT)},
        ),
        Resource(f"{agent}/chat", {"POST": Operation(handler=chats.chat, scope=RUN, doc=docs.CHAT)}),
        Resource(
            f"{PREFIX}/tasks",
            {
                "GET": Operation(handler=tasks.list_tasks, scope=READ, doc=docs.LIST_TASKS),
                "POST": Operation(handler=tasks.create_task, scope=RUN, doc=docs.CREATE_TASK),
            },
        ),
        Resource(task, {"GET": Operation(handler=tasks.show_task, scope=READ, doc=docs.SHOW_TASK)}),
        Resource(
            f"{task}/analyze",
            {"POST": Operation(handler=analysis.analyze_task, scope=RUN, doc=docs.ANALYZE)},
        ),
        Resource(
            f"{task}/execute",
            {"POST": Operation(handler=execution.execute_task, scope=RUN, doc=docs.EXECUTE_TASK)},
        ),
        Resource(
            f"{task}/execute/stream",
            {"POST": Operation(handler=execution.stream_task, scope=RUN, doc=docs.STREAM_TASK, streams=True)},
        ),
        Resource(
            f"{task}/cancel/{{execution_id}}",
            {"POST": Operation(handler=execution.cancel_task, scope=RUN, doc=docs.CANCEL_TASK)},
        ),
        Resource(
            f"{task}/executions",
            {"GET": Operation(handler=execution.list_executions, scope=READ, doc=docs.EXECUTIONS)},
        ),
    )
    return Dialect("external", ENVELOPE, resources)
