"""The agent runs of `load_agents` by the model library alone: the cost before anything is durable or served.

One process on one event loop: no server, no log, no readers elsewhere. A delta counts as received when the
library hands it over, in the process that asked for it; the tool is a function in that process.
"""

from __future__ import annotations

import asyncio
import time

from openai import AsyncOpenAI, DefaultAioHttpClient
from pydantic_ai import Agent
from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from bench.agent_flows import SYSTEM_PROMPT
from bench.load_agents import LibraryRuns, Reader
from bench.load_session import Session
from bench.model_server import KEY, MODEL


async def run(_: Session, *, url: str, runs: int, warm_up: int) -> LibraryRuns:
    """``url``: the model server's; nothing else is asked."""
    async with AsyncOpenAI(base_url=url, api_key=KEY, http_client=DefaultAioHttpClient()) as client:
        agent = Agent(
            OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client)), system_prompt=SYSTEM_PROMPT
        )

        @agent.tool_plain
        async def pass_on(value: str) -> str:
            return value

        await asyncio.gather(*(_talk(agent) for _ in range(warm_up)))
        cpu, began = time.process_time(), time.perf_counter()
        ages = await asyncio.gather(*(_talk(agent) for _ in range(runs)))
        wall = time.perf_counter() - began
        return LibraryRuns(wall, time.process_time() - cpu, [age for each in ages for age in each])


async def _talk(agent: Agent[None, str]) -> list[float]:
    """One run, its text taken as it comes; milliseconds from each delta's sending."""
    reader = Reader()
    reader.opened_ns = time.time_ns()
    async with agent.iter("talk") as run:
        async for node in run:
            if not Agent.is_model_request_node(node):
                continue
            async with node.stream(run.ctx) as events:
                async for event in events:
                    match event:
                        case PartStartEvent(part=TextPart(content=text)):
                            reader.take(text)
                        case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
                            reader.take(text)
                        case _:
                            continue
    return reader.ages_ms
