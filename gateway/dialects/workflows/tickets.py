"""Tickets: what lets an EventSource, which can't send headers, follow one workflow (contract 3.6, 3.8).

A ticket is ``<payload>.<signature>``: it names the workflow and the key it was made for, and is signed with a
key derived from the installation's webhook secret, so every gateway of an installation honours the tickets of
the others and nothing is stored.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from gateway.settings import Settings
from gateway.webhook_signing import stored_secret
from runtime.ids import SECOND, Micros

TICKET_SECONDS = 600
"""How long a ticket opens streams; one that is open stays so."""

_PURPOSE = b"heliograph stream ticket v1"


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """``key_id``: on whose behalf the stream is read; its limits apply."""

    tenant: str
    workflow_id: str
    key_id: str
    expires_at: int


class Tickets:
    """Signs with the first of ``secrets``, and honours all of them, so that one can be replaced.

    They are shared by the gateways of an installation.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = [hmac.digest(secret.encode(), _PURPOSE, "sha256") for secret in secrets]

    def issue(self, tenant: str, workflow_id: str, key_id: str, at: Micros) -> str:
        ticket = Ticket(tenant, workflow_id, key_id, at + TICKET_SECONDS * SECOND)
        payload = msgspec.json.encode(ticket)
        return f"{_text(payload)}.{_text(hmac.digest(self._keys[0], payload, 'sha256'))}"

    def check(self, text: str, workflow_id: str, at: Micros) -> Ticket | None:
        """The ticket, if it was made here for this workflow and hasn't expired."""
        payload, _, signature = text.partition(".")
        try:
            data, given = _data(payload), _data(signature)
        except ValueError:
            return None
        if not any(hmac.compare_digest(hmac.digest(key, data, "sha256"), given) for key in self._keys):
            return None
        ticket = msgspec.json.decode(data, type=Ticket)
        return ticket if ticket.workflow_id == workflow_id and at < ticket.expires_at else None


@lru_cache(maxsize=8)
def installation_tickets(settings: Settings) -> Tickets:
    """Blocks the first time; the secret is made when the gateway starts."""
    return Tickets(settings.webhook_secrets or (stored_secret(settings.data_dir),))


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _data(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
