"""The two ways of carrying a procedure out: blocking and asynchronous, each over httpx.

What may be repeated is repeated by one policy (`_repeats`): while the server can't be reached, on 429 and
503, and while another request with the same idempotency key is served; after as long as Retry-After says,
else after a growing, jittered pause; for `PATIENCE_SECONDS` and `TRIES_MAX` tries at most. Then the last
error is raised.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Never, TypeVar

import httpx
from httpx_sse import EventSource, SSEError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential_jitter,
)

from gateway.client.calls import Call
from gateway.client.errors import ClientError, Conflict, Overloaded, Refused, Unreachable, refusal
from gateway.client.steps import Close, Download, Emit, Listen, Next, Pause, Procedure, Run, Send, Step
from gateway.target import Target

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
UPLOAD_SECONDS = 600.0
STREAM_SILENCE_SECONDS = 60.0
"""The server sends a keep-alive every 15 s; this much silence means that it is gone."""

PATIENCE_SECONDS = 60.0
TRIES_MAX = 10
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 5.0

T = TypeVar("T")
E = TypeVar("E")

_backing_off = wait_exponential_jitter(
    multiplier=PAUSE_SECONDS_MIN, max=PAUSE_SECONDS_MAX, jitter=PAUSE_SECONDS_MIN
)


class _Wiring:
    """What both drivers share: headers, time-outs and the policy of repeats."""

    def __init__(self, target: Target, timeout_seconds: float, patience_seconds: float) -> None:
        self.url = target.url
        headers = {"user-agent": f"heliograph-python/{_version()}"}
        if target.api_key:
            headers["x-api-key"] = target.api_key
        self.options: dict[str, Any] = {
            "base_url": target.url,
            "headers": headers,
            "timeout": httpx.Timeout(timeout_seconds, connect=CONNECT_SECONDS),
            "follow_redirects": False,
        }
        self.patience_seconds = patience_seconds

    def repeats(self, step: Send | Listen | Download) -> dict[str, Any]:
        """Arguments of `Retrying` and `AsyncRetrying`."""
        call = step.call
        # Who takes a stream up again counts the tries, and pauses between them.
        tries = 1 if isinstance(step, Listen | Download) and step.is_again else TRIES_MAX
        is_optional = isinstance(step, Listen) and step.is_optional
        return {
            "retry": retry_if_exception(
                lambda error: (
                    _is_worth_repeating(error, call) and not (is_optional and isinstance(error, Overloaded))
                )
            ),
            "wait": _pause_before_next,
            "stop": stop_after_attempt(tries) | stop_before_delay(self.patience_seconds),
            "reraise": True,
        }

    def request(
        self, client: httpx.Client | httpx.AsyncClient, step: Send | Listen | Download
    ) -> httpx.Request:
        call = step.call
        headers = dict(call.headers)
        timeout: Any = httpx.USE_CLIENT_DEFAULT
        if isinstance(step, Listen):
            headers |= {"accept": "text/event-stream", "cache-control": "no-store"}
            timeout = httpx.Timeout(STREAM_SILENCE_SECONDS, connect=CONNECT_SECONDS)
            if step.last_event_id:
                headers["last-event-id"] = step.last_event_id
        data: Any = None
        files: Any = None
        if (upload := call.upload) is not None:
            upload.file.seek(0)
            data, files = upload.fields, {"inputs": (upload.name, upload.file, upload.media_type)}
            # The server reads the file to its end before it answers.
            timeout = httpx.Timeout(UPLOAD_SECONDS, connect=CONNECT_SECONDS)
        return client.build_request(
            call.method,
            call.path,
            params=dict(call.query) or None,
            content=call.content or None,
            data=data,
            files=files,
            headers=headers,
            timeout=timeout,
        )

    @contextmanager
    def reaching(self) -> Generator[None]:
        """Transport errors inside become Unreachable."""
        try:
            yield
        except SSEError as error:  # a TransportError, too
            raise ClientError(f"{self.url} sent no event stream: {error}") from error
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unreachable(f"no server answers at {self.url}", False) from error
        except httpx.TimeoutException as error:
            raise Unreachable(f"{self.url} did not answer in time") from error
        except httpx.TransportError as error:
            raise Unreachable(f"the connection to {self.url} broke: {error}") from error


class Driver:
    """Carries procedures out on the calling thread. May be shared by threads."""

    def __init__(
        self,
        target: Target,
        timeout_seconds: float = ANSWER_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._wiring = _Wiring(target, timeout_seconds, patience_seconds)
        self._client = httpx.Client(**self._wiring.options, transport=transport)
        self.url = target.url

    def close(self) -> None:
        self._client.close()

    def exchange(self, method: str, path: str, **request: Any) -> bytes:
        """One request by httpx's own names of its parts, never repeated; the body. Raises: ClientError."""
        with self._wiring.reaching():
            response = self._client.request(method, path, **request)
        return _accepted(response).content

    def perform(self, procedure: Procedure[Never, T]) -> T:
        """Carry it out; what it returns. Raises: what it raises."""
        run = Run(procedure)
        for _ in self._drive(run):
            continue
        return run.result

    def iterate(self, procedure: Procedure[E, Any]) -> Iterator[E]:
        """What it emits, as it comes. What it holds open ends with the iteration."""
        return self._drive(Run(procedure))

    def _drive(self, run: Run[E, Any]) -> Iterator[E]:
        source = _Source()
        try:
            while (step := run.step()) is not None:
                if isinstance(step, Emit):
                    yield step.item
                    continue
                try:
                    run.give(self._do(step, source))
                except ClientError as error:
                    run.fail(error)
        finally:
            run.close()
            source.close()

    def _do(self, step: Step[Never], source: _Source) -> Any:
        match step:
            case Send():
                return Retrying(**self._wiring.repeats(step))(self._exchange, step)
            case Listen() | Download():
                source.close()
                response = Retrying(**self._wiring.repeats(step))(self._open, step)
                source.open(response, is_events=isinstance(step, Listen))
            case Next():
                with self._wiring.reaching():
                    return next(source.items, None)
            case Close():
                source.close()
            case Pause():
                time.sleep(step.seconds)
            case Emit():
                raise TypeError("nobody to hand an item to")
        return None

    def _exchange(self, step: Send) -> bytes:
        with self._wiring.reaching():
            response = self._client.send(self._wiring.request(self._client, step))
        return _accepted(response, step.call.not_found).content

    def _open(self, step: Listen | Download) -> httpx.Response:
        with self._wiring.reaching():
            response = self._client.send(self._wiring.request(self._client, step), stream=True)
            if not response.is_success:
                try:
                    response.read()
                finally:
                    response.close()
        return _accepted(response, step.call.not_found)


class _Source:
    """The one response that a procedure may hold open."""

    def __init__(self) -> None:
        self._response: httpx.Response | None = None
        self.items: Iterator[Any] = iter(())

    def open(self, response: httpx.Response, is_events: bool) -> None:
        self._response = response
        self.items = EventSource(response).iter_sse() if is_events else response.iter_bytes()

    def close(self) -> None:
        response, self._response, self.items = self._response, None, iter(())
        if response is not None:
            response.close()


class AsyncDriver:
    """Carries procedures out on the running event loop."""

    def __init__(
        self,
        target: Target,
        timeout_seconds: float = ANSWER_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._wiring = _Wiring(target, timeout_seconds, patience_seconds)
        self._client = httpx.AsyncClient(**self._wiring.options, transport=transport)
        self.url = target.url

    async def close(self) -> None:
        await self._client.aclose()

    async def perform(self, procedure: Procedure[Never, T]) -> T:
        """Carry it out; what it returns. Raises: what it raises."""
        run = Run(procedure)
        async for _ in self._drive(run):
            continue
        return run.result

    def iterate(self, procedure: Procedure[E, Any]) -> AsyncGenerator[E]:
        """What it emits, as it comes. What it holds open ends with the iteration (use `aclosing`)."""
        return self._drive(Run(procedure))

    async def _drive(self, run: Run[E, Any]) -> AsyncGenerator[E]:
        source = _AsyncSource()
        try:
            while (step := run.step()) is not None:
                if isinstance(step, Emit):
                    yield step.item
                    continue
                try:
                    run.give(await self._do(step, source))
                except ClientError as error:
                    run.fail(error)
        finally:
            run.close()
            await source.close()

    async def _do(self, step: Step[Never], source: _AsyncSource) -> Any:
        match step:
            case Send():
                return await AsyncRetrying(**self._wiring.repeats(step))(self._exchange, step)
            case Listen() | Download():
                await source.close()
                response: httpx.Response = await AsyncRetrying(**self._wiring.repeats(step))(self._open, step)
                source.open(response, is_events=isinstance(step, Listen))
            case Next():
                with self._wiring.reaching():
                    return await anext(source.items, None)
            case Close():
                await source.close()
            case Pause():
                await asyncio.sleep(step.seconds)
            case Emit():
                raise TypeError("nobody to hand an item to")
        return None

    async def _exchange(self, step: Send) -> bytes:
        with self._wiring.reaching():
            response = await self._client.send(self._wiring.request(self._client, step))
        return _accepted(response, step.call.not_found).content

    async def _open(self, step: Listen | Download) -> httpx.Response:
        with self._wiring.reaching():
            response = await self._client.send(self._wiring.request(self._client, step), stream=True)
            if not response.is_success:
                try:
                    await response.aread()
                finally:
                    await response.aclose()
        return _accepted(response, step.call.not_found)


class _AsyncSource:
    """The one response that a procedure may hold open."""

    def __init__(self) -> None:
        self._response: httpx.Response | None = None
        self.items: AsyncIterator[Any] = _nothing()

    def open(self, response: httpx.Response, is_events: bool) -> None:
        self._response = response
        self.items = EventSource(response).aiter_sse() if is_events else response.aiter_bytes()

    async def close(self) -> None:
        response, self._response = self._response, None
        if isinstance(self.items, AsyncGenerator):
            await self.items.aclose()
        self.items = _nothing()
        if response is not None:
            await response.aclose()


async def _nothing() -> AsyncGenerator[Any]:
    return
    yield


def _accepted(response: httpx.Response, not_found: str = "") -> httpx.Response:
    if not response.is_success:
        raise refusal(response.status_code, response.content, response.headers, not_found)
    return response


def _is_worth_repeating(error: BaseException, call: Call[Any]) -> bool:
    match error:
        case Unreachable():
            return call.repeatable or not error.was_sent
        case Overloaded():
            # 429 is refused before anything is done; after 503 the outcome may be unknown.
            return call.repeatable or error.status == 429
        case Conflict():
            return error.retry_after is not None  # the same key is being served at this moment
        case _:
            return False


def _pause_before_next(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    told = error.retry_after if isinstance(error, Refused) else None
    return _backing_off(state) if told is None else told


def _version() -> str:
    try:
        return version("heliograph")
    except PackageNotFoundError:
        return "source"
