"""Settings as a command needs them: a fault in the environment ends it with one line."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gateway.cli.failures import usage

if TYPE_CHECKING:
    from gateway.settings import Settings


def load_settings(**overrides: str | int | None) -> Settings:
    """The environment's settings; ``overrides`` (field to value, None = not given) win over it."""
    from gateway.settings import PREFIX, Settings

    env = dict(os.environ)
    env |= {PREFIX + name.upper(): str(value) for name, value in overrides.items() if value is not None}
    with faults_told():
        return Settings.from_env(env)


@contextmanager
def faults_told() -> Generator[None]:
    """A setting that can't be used, as the mistake in the command that it is."""
    from gateway.settings import SettingFault

    try:
        yield
    except SettingFault as fault:
        raise usage(str(fault), "Change or unset it; the README lists every setting.") from None
