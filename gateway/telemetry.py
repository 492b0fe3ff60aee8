"""Logs and traces. Logs: structlog, one JSON object a line on standard error. Traces: OpenTelemetry, off
unless its usual environment variables name an exporter and the extra `otel` is installed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import ASGIApp, Scope

from actors import structured_logs
from gateway.settings import SettingFault, Settings


def configure_logging(settings: Settings) -> None:
    """Send structlog's records and the standard library's to standard error, in one format."""
    form = "json" if settings.log_format == "json" else "text"
    structured_logs.configure(logging.StreamHandler(sys.stderr), settings.log_level, form)
    level = logging.getLogger().level
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, level))


def traces_wanted(env: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's own variables ask for traces."""
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = env.get("OTEL_TRACES_EXPORTER", "").lower()
    if exporter:
        return exporter != "none"
    return bool(env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


def _span_details(scope: Scope) -> tuple[str, dict[str, str]]:
    return scope.get("method", "HTTP"), {}


def tracing(env: Mapping[str, str]) -> Callable[[ASGIApp], ASGIApp]:
    """What puts a span around each request, if the environment asks for traces; else what does nothing.

    Exporter, endpoint, sampler and resource come from the OTEL_* variables, read by the library itself.
    Raises: SettingFault when traces are asked for and the extra isn't installed, or the exporter is unknown.
    """
    if not traces_wanted(env):
        return lambda app: app
    wanted = env.get("OTEL_TRACES_EXPORTER", "").lower() or "otlp"
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ImportError:
        raise SettingFault("OTEL_TRACES_EXPORTER", wanted, "needs the extra otel: heliograph[otel]") from None
    exporters: dict[str, Any] = {"otlp": OTLPSpanExporter, "console": ConsoleSpanExporter}
    if wanted not in exporters:
        raise SettingFault("OTEL_TRACES_EXPORTER", wanted, "otlp, console or none")
    named = {} if env.get("OTEL_SERVICE_NAME") else {"service.name": "heliograph"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(exporters[wanted]()))
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
