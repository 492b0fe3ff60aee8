"""The credentials file: how the command line on this machine finds the server and its first key.

A server on the embedded default writes it once it listens; it stands in the data directory, readable by
its owner alone. It holds the only copy of the first key's secret, so it is never overwritten with less.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

FILE_NAME = "credentials.json"


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """``url`` of the server as it last started; ``api_key``: the secret of its first (admin) key."""

    url: str
    api_key: str


def credentials_path(data_dir: str | Path) -> Path:
    return Path(data_dir) / FILE_NAME


def read_credentials(data_dir: str | Path) -> Credentials | None:
    """What the file holds; None when there is none or it can't be read as one."""
    try:
        return msgspec.json.decode(credentials_path(data_dir).read_bytes(), type=Credentials)
    except (OSError, msgspec.DecodeError):
        return None


def write_credentials(data_dir: str | Path, credentials: Credentials) -> Path:
    """Write the file whole or not at all, mode 0600."""
    path = credentials_path(data_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two servers that start at once from writing into one another's file.
    draft = path.with_name(f".{FILE_NAME}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(credentials) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return path
