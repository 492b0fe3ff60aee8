"""A span around every try of a model call and around every tool call, by the GenAI semantic conventions.

Off unless the usual OTEL_* variables ask for traces. Spans hold names, counts and outcomes, never content.
All spans of an execution are of one trace, whose id comes from the execution's: a run that goes on in another
process after a crash goes on in the same trace.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Literal
from uuid import UUID

import structlog

from actors.step_journal import StepJournal
from actors.trace_provider import Untraceable, trace_provider, traces_wanted
from runtime.commands import Usage

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.trace import Span

log = structlog.stdlib.get_logger(__name__)

FLUSH_MILLISECONDS_MAX = 3_000

_execution: ContextVar[str] = ContextVar("execution whose span is about to begin")


class CallSpan:
    """What may be told of a call before its span ends; tells nobody when traces are off."""

    def __init__(self, span: Span | None = None) -> None:
        self._span = span

    def used(self, usage: Usage) -> None:
        """What a model call took."""
        if self._span is None:
            return
        self._span.set_attributes(
            {
                "gen_ai.response.model": usage.model,
                "gen_ai.usage.input_tokens": usage.input_tokens,
                "gen_ai.usage.output_tokens": usage.output_tokens,
                "gen_ai.usage.cache_read.input_tokens": usage.cache_read_tokens,
                "gen_ai.usage.cache_creation.input_tokens": usage.cache_write_tokens,
            }
        )

    def failed(self, error_type: str) -> None:
        """The call ended in an error that is its answer, or that is raised."""
        if self._span is None:
            return
        from opentelemetry.trace import StatusCode

        # The type alone: an error's message may repeat what was sent.
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(StatusCode.ERROR)


_OFF = CallSpan()


class Spans:
    """Where the spans of one process go; nowhere without a provider."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer("heliograph.agents")

    @contextmanager
    def around(
        self,
        journal: StepJournal,
        step: str,
        operation: Literal["chat", "execute_tool"],
        subject: str,
        attributes: Mapping[str, str],
    ) -> Generator[CallSpan]:
        """A span ``<operation> <subject>``; what the block raises becomes its error."""
        if self._tracer is None:
            yield _OFF
            return
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind

        kind = SpanKind.CLIENT if operation == "chat" else SpanKind.INTERNAL
        execution_id = str(journal.execution.execution_id)
        shown = {
            **attributes,
            "gen_ai.operation.name": operation,
            "heliograph.execution.id": execution_id,
            "heliograph.node.id": journal.node_id,
            "heliograph.node.attempt": journal.attempt,
            "heliograph.step": step,
        }
        token = _execution.set(execution_id)
        try:
            # Roots all of them: a task's context may be one that another execution's call left behind.
            span = self._tracer.start_span(
                f"{operation} {subject}", context=Context(), kind=kind, attributes=shown
            )
        finally:
            _execution.reset(token)
        told = CallSpan(span)
        try:
            yield told
        except BaseException as error:
            told.failed(type(error).__name__)
            raise
        finally:
            span.end()

    @property
    def is_off(self) -> bool:
        return self._provider is None

    def flush(self) -> None:
        """Send what is still held; blocking, ``FLUSH_MILLISECONDS_MAX`` at most."""
        if self._provider is not None:
            self._provider.force_flush(FLUSH_MILLISECONDS_MAX)

    def close(self) -> None:
        """Send what is still held, and end the thread that sends; blocking."""
        if self._provider is not None:
            self._provider.shutdown()


def open_spans() -> Spans:
    """Spans as this process's environment asks for them. Without the library a run is worth more than its
    trace: said once in the log."""
    if not traces_wanted(os.environ):
        return Spans(None)
    try:
        return Spans(trace_provider(os.environ, _ids))
    except Untraceable as fault:
        log.warning("no traces of agents", exporter=fault.exporter, reason=fault.rule)
        return Spans(None)


def _ids() -> IdGenerator:
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class ExecutionIds(RandomIdGenerator):
        """The trace id of an execution's spans is its own: its last 56 bits are random, as samplers ask."""

        def generate_trace_id(self) -> int:
            return trace_id(_execution.get())

    return ExecutionIds()


def trace_id(execution_id: str) -> int:
    """The id of the trace that all spans of an execution are of."""
    try:
        return UUID(execution_id).int
    except ValueError:
        return int.from_bytes(sha256(execution_id.encode()).digest()[:16], "big")


_shared = cache(open_spans)
"""One provider a process, made with its first call."""


def model_span(
    journal: StepJournal, step: str, model: str, provider: str
) -> AbstractContextManager[CallSpan]:
    """Around one try of a model call. ``provider``: as the library names it, e.g. ``openai``."""
    return _shared().around(
        journal, step, "chat", model, {"gen_ai.request.model": model, "gen_ai.provider.name": provider}
    )


def tool_span(journal: StepJournal, step: str, tool: str, call_id: str) -> AbstractContextManager[CallSpan]:
    """Around one tool call. ``call_id``: the model's own."""
    return _shared().around(
        journal, step, "execute_tool", tool, {"gen_ai.tool.name": tool, "gen_ai.tool.call.id": call_id}
    )


def flush_spans() -> None:
    """Send what this process still holds; blocking, ``FLUSH_MILLISECONDS_MAX`` at most."""
    _shared().flush()
