"""The secrets that sign callbacks, and the headers they sign (gateway rule G9).

The format is that of standard-webhooks, so receivers can use its libraries: a secret reads
``whsec_<base64>``, a signature ``v1,<base64 HMAC-SHA256(secret, id "." timestamp "." body)>``. To replace a
secret, name the new one and the old one for a while: each callback then carries both signatures.
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets as randomness
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from standardwebhooks import Webhook

from runtime.ids import SECOND, Micros

FILE_NAME = "webhook-secret"
SECRET_PREFIX = "whsec_"
SECRET_BYTES = 32
SECRET_BYTES_MIN = 24
"""standard-webhooks asks for 24 to 64 bytes; a longer one harms nobody."""


class Signatures:
    """Signs bodies with every secret in force, in the order given.

    Raises: ValueError when there is none, or for one that is not `whsec_` and 24 bytes or more in base64.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        if not secrets:
            raise ValueError("callbacks need at least one secret")
        self._signers = [Webhook(_key(secret)) for secret in secrets]

    def headers(self, message_id: str, at: Micros, attempt: int, body: bytes) -> dict[str, str]:
        """The headers of one attempt. ``message_id`` is the same for every attempt of one callback."""
        moment = datetime.fromtimestamp(at // SECOND, UTC)
        text = body.decode()
        return {
            "Content-Type": "application/json",
            "Webhook-Id": message_id,
            "Webhook-Timestamp": str(at // SECOND),
            "Webhook-Attempt": str(attempt),
            "Webhook-Signature": " ".join(signer.sign(message_id, moment, text) for signer in self._signers),
        }


def _key(secret: str) -> bytes:
    text = secret.removeprefix(SECRET_PREFIX)
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        key = b""
    if text == secret or len(key) < SECRET_BYTES_MIN:
        # The secret itself must not show up in a log.
        raise ValueError(
            f"a callback secret is {SECRET_PREFIX} and {SECRET_BYTES_MIN} bytes or more in base64"
        )
    return key


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(randomness.token_bytes(SECRET_BYTES)).decode()


def stored_secret(data_dir: str | Path) -> str:
    """The secret of an installation that names none: made once, kept in ``data_dir``, mode 0600.

    Gateways that don't share the folder don't share the secret; name one in their settings.
    """
    path = Path(data_dir) / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{FILE_NAME}.{os.getpid()}")
    if not path.exists():
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(new_secret() + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            # A link, unlike a rename, does not replace what another gateway put there meanwhile.
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text().strip()
