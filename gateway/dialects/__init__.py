"""The contracts, one module (or package) each, and the one table of them.

Adding one: its file, and a line in `DIALECTS`. A dialect imports neither another dialect nor Ray.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from gateway.dialects import ability, admin, audit, executions, external, workflows
from gateway.routes import Dialect
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.context import Gateway
    from projections.execution_summary import ExecutionRow

DIALECTS: tuple[Callable[[Settings], Dialect], ...] = (
    executions.dialect,
    ability.dialect,
    admin.dialect,
    audit.dialect,
    workflows.dialect,
    workflows.agents,
    workflows.skills,
    workflows.guardrails,
    workflows.tasks,
    external.dialect,
)
"""Each builds one contract's envelope and resources from the settings."""

CALLBACK_BODIES: Mapping[str, Callable[[Gateway, ExecutionRow], Awaitable[bytes]]] = {
    ability.SOURCE: ability.render_callback,
    workflows.SOURCE: workflows.render_webhook,
}
"""By an execution's source: what its callback carries. A dialect without callbacks is not here."""

CALLBACK_URLS: Mapping[str, Callable[[Gateway, ExecutionRow], str]] = {
    workflows.SOURCE: workflows.webhook_of,
}
"""By an execution's source: which URL is told, where its ``callback_url`` is not simply the one. Blocking."""
