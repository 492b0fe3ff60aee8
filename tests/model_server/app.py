"""The ASGI application: the protocol's two endpoints, and those by which a test looks into it.

POST /v1/chat/completions   answers as the script says
GET  /v1/models             the models named in the script
GET  /journal               every exchange so far
PUT  /script                a list of rules, instead of those before
POST /release/{gate}        answers that hang at the gate go on, now and later
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.model_server.journal import Exchange, Journal
from tests.model_server.script import ECHO, Asked, Fault, Reply, Rule, RuleFunction, answer_of, read_script
from tests.model_server.wire import Chunks, Said, completion, error_body, message_of, usage_of

HANG_SECONDS_MAX = 300.0
MODELS = ("scripted",)


class Dropped(Exception):
    """The client went away."""


class CutOff(Exception):
    """The script says that the connection breaks here."""


class Gates:
    """Where answers hang. A gate once released stays open until it is closed."""

    def __init__(self) -> None:
        self._gates: dict[str, asyncio.Event] = {}
        self._all_open = False

    def of(self, name: str) -> asyncio.Event:
        gate = self._gates.setdefault(name, asyncio.Event())
        if self._all_open:
            gate.set()
        return gate

    def release(self, name: str) -> None:
        self.of(name).set()

    def release_all(self) -> None:
        self._all_open = True
        for gate in self._gates.values():
            gate.set()


class ModelApp:
    """One model server's state and its application."""

    def __init__(self, script: Sequence[RuleFunction] = ()) -> None:
        self.script: tuple[RuleFunction, ...] = tuple(script) or (ECHO,)
        self.journal = Journal()
        self.gates = Gates()
        self.asgi: ASGIApp = Starlette(
            routes=[
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/v1/models", self._models),
                Route("/journal", self._journal),
                Route("/script", self._script, methods=["PUT"]),
                Route("/release/{gate}", self._release, methods=["POST"]),
            ]
        )

    async def _complete(self, request: Request) -> Response:
        body = msgspec.json.decode(await request.body())
        headers = {name.lower(): value for name, value in request.headers.items()}
        asked, exchange = self.journal.received(body, headers)
        try:
            answer = answer_of(self.script, asked)
        except BaseException:
            # A rule of the test's own is at fault; the client sees a 500, and the request has had its end.
            self.journal.ended(exchange, "fault", 500)
            raise
        return AnswerResponse(self, asked, exchange, answer)

    async def _models(self, request: Request) -> Response:
        named = {rule.model for rule in self.script if isinstance(rule, Rule) and rule.model}
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "tests"}
            for name in sorted(named) or MODELS
        ]
        return JSONResponse({"object": "list", "data": data})

    async def _journal(self, request: Request) -> Response:
        return Response(msgspec.json.encode(self.journal.exchanges), media_type="application/json")

    async def _script(self, request: Request) -> Response:
        try:
            self.script = read_script(await request.body())
        except msgspec.ValidationError as error:
            raise HTTPException(422, str(error)) from None
        return Response(status_code=204)

    async def _release(self, request: Request) -> Response:
        self.gates.release(request.path_params["gate"])
        return Response(status_code=204)


class AnswerResponse(Response):
    """One answer on its way: timed, hanging, cut off, and noted in the journal when it ended."""

    def __init__(self, app: ModelApp, asked: Asked, exchange: Exchange, answer: Reply | Fault) -> None:
        super().__init__()
        self._app = app
        self._asked = asked
        self._exchange = exchange
        self._answer = answer
        self._gone = asyncio.Event()
        self._wake: asyncio.Future[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        listener = asyncio.create_task(self._listen(receive))
        journal = self._app.journal
        try:
            if isinstance(self._answer, Fault):
                await self._fail(self._answer, send)
                journal.ended(self._exchange, "fault", self._answer.status)
            else:
                await self._reply(self._answer, send)
                journal.ended(self._exchange, "dropped" if self._gone.is_set() else "answered")
        except Dropped:
            journal.ended(self._exchange, "dropped")
        except CutOff:
            journal.ended(self._exchange, "cut")
            # The server ends a response that an exception interrupts by closing the connection.
            raise
        finally:
            if self._exchange.outcome == "open":
                journal.ended(self._exchange, "dropped")
            listener.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listener

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self._gone.set()
        if self._wake is not None:
            _set(self._wake)

    async def _fail(self, fault: Fault, send: Send) -> None:
        await self._until(_now() + fault.first_seconds)
        headers = {} if fault.retry_after is None else {"retry-after": f"{fault.retry_after:g}"}
        await _send_json(send, error_body(fault), fault.status, headers)

    async def _reply(self, reply: Reply, send: Send) -> None:
        message = message_of(reply, self._asked)
        self._exchange.text = "".join(message.pieces)
        self._exchange.tool_calls = [call.id for call in message.calls]
        start = _now() + reply.first_seconds
        if self._asked.streams:
            await self._stream(reply, message, start, send)
            return
        await self._until(start + reply.over_seconds)
        if reply.hang:
            await self._hang(reply.hang)
        if reply.cut_after is not None:
            await send(_head(b"application/json"))
            raise CutOff
        await _send_json(send, completion(reply, self._asked, message))

    async def _stream(self, reply: Reply, message: Said, start: float, send: Send) -> None:
        """Pieces of text are spread over the answer's time; tool calls follow the last of them at once."""
        chunks = Chunks(self._asked)
        write = _writer(send)
        await self._until(start)
        if reply.hang and not reply.hang_after:
            await self._hang(reply.hang)
        await send(_head(b"text/event-stream; charset=utf-8"))
        await write(chunks.opening())
        if message.thinking:
            await write(chunks.thinking(message.thinking))
        sent = 0
        every = reply.over_seconds / len(message.pieces) if message.pieces else 0.0
        for piece in message.pieces:
            await self._stop_here(reply, sent)
            await self._until(start + (sent + 1) * every)
            await write(chunks.piece(piece))
            sent += 1
        for index, call in enumerate(message.calls):
            for chunk in chunks.call(index, call):
                await self._stop_here(reply, sent)
                await write(chunk)
                sent += 1
        await self._stop_here(reply, sent)
        if not message.pieces:
            await self._until(start + reply.over_seconds)
        options: dict[str, Any] = self._asked.body.get("stream_options") or {}
        usage = usage_of(reply, self._asked, message) if options.get("include_usage") else None
        await write(chunks.ending(reply.finish or message.finish, usage))
        await send({"type": "http.response.body", "body": b""})

    async def _stop_here(self, reply: Reply, sent: int) -> None:
        if reply.hang and sent and sent == reply.hang_after:
            await self._hang(reply.hang)
        if reply.cut_after is not None and sent >= reply.cut_after:
            raise CutOff

    async def _hang(self, gate: str) -> None:
        event = self._app.gates.of(gate)
        self._app.journal.hangs(self._exchange, gate)
        opened = asyncio.ensure_future(event.wait())
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            async with asyncio.timeout(HANG_SECONDS_MAX):
                await asyncio.wait((opened, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            opened.cancel()
            gone.cancel()
        self._app.journal.hangs(self._exchange, "")
        if self._gone.is_set():
            raise Dropped

    async def _until(self, when: float) -> None:
        """Wait for that moment of the loop's clock, or until the client goes away."""
        if self._gone.is_set():
            raise Dropped
        if when <= _now():
            return
        loop = asyncio.get_running_loop()
        # Thousands of pieces a second wait here: a future and a timer cost a third of `asyncio.timeout`.
        self._wake = loop.create_future()
        timer = loop.call_at(when, _set, self._wake)
        try:
            await self._wake
        finally:
            timer.cancel()
        if self._gone.is_set():
            raise Dropped


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _head(media_type: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Message:
    others = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return {
        "type": "http.response.start",
        "status": status,
        "headers": [(b"content-type", media_type), *others],
    }


def _writer(send: Send) -> Callable[[bytes], Awaitable[None]]:
    async def write(chunk: bytes) -> None:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})

    return write


async def _send_json(
    send: Send, body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> None:
    data = msgspec.json.encode(body)
    sized = {"content-length": str(len(data)), **(headers or {})}
    await send(_head(b"application/json", status, sized))
    await send({"type": "http.response.body", "body": data})
