"""Settings as a command needs them: a fault in the environment ends it with one line."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gateway.cli.failures import usage

if TYPE_CHECKING:
    from gateway.settings import Settings


def load_settings(**overrides: str | int | None) -> Settings:
    """The environment's settings; ``overrides`` (field to value, None = not given) win over it."""
    from gateway.settings import PREFIX, SettingFault, Settings

    env = dict(os.environ)
    env |= {PREFIX + name.upper(): str(value) for name, value in overrides.items() if value is not None}
    try:
        return Settings.from_env(env)
    except SettingFault as fault:
        raise usage(str(fault), "Change or unset it; the README lists every setting.") from None
