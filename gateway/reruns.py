"""An execution again, over only the items that failed in one of its wide maps.

The new execution has the same flow version and input. The failed items come with it as a file whose id
names the map (`runtime.items_file`), and the map goes over that in place of its source.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.map_outcomes import MapOutcomes, MapRun
from runtime.commands import StartExecution
from runtime.datasets import JSON_LINES, ItemFailure, write_lines
from runtime.errors import InvalidInput, Refused
from runtime.events import BlobRef, FileDescriptor
from runtime.items_file import items_file_id
from runtime.state import TERMINAL

if TYPE_CHECKING:
    from gateway.context import Gateway
    from projections.execution_summary import ExecutionRow
    from runtime.administration import Cause


class Reruns:
    """Lives on the event loop, one for a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._outcomes = MapOutcomes(gateway.log, gateway.blobs)

    async def node(self, row: ExecutionRow, named: str) -> str:
        """The wide map that is meant. Raises: InvalidInput when ``named`` is none, or it isn't clear."""
        maps = await asyncio.to_thread(self._outcomes.maps, row.execution_id)
        if named:
            if named not in maps:
                raise InvalidInput((("node", "names no map that has recorded chunks of items"),))
            return named
        failed = [node for node, count in maps.items() if count]
        if len(failed) > 1:
            raise InvalidInput((("node", f"several maps have failed items: {', '.join(sorted(failed))}"),))
        if failed:
            return failed[0]
        if not maps:
            raise Refused("it has no map that recorded chunks of items")
        return next(iter(maps))

    def failures(self, row: ExecutionRow, node: str, after: int = -1) -> Iterator[ItemFailure]:
        """The failed items behind the place ``after``, in order. Blocking."""
        return self._outcomes.failures(MapRun(row.execution_id, node), after)

    async def start(self, row: ExecutionRow, node: str, execution_id: str, cause: Cause) -> int:
        """Start the execution over the failed items, and tell their number; the same id again is harmless.

        Raises: Refused while the execution goes on, or when no item failed; Overloaded, Unavailable.
        """
        if row.status not in TERMINAL:
            raise Refused(f"the execution is {row.status}; its failed items are run again once it has ended")
        items, count = await asyncio.to_thread(self._file, row, node)
        if not count:
            raise Refused("no item has failed")
        gateway = self._gateway
        given: Any = msgspec.json.decode(row.input) if row.input_ref is None else None
        ref = None if row.input_ref is None else msgspec.json.decode(row.input_ref, type=BlobRef)
        files = msgspec.json.decode(row.files, type=tuple[FileDescriptor, ...])
        file_id = items_file_id(node)
        failed = FileDescriptor(
            file_id=file_id,
            name="failed.jsonl",
            content_type=JSON_LINES,
            size=items.size,
            sha256=items.sha256,
            uri=f"artifact://{execution_id}/{file_id}",
        )
        command = StartExecution(
            at=gateway.clock(),
            by=cause.by,
            cause=cause.cause,
            execution_id=execution_id,
            tenant=row.tenant,
            flow_id=row.flow_id,
            flow_version=row.flow_version,
            source=row.source,
            input=given,
            input_ref=ref,
            correlation_id=row.correlation_id or row.execution_id,
            queue_key=row.queue_key,
            priority=row.priority,
            files=(*(file for file in files if file.file_id != file_id), failed),
        )
        await gateway.executions.start(command)
        return count

    def _file(self, row: ExecutionRow, node: str) -> tuple[BlobRef, int]:
        count = 0

        def lines() -> Iterator[bytes]:
            nonlocal count
            for failure in self.failures(row, node):
                count += 1
                yield bytes(failure.item)

        return write_lines(self._gateway.blobs, lines()), count
