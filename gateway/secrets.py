"""Named secrets as the gateway keeps them: the value in the vault, who set or removed it when in the log.

A change is recorded before it is made, so that whatever stands in the vault has its event; when the process
dies in between, the caller got no answer and asks again. The event holds the name and the fingerprint of the
encrypted bytes, never anything of the value.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from gateway.registry import Registry, Resource
from runtime.administration import Cause
from runtime.errors import AlreadyExists, NotFound
from runtime.vault import Vault

KIND = "secret"
"""Kind of the resource that shows a secret's history; its id is the secret's name."""


class SecretInfo(msgspec.Struct, frozen=True):
    """A secret without its value. ``fingerprint`` changes whenever it is set. Times in microseconds, UTC."""

    name: str
    fingerprint: str
    created_at: int
    updated_at: int


class Secrets:
    """Lives on the event loop; the vault is used in threads."""

    def __init__(self, vault: Vault, registry: Registry) -> None:
        self._vault = vault
        self._registry = registry

    async def set(self, tenant: str, name: str, value: str, cause: Cause) -> tuple[SecretInfo, bool]:
        """The secret, and whether it is new. Raises: InvalidInput, Refused at the bound."""
        sealed = await asyncio.to_thread(self._vault.seal, tenant, name, value)
        is_new = name not in await self.names(tenant)
        recorded = await self._record(
            tenant, name, {"fingerprint": sealed.fingerprint, "removed": False}, cause
        )
        await asyncio.to_thread(self._vault.store, sealed)
        return _info(recorded), is_new

    async def remove(self, tenant: str, name: str, cause: Cause) -> SecretInfo:
        """Raises: NotFound."""
        if name not in await self.names(tenant):
            raise NotFound(f"no secret {name}")
        recorded = await self._record(tenant, name, {"fingerprint": "", "removed": True}, cause)
        await asyncio.to_thread(self._vault.remove, tenant, name)
        return _info(recorded)

    async def names(self, tenant: str) -> list[str]:
        """In order."""
        return await asyncio.to_thread(self._vault.names, tenant)

    async def missing(self, tenant: str, names: Iterable[str]) -> list[str]:
        """Those of ``names`` that are not set."""
        wanted = list(names)
        known = set(await self.names(tenant)) if wanted else set[str]()
        return [name for name in wanted if name not in known]

    async def listing(self, tenant: str) -> list[SecretInfo]:
        """By name."""
        names = await self.names(tenant)
        recorded = {one.resource_id: one for one in await self._registry.get_many(tenant, KIND, names)}
        # One put into the vault by other means (a restored folder) has no history here.
        return [_info(recorded[name]) if name in recorded else SecretInfo(name, "", 0, 0) for name in names]

    async def _record(self, tenant: str, name: str, fields: dict[str, str | bool], cause: Cause) -> Resource:
        try:
            return await self._registry.change(tenant, KIND, name, lambda _: fields, cause)
        except NotFound:
            pass
        try:
            return await self._registry.create(tenant, KIND, {"name": name, **fields}, cause, name)
        except AlreadyExists:  # another gateway set it for the first time just now
            return await self._registry.change(tenant, KIND, name, lambda _: fields, cause)


def _info(resource: Resource) -> SecretInfo:
    fingerprint = str(resource.document.get("fingerprint", ""))
    return SecretInfo(resource.resource_id, fingerprint, resource.created_at, resource.updated_at)
