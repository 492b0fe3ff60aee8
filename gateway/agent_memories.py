"""What runs found worth keeping becomes memories of their agent.

Every gateway follows the log for completed runs; a memory's id is made of its run's, so following twice, or
in two gateways, is harmless. Before an agent's next run on the same subject is put together, the run before
is settled at once: a caller finds what was just learnt.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from gateway.agent_documents import MEMORY
from gateway.builtin_flows import AGENT_ID, AGENT_RUN
from gateway.following import Following, supervise
from projections import execution_summary
from runtime import events
from runtime.administration import Cause
from runtime.errors import AlreadyExists
from runtime.ids import Micros

if TYPE_CHECKING:
    from gateway.context import Gateway
    from gateway.run_view import RunView
    from projections.execution_summary import ExecutionRow

READER = "memories"
"""Name of the tracking position."""

MEMORIES_OF_RUN_MAX = 20
TEXT_CHARS_MAX = 4_000

_ASKED = '"auto_memory":true'


class Memories:
    """``run`` follows the log until cancelled; ``settle`` keeps what one run found."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._following = Following(gateway.log, gateway.store, READER, (events.Completed.TOPIC,))

    async def run(self) -> None:
        await supervise(READER, self.follow_once)

    async def follow_once(self) -> bool:
        """Keep what the next page of completed runs found; True when there may be more."""
        page = await asyncio.to_thread(self._following.page)
        if page is None:
            return False
        ids = [each.originator_id for each in page.events]
        rows = await asyncio.to_thread(execution_summary.get_many, self._gateway.store, ids) if ids else {}
        kept = 0
        for row in rows.values():
            kept += await self.settle(row)
        await asyncio.to_thread(self._following.followed, page, track=kept > 0)
        return page.more

    async def settle(self, row: ExecutionRow) -> int:
        """How many memories the run has now; 0 for one that kept none, or goes on."""
        if not _may_have(row):
            return 0
        return await self.keep(row, await self._gateway.agent_runs.view(row))

    async def keep(self, row: ExecutionRow, view: RunView) -> int:
        given: Any = view.input
        agent_id = cast("dict[str, Any]", given).get(AGENT_ID) if isinstance(given, dict) else None
        if not agent_id:
            return 0
        found = [text.strip() for text in view.memories if text.strip()][:MEMORIES_OF_RUN_MAX]
        cause = Cause(at=Micros(view.ended_at or row.updated_at), by=row.by, cause=row.execution_id)
        for number, text in enumerate(found, 1):
            memory = {
                "text": text[:TEXT_CHARS_MAX],
                "parent": str(agent_id),
                "execution_id": row.execution_id,
                "subject": row.subject,
            }
            try:
                await self._gateway.registry.create(
                    row.tenant, MEMORY, memory, cause, f"{row.execution_id}-{number}"
                )
            except AlreadyExists:
                continue  # kept before, here or in another gateway; or forgotten on purpose since
        return len(found)


def _may_have(row: ExecutionRow) -> bool:
    if row.status != "completed" or row.flow_id != AGENT_RUN:
        return False
    return row.input_ref is not None or _ASKED in row.input
