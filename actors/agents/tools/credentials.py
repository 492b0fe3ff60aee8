"""The secrets of one run: looked up by name at the moment of a call, and kept in no record.

In headers and environments, ``{secret:NAME}`` stands for a value. ``NAME`` is first
looked for among the run's ``secrets`` (environment name to secret name: a workflow's
``credential_overrides``), then it is the secret's own name. Every value that was looked up is told to the
run's ``Redactor``.
"""

import asyncio
import re
from collections.abc import Mapping
from typing import Protocol

from actors.agents.tools.interface import ToolsUnavailable
from actors.agents.tools.redaction import Redactor
from runtime.errors import DomainError, NotFound

_PLACEHOLDER = re.compile(r"\{secret:([^{}]{1,200})\}")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")


class SecretSource(Protocol):
    """Where secrets are kept (``runtime.vault.Vault``). Blocking."""

    def get(self, tenant: str, name: str) -> str:
        """Raises: NotFound."""
        ...


class Credentials:
    """Of one tenant and one run. ``overrides``: environment name to secret name."""

    def __init__(self, source: SecretSource, tenant: str, overrides: Mapping[str, str]) -> None:
        self._source = source
        self._tenant = tenant
        self._overrides = overrides
        self._known: dict[str, str] = {}
        self.redactor = Redactor()

    async def value(self, name: str) -> str:
        """The value of the secret called ``name``. Raises: ToolsUnavailable of kind SecretNotFound."""
        if name not in self._known:
            try:
                found = await asyncio.to_thread(self._source.get, self._tenant, name)
            except NotFound:
                raise ToolsUnavailable("SecretNotFound", f"there is no secret called {name}") from None
            except DomainError as error:
                raise ToolsUnavailable(type(error).__name__, f"secret {name}: {error}") from None
            self.redactor.add(found)
            self._known[name] = found
        return self._known[name]

    async def fill(self, text: str) -> str:
        """``text`` with the value for each ``{secret:NAME}``. Raises: as ``value``."""
        filled: list[str] = []
        end = 0
        for place in _PLACEHOLDER.finditer(text):
            name = place.group(1)
            filled += [text[end : place.start()], await self.value(self._overrides.get(name, name))]
            end = place.end()
        return "".join([*filled, text[end:]])

    async def fill_all(self, texts: Mapping[str, str]) -> dict[str, str]:
        return {name: await self.fill(text) for name, text in texts.items()}

    async def environment(self) -> dict[str, str]:
        """What ``overrides`` adds to the environment of a process. Raises: as ``value``; InvalidTool."""
        for name in self._overrides:
            if not _ENVIRONMENT_NAME.fullmatch(name):
                raise ToolsUnavailable("InvalidTool", f"{name[:80]!r} can't be an environment variable")
        return {name: await self.value(secret) for name, secret in self._overrides.items()}
