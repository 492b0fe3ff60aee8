"""The contracts, one module (or package) each, and the one table of them.

Adding one: its file, and a line in `DIALECTS`. A dialect imports neither another dialect nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.dialects import executions
from gateway.routes import Dialect
from gateway.settings import Settings

DIALECTS: tuple[Callable[[Settings], Dialect], ...] = (executions.dialect,)
"""Each builds one contract's envelope and resources from the settings."""
