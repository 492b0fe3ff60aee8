"""Asynchronous Execution API, `/v1/executions`: `routes`, the `stream`, and the wording (`wire`)."""

from __future__ import annotations

from gateway.dialects.executions.routes import SOURCE, dialect

__all__ = ["SOURCE", "dialect"]
