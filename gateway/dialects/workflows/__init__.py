"""Workflows API, `/api/workflows`, and its companion paths (workflows contract).

Start reading at `routes`; `wire` holds the contract's words, `bodies` what requests may hold, `workflows` the
resource, `prompts` how a run comes about, `views` and `stream` how it is shown.
"""

from gateway.dialects.workflows.companion_routes import agents, guardrails, skills
from gateway.dialects.workflows.routes import dialect
from gateway.dialects.workflows.tasks import dialect as tasks
from gateway.dialects.workflows.webhooks import render_webhook, webhook_of
from gateway.dialects.workflows.wire import SOURCE

__all__ = ["SOURCE", "agents", "dialect", "guardrails", "render_webhook", "skills", "tasks", "webhook_of"]
