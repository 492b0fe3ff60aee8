"""Which server, and which key: arguments, else the environment, else the file that a server here keeps.

One rule for the command line and the Python client.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

URL_KEY, API_KEY_KEY = "HELIOGRAPH_URL", "HELIOGRAPH_API_KEY"


class Target(NamedTuple):
    """``was_named``: a person or the environment chose the address, so nothing else may answer instead."""

    url: str
    api_key: str
    was_named: bool


def find_target(url: str | None, api_key: str | None, environment: Mapping[str, str]) -> Target:
    """Where to send requests, and with which key ('' when there is none).

    Raises: ValueError for what is no http or https address; SettingFault for a setting that can't be used.
    """
    # Here, because every command of the command line imports this module, and few ask.
    from gateway.credentials import read_credentials
    from gateway.settings import Settings

    url = url or environment.get(URL_KEY)
    api_key = api_key or environment.get(API_KEY_KEY)
    settings = Settings.from_env(environment)
    kept = read_credentials(settings.data_dir)
    address = (url or (kept.url if kept else f"http://{settings.host}:{settings.port}")).rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"{address!r} is no http or https address")
    # A key that was kept for one server is never sent to another.
    kept_key = kept.api_key if kept and kept.url.rstrip("/") == address else ""
    return Target(address, api_key or kept_key, bool(url))
