"""A model whose every answer is recorded before anybody uses it, and is asked for once.

    known answer ----------------------------> the answer        (nothing is called)
    begin -> call -> text on its way -> end -> the answer
              |  ^
              v  | retry: recorded, then waited for
             fault

The request's hash only tells: an answer that was paid for counts, even when the request came out differently
this time (the program changed meanwhile).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog
import tenacity
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import (
    ModelMessage,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from actors.agents.claim_check import ClaimCheck
from actors.agents.errors import is_passing, retry_after, step_error
from actors.agents.lean_client import LISTENER
from actors.agents.messages import Answer, answer_of, request_hash, response_of, with_unique_calls
from actors.agents.models import NamedModel
from actors.agents.prices import PriceTable
from actors.agents.tracing import model_span
from actors.step_journal import StepJournal
from runtime.events import MessageRecorded
from runtime.ids import SECOND, Micros

log = structlog.stdlib.get_logger(__name__)

TRIES_MAX = 5
BACKOFF_SECONDS = 1.0
BACKOFF_MAX_SECONDS = 30.0
RETRY_AFTER_MAX_SECONDS = 60.0
THINKING_CHARS_MAX = 8_000
"""Told of one answer's thinking; its whole stands in the answer's ``raw``."""

Fit = Callable[[list[ModelMessage], ModelRequestParameters, bool], Awaitable[list[ModelMessage]]]
"""What is sent for a conversation; the flag: whether the call has no answer yet."""


class Calls:
    """What all model calls of one service share."""

    def __init__(self, prices: PriceTable, calls_max: int, key: str) -> None:
        """``key``: of the endpoint; cut out of every error."""
        self.prices = prices
        self.room = asyncio.Semaphore(calls_max)
        self.key = key


class RecordedModel(WrapperModel):
    """The calls of one purpose in one run: steps ``<prefix>-1``, ``<prefix>-2``, ..."""

    def __init__(
        self,
        named: NamedModel,
        journal: StepJournal,
        calls: Calls,
        claims: ClaimCheck,
        *,
        purpose: str = "",
        first_step: str = "",
        fit: Fit | None = None,
    ) -> None:
        """``first_step``: name of the first call if not ``<purpose>-1``. ``fit``: trims what is sent."""
        super().__init__(named.model)
        self._named = named
        self._journal = journal
        self._calls = calls
        self._claims = claims
        self._purpose = purpose
        self._first_step = first_step
        self._fit = fit
        self._count = 0
        self._call_ids: set[str] = set()
        self._warned = False

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """The next answer, from the log or from the model. Raises: what the model's last try raised."""
        self._count += 1
        step = f"{self._purpose or 'model'}-{self._count}"
        if self._first_step:
            step = self._first_step if self._count == 1 else f"{self._first_step}~{self._count}"
        recorded = self._journal.answer(step)
        if self._fit is not None:
            messages = await self._fit(messages, model_request_parameters, recorded is None)
        digest = request_hash(self._named.name, messages, model_settings, model_request_parameters)
        if recorded is not None:
            self._compare(step, digest)
            answer = await self._read(recorded)
            self._call_ids.update(call.tool_call_id for call in answer.tool_calls)
        else:
            answer = await self._ask(step, digest, messages, model_settings, model_request_parameters)
        return response_of(answer)

    def _compare(self, step: str, digest: str) -> None:
        known = self._journal.known(step)
        if known is None or known.request_hash == digest or self._warned:
            return
        self._warned = True
        log.warning(
            "a replayed request differs from the recorded one; its recorded answer is used",
            execution_id=self._journal.execution.execution_id,
            node_id=self._journal.node_id,
            step=step,
        )

    async def _read(self, recorded: MessageRecorded) -> Answer:
        text = await self._claims.read(recorded.content, recorded.content_ref)
        raw = await self._claims.read(recorded.raw, recorded.raw_ref)
        return Answer(text=text or "", tool_calls=recorded.tool_calls, raw=raw)

    async def _ask(
        self,
        step: str,
        digest: str,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> Answer:
        journal = self._journal
        await journal.begin(
            step,
            "model",
            self._named.name,
            request_hash=digest,
            request={"messages": len(messages), "tools": len(parameters.function_tools)},
            purpose=self._purpose,
        )
        settings = _with_key(settings, journal.key(step)) if self._named.takes_headers else settings
        response, seconds = await self._with_retries(step, messages, settings, parameters)
        self._tell_thinking(response)
        answer = answer_of(with_unique_calls(response, self._call_ids))
        content, content_ref = await self._claims.check(answer.text)
        raw, raw_ref = await self._claims.check(answer.raw)
        await journal.end(
            step,
            "assistant",
            content=content,
            content_ref=content_ref,
            tool_calls=answer.tool_calls,
            raw=raw,
            raw_ref=raw_ref,
            duration_ms=seconds * 1e3,
            usage=self._calls.prices.usage(self._named.name, response.usage),
        )
        return answer

    async def _with_retries(
        self,
        step: str,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> tuple[ModelResponse, float]:
        """The answer, and the seconds its try took."""

        async def record(state: tenacity.RetryCallState) -> None:
            outcome = state.outcome
            error = None if outcome is None else outcome.exception()
            if error is None or state.next_action is None:
                return
            retry_at = Micros(self._journal.now() + int(state.next_action.sleep * SECOND))
            await self._journal.retry(step, step_error(error, self._calls.key), retry_at)

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception(is_passing),
            stop=tenacity.stop_after_attempt(TRIES_MAX),
            wait=self._pause,
            before_sleep=record,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                async with self._calls.room:
                    began = time.perf_counter()
                    with model_span(self._journal, step, self._named.name, self.wrapped.system) as span:
                        # A task of its own: each piece of text then wakes the call alone, and not the dozens
                        # of the library's frames that wait for its end.
                        call = asyncio.create_task(self._stream(step, messages, settings, parameters))
                        response = await call
                        span.used(self._calls.prices.usage(self._named.name, response.usage))
                    return response, time.perf_counter() - began
        raise AssertionError("tenacity ends by an answer or an exception")

    def _pause(self, state: tenacity.RetryCallState) -> float:
        error = None if state.outcome is None else state.outcome.exception()
        asked = None if error is None else retry_after(error)
        if asked is not None:
            return min(asked, RETRY_AFTER_MAX_SECONDS)
        pause = min(BACKOFF_SECONDS * 2 ** (state.attempt_number - 1), BACKOFF_MAX_SECONDS)
        return pause * (0.5 + 0.5 * self._journal.draw())

    async def _stream(
        self,
        step: str,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> ModelResponse:
        told = _Told(self._journal, step)
        token = LISTENER.set(told)
        try:
            async with self.wrapped.request_stream(messages, settings, parameters) as stream:
                async for event in stream:
                    if isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
                        told.know(event.delta.content_delta)
                    elif isinstance(event, PartStartEvent) and isinstance(event.part, TextPart):
                        told.know(event.part.content)
                response = stream.get()
        finally:
            LISTENER.reset(token)
        if response.state != "complete":
            raise UnexpectedModelBehavior("the model's answer broke off")
        return response

    def _tell_thinking(self, response: ModelResponse) -> None:
        thought = "".join(part.content for part in response.parts if isinstance(part, ThinkingPart))
        if thought:
            self._journal.log("thinking", {"text": thought[:THINKING_CHARS_MAX]})


class _Told:
    """Tells an answer's text piece by piece: as its client hears it, else as the library makes it out.

    Implements ``lean_client.Listener``.
    """

    def __init__(self, journal: StepJournal, step: str) -> None:
        self._journal = journal
        self._step = step
        self._chars = 0
        self._known = 0

    def hear(self, text: str) -> None:
        self._journal.delta(self._step, self._chars, text)
        self._chars += len(text)

    async def turn(self) -> None:
        await self._journal.turn()

    def know(self, text: str) -> None:
        """``text`` follows what was known; what of it was heard is not told again."""
        self._known += len(text)
        if self._known > self._chars:
            self.hear(text[self._chars - self._known :])


def _with_key(settings: ModelSettings | None, key: str) -> ModelSettings:
    given = ModelSettings(**settings) if settings else ModelSettings()
    given["extra_headers"] = {**given.get("extra_headers", {}), "Idempotency-Key": key}
    return given
