"""Large answers stand in the blob store; an event then holds a reference to them."""

from actors.agents.home import AgentHome
from runtime.events import BlobRef, Json

_SMALL_CHARS = 8_000
"""A text this short can't exceed an event's room in any encoding; so it isn't encoded to find out."""


class ClaimCheck:
    def __init__(self, home: AgentHome) -> None:
        self._home = home

    async def check(self, value: Json) -> tuple[Json, BlobRef | None]:
        """``value`` and no reference, or none and the reference to where it is now.

        Raises: Unavailable when the blob store is away for long.
        """
        if value is None or (isinstance(value, str) and len(value) <= _SMALL_CHARS):
            return value, None
        ref = await self._home.store_if_large(value)
        return (value, None) if ref is None else (None, ref)

    async def read(self, value: Json, ref: BlobRef | None) -> Json:
        """What ``check`` was given. Raises: NotFound, Diverged, Unavailable."""
        return value if ref is None else await self._home.load(ref)
