"""OpenTelemetry as its own variables ask for it: the same in the gateway and in every host.

Exporter, endpoint, sampler and resource come from the OTEL_* variables, read by the library itself; the
library comes with the extra ``otel`` and is imported by whoever wants traces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.id_generator import IdGenerator


NEEDS_EXTRA = "needs the extra otel: heliograph[otel]"


class Untraceable(ValueError):
    """Traces are asked for and can't be given. ``exporter``: as asked for."""

    def __init__(self, exporter: str, rule: str) -> None:
        super().__init__(exporter, rule)
        self.exporter = exporter
        self.rule = rule


def traces_wanted(env: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's own variables ask for traces."""
    if env.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = env.get("OTEL_TRACES_EXPORTER", "").lower()
    if exporter:
        return exporter != "none"
    return bool(env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


def trace_provider(env: Mapping[str, str], ids: Callable[[], IdGenerator] | None = None) -> TracerProvider:
    """A provider that exports as the environment says; ``ids`` makes the ids of its spans.

    Raises: Untraceable when the extra isn't installed, or the exporter is unknown.
    """
    wanted = env.get("OTEL_TRACES_EXPORTER", "").lower() or "otlp"
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
    except ImportError:
        raise Untraceable(wanted, NEEDS_EXTRA) from None
    exporters: dict[str, Any] = {"otlp": OTLPSpanExporter, "console": ConsoleSpanExporter}
    if wanted not in exporters:
        raise Untraceable(wanted, "otlp, console or none")
    named = {} if env.get("OTEL_SERVICE_NAME") else {"service.name": "heliograph"}
    provider = TracerProvider(resource=Resource.create(named), id_generator=None if ids is None else ids())
    provider.add_span_processor(BatchSpanProcessor(exporters[wanted]()))
    return provider
