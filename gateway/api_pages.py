"""The pages that describe the API: `/docs`, `/redoc`, `/openapi.json`. FastAPI serves them.

In a module of its own because importing FastAPI takes a quarter of a second of CPU, which no start of the
server should wait for: `gateway.app` loads this with the first request that no contract owns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.types import ASGIApp

Document = Callable[[], dict[str, Any]]
"""Gives the OpenAPI document."""


class _ApiPages(FastAPI):
    def __init__(self, document: Document, version: str) -> None:
        super().__init__(title="Heliograph", version=version, redirect_slashes=False)
        self._document = document

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            self.openapi_schema = self._document()
        return self.openapi_schema


def api_pages(document: Document, version: str) -> ASGIApp:
    """The pages, without middleware: the chassis in front of them does what FastAPI's would."""
    # FastAPI's routes need this one layer of its usual stack.
    return AsyncExitStackMiddleware(_ApiPages(document, version).router)
