"""Chats with agents: turns in order, one at a time (section 4.5).

A conversation's turn has two gates. Within this gateway the turns queue for a lock, first come, first served;
between gateways the claim of the conversation's run decides, and who loses asks again. A turn waits for both
``WAIT_SECONDS`` at most. A turn that does not complete leaves no trace: the next one's history is that of the
last turn that did.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import msgspec
from starlette.responses import Response

from gateway.dialects.external.agents import visible_agent
from gateway.dialects.external.answering import chatting_spec
from gateway.dialects.external.plans import require_authentication
from gateway.dialects.external.records import CONVERSATION, ConversationDocument, agent_plan, cause_of, known
from gateway.dialects.external.runs import claim, end_of, refused, unclaim
from gateway.dialects.external.wire import AGENT_RUN, SOURCE, TEXT_MAX, fields_of, iso, success
from gateway.envelopes import Problem
from gateway.idempotency import request_digest
from runtime.errors import AlreadyExists, Overloaded, Refused

if TYPE_CHECKING:
    from gateway.call import Call
    from gateway.registry import Resource
    from gateway.run_view import RunUsage, RunView

WAIT_SECONDS = 30.0
WAITING_MAX = 100
"""Turns of one conversation that wait in this gateway; one more is refused at once."""

TURN_SECONDS = 120.0
ASK_AGAIN_SECONDS = 0.2
"""Pause between two claims while another gateway's turn runs."""

BUSY = "conversation_busy"


class Chats:
    """The turns of this gateway's callers."""

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._waiting: Counter[tuple[str, str]] = Counter()

    async def chat(self, call: Call) -> Response:
        agent = await visible_agent(call)
        body = await call.body()

        async def serve(turn_id: str) -> Response:
            fields = fields_of(call, body)
            message = fields.text("message", TEXT_MAX)
            conversation_id = fields.reference("conversationId")
            fields.done()
            conversation = await _conversation(call, agent, conversation_id, turn_id)
            plan = agent_plan(agent)
            if plan is not None:
                await require_authentication(call, plan)
            view = await self._turn(call, agent, conversation, turn_id, message)
            problem = refused(view, None, f"{AGENT_RUN}{turn_id}", None)
            if problem is not None:
                raise problem
            answer = {
                "conversationId": conversation.resource_id,
                "response": {
                    "id": turn_id,
                    "role": "assistant",
                    "content": _words(view.answer),
                    "createdAt": iso(view.ended_at or view.created_at),
                    "taskId": None,
                    "usage": _usage(view.usage),
                },
            }
            return success(answer)

        return await call.gateway.idempotency.once(call, request_digest(body), serve)

    async def _turn(
        self, call: Call, agent: Resource, conversation: Resource, turn_id: str, message: str
    ) -> RunView:
        subject = f"conversation:{conversation.resource_id}"
        runs = call.gateway.agent_runs
        async with self._its_turn(call, conversation, turn_id):
            try:
                history = await runs.session(conversation.tenant, subject, completed_only=True)
                spec = await chatting_spec(call, agent, message, history)
                await runs.start(
                    call,
                    spec,
                    execution_id=turn_id,
                    source=SOURCE,
                    subject=subject,
                    timeout_seconds=TURN_SECONDS,
                    agent_id=agent.resource_id,
                )
            except (Overloaded, Refused, Problem):
                await unclaim(call, conversation, turn_id)
                raise
            return await end_of(call.gateway, turn_id, {}, TURN_SECONDS)

    @asynccontextmanager
    async def _its_turn(self, call: Call, conversation: Resource, turn_id: str) -> AsyncGenerator[None]:
        """Hold the conversation for one turn. Raises: Problem conversation_busy."""
        key = (conversation.tenant, conversation.resource_id)
        turn = self._turns.get(key)
        if turn is None:
            turn = self._turns[key] = asyncio.Lock()
        deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
        if self._waiting[key] >= WAITING_MAX:
            raise Problem(BUSY)
        self._waiting[key] += 1
        try:
            async with asyncio.timeout_at(deadline):
                await turn.acquire()
        except TimeoutError:
            raise Problem(BUSY) from None
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
        try:
            await _claimed(call, conversation, turn_id, deadline)
            yield
        finally:
            turn.release()


async def _claimed(call: Call, conversation: Resource, turn_id: str, deadline: float) -> None:
    while True:
        try:
            await claim(call, conversation, turn_id, BUSY)
            return
        except Problem as problem:
            if problem.code != BUSY or asyncio.get_running_loop().time() >= deadline:
                raise
        await asyncio.sleep(ASK_AGAIN_SECONDS)


async def _conversation(call: Call, agent: Resource, conversation_id: str, turn_id: str) -> Resource:
    """The one named, or a new one. Raises: Problem conversation_not_found for another agent's or tenant's."""
    registry, tenant = call.gateway.registry, call.caller.tenant
    if not conversation_id:
        document = msgspec.to_builtins(ConversationDocument(parent=agent.resource_id))
        try:
            return await registry.create(tenant, CONVERSATION, document, cause_of(call), turn_id)
        except AlreadyExists:
            conversation_id = turn_id  # the request is repeated by its Idempotency-Key
    found = await known(call, CONVERSATION, conversation_id)
    if found is None or found.document.get("parent") != agent.resource_id:
        raise Problem("conversation_not_found")
    return found


def _words(answer: Any) -> str:
    return answer if isinstance(answer, str) else msgspec.json.encode(answer).decode()


def _usage(usage: RunUsage | None) -> dict[str, Any]:
    if usage is None:
        return {"inputTokens": 0, "outputTokens": 0, "totalTokens": 0, "modelCalls": 0}
    return {
        "inputTokens": usage.input_tokens,
        "outputTokens": usage.output_tokens,
        "totalTokens": usage.input_tokens + usage.output_tokens,
        "modelCalls": usage.model_calls,
    }
