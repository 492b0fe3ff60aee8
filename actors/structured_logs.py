"""One format for the logs of every process of ours: JSON lines, or text for a person at a terminal.

The gateway writes to standard error. A host has none that anybody sees (Ray keeps it in a file of its
session), so on one machine it writes to a file in the data folder, which is bounded.
"""

import logging
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Literal

import structlog

FILE_BYTES_MAX = 10 * 1024 * 1024
FILES_KEPT = 2
"""Full log files kept beside the one being written."""

QUIET = ("uvicorn.access", "sse_starlette", "asyncio", "httpx", "httpcore", "fsspec")
"""Libraries that would write a line for each request or frame: not even on debug."""

Format = Literal["json", "text"]


def configure(handler: logging.Handler, level: str, form: Format) -> None:
    """Send structlog's records and the standard library's through ``handler``. ``level``: e.g. ``info``."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: Any
    if form == "json":
        shared.append(structlog.processors.format_exc_info)
        last = structlog.processors.JSONRenderer()
    else:
        last = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def configure_host(path: str, level: str) -> None:
    """For a host's process: JSON lines into the file ``path``, or to standard error when it is ``-``."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if path != "-":
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT, encoding="utf-8")
    configure(handler, level, "json")
