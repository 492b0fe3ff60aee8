"""Logs and traces. Logs: structlog, one JSON object a line on standard error. Traces: OpenTelemetry, off
unless its usual environment variables name an exporter and the extra `otel` is installed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping

from starlette.types import ASGIApp, Scope

from actors import structured_logs
from actors.trace_provider import NEEDS_EXTRA, Untraceable, trace_provider, traces_wanted
from gateway.settings import SettingFault, Settings


def configure_logging(settings: Settings) -> None:
    """Send structlog's records and the standard library's to standard error, in one format."""
    form = "json" if settings.log_format == "json" else "text"
    structured_logs.configure(logging.StreamHandler(sys.stderr), settings.log_level, form)
    level = logging.getLogger().level
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, level))


def _span_details(scope: Scope) -> tuple[str, dict[str, str]]:
    return scope.get("method", "HTTP"), {}


def tracing(env: Mapping[str, str]) -> Callable[[ASGIApp], ASGIApp]:
    """What puts a span around each request, if the environment asks for traces; else what does nothing.

    Exporter, endpoint, sampler and resource come from the OTEL_* variables, read by the library itself.
    Raises: SettingFault when traces are asked for and the extra isn't installed, or the exporter is unknown.
    """
    if not traces_wanted(env):
        return lambda app: app
    try:
        from opentelemetry import trace
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        provider = trace_provider(env)
    except ImportError:
        raise SettingFault("OTEL_TRACES_EXPORTER", "otlp", NEEDS_EXTRA) from None
    except Untraceable as fault:
        raise SettingFault("OTEL_TRACES_EXPORTER", fault.exporter, fault.rule) from None
    trace.set_tracer_provider(provider)

    def traced(app: ASGIApp) -> ASGIApp:
        return OpenTelemetryMiddleware(
            app,
            tracer_provider=provider,
            excluded_urls="health,ready,metrics",
            # The path holds ids; the method alone keeps the number of span names small.
            default_span_details=_span_details,
            exclude_spans=["receive", "send"],
        )

    return traced
