"""Carries out what a step asks for and says how it ended: the effects of pooled nodes.

Fault of the step (user code, a refused connection, a missing file) is an outcome; only cancellation is
raised. Each effect is bounded: time by the step's timeout, size by the constants below.
"""

import asyncio
from collections.abc import Callable
from typing import assert_never

import httpx
import msgspec

from actors.environment_pools import EnvironmentPools
from actors.local_files import path_below
from actors.patience import until_available
from actors.resource_tasks import Tell
from actors.source_files import SourceAccess
from actors.step_call import StepCall, StepOutcome
from actors.worker_pool import WorkerPool
from runtime.blob_store import BlobStore
from runtime.errors import DomainError, Overloaded
from runtime.events import BlobRef, FileDescriptor, Json, StepError
from runtime.ids import ExecutionId, NodeId
from runtime.packages import Code
from runtime.plan import (
    Action,
    CallFunction,
    CallTool,
    HttpRequest,
    MapOver,
    Output,
    ReadText,
    Resources,
    RunAgent,
    StartChild,
    Wait,
    WideMap,
)

HTTP_TIMEOUT_SECONDS = 60.0
"""For an http_request node without a timeout of its own."""

HTTP_BODY_BYTES_MAX = 8 * 1024 * 1024
TEXT_BYTES_MAX = 64 * 1024 * 1024
"""A larger file or answer fails the step and says so."""

BLOB_SECONDS_MAX = 300.0
"""How long the blob store may be away before what needs it fails."""

ROOM_WAIT_SECONDS = 0.25
"""Pause before a call is offered again to a worker pool whose queue was full."""

OUTPUT_BYTES_MAX = 32 * 1024
"""Claim check: larger outputs go to the blob store (DESIGN 3)."""


_FAULTS_OF_STEPS = (
    DomainError,
    OSError,
    ValueError,
    httpx.HTTPError,
    httpx.InvalidURL,
    httpx.StreamError,
)


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """Whose effect it is. ``key``: the stable idempotency key; ``index``: item of a map."""

    execution_id: str
    node_id: NodeId
    attempt: int
    key: str
    timeout_seconds: float | None
    resources: Resources | None
    files: tuple[FileDescriptor, ...] = ()
    index: int | None = None
    code: Code | None = None


class Performer:
    """One host's hands: its worker pool, its HTTP client, its blob store."""

    def __init__(
        self,
        pool: EnvironmentPools | WorkerPool,
        blobs: BlobStore,
        http: Callable[[], httpx.AsyncClient],
        sources: SourceAccess,
        where: str,
    ) -> None:
        self._pool = pool
        self._blobs = blobs
        self._http_factory = http
        self._http: httpx.AsyncClient | None = None
        self._sources = sources
        self._where = where

    async def perform(self, action: Action, attempt: Attempt, tell: Tell | None = None) -> StepOutcome:
        """How ``action`` ended. ``tell``: as ``WorkerPool.run``. Raises: CancelledError only."""
        try:
            return await self._perform(action, attempt, tell)
        except TimeoutError:
            seconds = attempt.timeout_seconds or HTTP_TIMEOUT_SECONDS
            message = f"the attempt took longer than its {seconds:g} s"
            return self._failed(StepError(type="TimeoutError", message=message))
        except _FAULTS_OF_STEPS as error:
            message = str(error) or type(error).__name__
            return self._failed(StepError(type=type(error).__name__, message=message[:2_000]))

    async def _perform(self, action: Action, attempt: Attempt, tell: Tell | None) -> StepOutcome:
        match action:
            case CallFunction():
                return await self.call(
                    StepCall(
                        execution_id=ExecutionId(attempt.execution_id),
                        node_id=attempt.node_id,
                        attempt=attempt.attempt,
                        key=attempt.key,
                        function=action.function,
                        arguments=action.arguments,
                        index=attempt.index,
                        timeout_seconds=attempt.timeout_seconds,
                        resources=attempt.resources,
                        files=attempt.files,
                        code=attempt.code,
                    ),
                    tell,
                )
            case HttpRequest():
                async with asyncio.timeout(attempt.timeout_seconds or HTTP_TIMEOUT_SECONDS):
                    return await self._request(action, attempt)
            case ReadText():
                async with asyncio.timeout(attempt.timeout_seconds):
                    text = await asyncio.to_thread(self._read_text, action, attempt)
                return StepOutcome(output=text, where=self._where, started=True)
            case Output():
                return StepOutcome(output=action.value, where=self._where, started=True)
            case Wait() | StartChild() | MapOver() | WideMap() | RunAgent() | CallTool():
                error = StepError(type="InvalidAction", message="this kind can't stand inside a map")
                return self._failed(error)
            case _:
                assert_never(action)

    async def call(self, call: StepCall, tell: Tell | None = None) -> StepOutcome:
        """Call a Python function in a worker process. Raises: CancelledError only."""
        while True:
            try:
                return await self._pool.run(call, tell)
            except Overloaded:
                # The host's own load is no fault of the step: it waits for room, as long as it may.
                await asyncio.sleep(ROOM_WAIT_SECONDS)

    def _failed(self, error: StepError) -> StepOutcome:
        return StepOutcome(error=error, where=self._where, started=True)

    async def _request(self, request: HttpRequest, attempt: Attempt) -> StepOutcome:
        if self._http is None:
            self._http = self._http_factory()
        headers = {"Idempotency-Key": attempt.key, **request.headers}
        content = request.body if request.json is None else msgspec.json.encode(request.json)
        if request.json is not None:
            headers.setdefault("Content-Type", "application/json")
        body = bytearray()
        async with self._http.stream(
            request.method, request.url, params=request.query or None, headers=headers, content=content
        ) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > HTTP_BODY_BYTES_MAX:
                    raise ValueError(f"the answer is larger than {HTTP_BODY_BYTES_MAX} bytes")
        output = {
            "status": response.status_code,
            "headers": dict(response.headers),
            "body": _decoded(bytes(body), response),
        }
        if request.fail_on_status and response.status_code >= 400:
            message = f"{request.method} {request.url} answered {response.status_code}"
            return self._failed(StepError(type="HTTPStatusError", message=message[:2_000]))
        return StepOutcome(output=output, where=self._where, started=True)

    def source_access(self, files: tuple[FileDescriptor, ...]) -> SourceAccess:
        """What an execution with these uploaded files may read items from."""
        return msgspec.structs.replace(self._sources, files=files)

    def _read_text(self, action: ReadText, attempt: Attempt) -> str:
        for file in attempt.files:
            if file.uri == action.uri:
                ref = BlobRef(sha256=file.sha256, size=file.size, media_type=file.content_type)
                return self._blobs.get_bytes(ref).decode(action.encoding)
        if action.uri.startswith("artifact://"):
            raise FileNotFoundError(f"{action.uri} is not a file of this execution")
        path = path_below(self._sources.files_root, action.uri)
        if path.stat().st_size > TEXT_BYTES_MAX:
            raise ValueError(f"{action.uri} is larger than {TEXT_BYTES_MAX} bytes")
        return path.read_text(action.encoding)

    async def load(self, ref: BlobRef) -> Json:
        """The JSON value behind a claim check.

        Raises: NotFound, Diverged, Unavailable after ``BLOB_SECONDS_MAX``, ValueError when it is too large.
        """
        data = await until_available(
            lambda: asyncio.to_thread(self._blobs.get_bytes, ref), "read a blob", BLOB_SECONDS_MAX
        )
        return msgspec.json.decode(data)

    async def store_if_large(self, value: Json) -> BlobRef | None:
        """Where ``value`` was put, or None when it is small enough to stand in an event.

        Raises: Unavailable after ``BLOB_SECONDS_MAX``; TypeError or ValueError for what is no JSON.
        """
        data = msgspec.json.encode(value)
        if len(data) <= OUTPUT_BYTES_MAX:
            return None
        return await until_available(
            lambda: asyncio.to_thread(self._blobs.put_bytes, data), "write a blob", BLOB_SECONDS_MAX
        )

    async def close(self) -> None:
        await self._pool.close()
        if self._http is not None:
            await self._http.aclose()


def _decoded(body: bytes, response: httpx.Response) -> Json:
    if "json" in response.headers.get("content-type", ""):
        try:
            return msgspec.json.decode(body)
        except msgspec.DecodeError:
            return body.decode(errors="replace")
    try:
        return body.decode(response.encoding or "utf-8", errors="replace")
    except LookupError:  # Python knows it, but not as an encoding of text (e.g. charset=base64)
        return body.decode(errors="replace")
