"""Libraries that an installation may lack: imported when first needed, with a word on what to install."""

import importlib
from typing import Any


class NotInstalled(ValueError):
    """What was asked for needs a library that is not there; the message names it and what brings it."""


def pyarrow(purpose: str) -> Any:
    """PyArrow with its ``parquet`` and ``ipc`` modules. Raises: NotInstalled."""
    for module in ("pyarrow.parquet", "pyarrow.ipc"):
        _imported(module, f"{purpose} needs pyarrow: install heliograph[parquet]")
    return _imported("pyarrow", "")


def numpy(purpose: str) -> Any:
    """Raises: NotInstalled."""
    return _imported("numpy", f"{purpose} needs numpy: install it where the workers run")


def pandas(purpose: str) -> Any:
    """Raises: NotInstalled."""
    return _imported("pandas", f"{purpose} needs pandas: install it where the workers run")


def _imported(module: str, message: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NotInstalled(message or str(error)) from error
