"""The same agent runs by the model library alone: what they cost before anything is durable or served.

    python -m bench.library_agents MODEL_URL RUNS WARM_UP

One process on one event loop: no server, no log, no readers elsewhere. A delta counts as received when the
library hands it over, in the process that asked for it; the tool is a function in that process.
"""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec
import uvloop
from openai import AsyncOpenAI, DefaultAioHttpClient
from pydantic_ai import Agent
from pydantic_ai.messages import PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from bench.agent_flows import QUICK
from bench.model_server import MODEL

KEY = "sk-bench"


class LibraryRuns(msgspec.Struct):
    """``cpu_seconds``: of this process between the first start and the last end."""

    wall_seconds: float
    cpu_seconds: float
    delta_ms: list[float]


async def _talk(agent: Agent[None, str], prompt: str) -> list[float]:
    """One run, its text taken as it comes; milliseconds from each delta's sending."""
    ages: list[float] = []
    rest = ""
    async with agent.iter(prompt) as run:
        async for node in run:
            if not Agent.is_model_request_node(node):
                continue
            async with node.stream(run.ctx) as events:
                async for event in events:
                    match event:
                        case PartStartEvent(part=TextPart(content=text)):
                            rest += text
                        case PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
                            rest += text
                        case _:
                            continue
                    now = time.time_ns()
                    *stamps, rest = rest.split(" ")
                    ages += [(now - int(stamp)) / 1e6 for stamp in stamps if stamp.isdigit()]
    return ages


async def _measure(url: str, runs: int, warm_up: int) -> LibraryRuns:
    async with AsyncOpenAI(base_url=url, api_key=KEY, http_client=DefaultAioHttpClient()) as client:
        agent = Agent(
            OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=client)),
            system_prompt="You are measured.",
        )

        @agent.tool_plain
        async def pass_on(value: str) -> str:
            return value

        for _ in range(warm_up):
            await _talk(agent, QUICK)
        cpu, began = time.process_time(), time.perf_counter()
        ages = await asyncio.gather(*(_talk(agent, "talk") for _ in range(runs)))
        wall = time.perf_counter() - began
        return LibraryRuns(wall, time.process_time() - cpu, [age for each in ages for age in each])


if __name__ == "__main__":
    done = uvloop.run(_measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
    sys.stdout.buffer.write(msgspec.json.encode(done))
