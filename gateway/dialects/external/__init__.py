"""External API, `/api/external` (external contract).

Start reading at `routes`. `wire` holds the contract's words, `records` what is kept of tasks and agents.
A task's way: `analysis` makes its plan, `plan_flow` makes the plan a flow, `execution` runs that, `stream`
and `history` tell it. `chat` is for conversations with an agent.
"""

from gateway.dialects.external.routes import dialect
from gateway.dialects.external.wire import SOURCE

__all__ = ["SOURCE", "dialect"]
