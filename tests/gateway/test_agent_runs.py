"""Runs of agents through the real gateway parts: put together, started, found again, remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from gateway.agent_documents import AGENT, GUARDRAIL, MCP_SERVER, MEMORY, SKILL, RunOptions
from gateway.agent_memories import Memories
from gateway.agent_runs import AgentRuns, InputViolation
from gateway.builtin_flows import AGENT_RUN, ANSWER, BATCH, DEFINITIONS, TASK_ANALYSIS, ensure
from gateway.call import Call
from gateway.happenings import RunEnded, TextDelta
from gateway.keys import Caller
from gateway.registry import Resource
from gateway.run_stream import Numbered, follow_run, follow_subject
from projections.execution_summary import ExecutionRow
from runtime import commands
from runtime.administration import Cause
from runtime.agent_spec import (
    AgentOutput,
    AgentSpec,
    FlowTool,
    Guardrail,
    HttpTool,
    McpServer,
    Repository,
    Skill,
)
from runtime.errors import InvalidInput, NotFound
from runtime.events import StepError
from runtime.flow import parse_flow
from runtime.graph import compile_flow
from runtime.ids import NodeId
from runtime.plan import RunAgent
from tests.gateway.run_histories import tool_call
from tests.gateway.running_app import GREETING, Running, running

TENANT = "default"
SUBJECT = "workflow:w1"


async def created(app: Running, kind: str, document: Mapping[str, Any], tenant: str = TENANT) -> Resource:
    return await app.gateway.registry.create(tenant, kind, document, Cause(at=app.gateway.clock()))


def call_of(app: Running) -> Call:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": []}
    call = Call(scope, receive, app.gateway)
    call.caller = Caller("key-1", TENANT, frozenset(), None, None, None)
    return call


async def started(
    app: Running, spec: AgentSpec, execution_id: str, subject: str = SUBJECT, agent_id: str = ""
) -> ExecutionRow:
    await app.gateway.agent_runs.start(
        call_of(app), spec, execution_id=execution_id, source="test", subject=subject, agent_id=agent_id
    )
    row = await app.gateway.reads.execution(execution_id)
    assert row is not None
    return row


class Driver:
    """Does by hand what a host does with the run of an agent."""

    def __init__(self, app: Running, execution_id: str) -> None:
        self._app = app
        self._id = execution_id

    async def send(self, made: Any, **fields: Any) -> None:
        await self._app.host.send(self._id, made(at=self._app.gateway.clock(), **fields))

    async def begin(self) -> None:
        await self.send(commands.Admit)
        await self.send(commands.StartNode, node_id=NodeId(ANSWER))

    async def ask(self, step: str = "model-1") -> None:
        await self.send(
            commands.BeginStep, node_id=NodeId(ANSWER), attempt=1, step=step, kind="model", name="m"
        )

    async def answer(self, text: str, step: str = "model-1", **fields: Any) -> None:
        await self.send(
            commands.EndStep,
            node_id=NodeId(ANSWER),
            attempt=1,
            step=step,
            role="assistant",
            content=text,
            **fields,
        )

    async def complete(self, text: str, messages: tuple[Any, ...] = (), **fields: Any) -> None:
        said = messages or ({"role": "user", "content": "?"}, {"role": "assistant", "content": text})
        output = msgspec.to_builtins(AgentOutput(output=text, messages=said, **fields))
        await self.send(commands.RecordCompleted, node_id=NodeId(ANSWER), attempt=1, output=output)
        await self.send(commands.Complete, output=output)

    async def fail(self) -> None:
        error = StepError(type="ModelHTTPError", message="no (HTTP 400)")
        await self.send(commands.RecordFailed, node_id=NodeId(ANSWER), attempt=1, error=error, draw=0.5)

    async def whole(self, text: str, **fields: Any) -> None:
        await self.begin()
        await self.ask()
        await self.answer(text)
        await self.complete(text, **fields)


# --- built-in flows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flow_id", list(DEFINITIONS))
def test_built_in_flows_are_flows_without_a_problem(flow_id: str) -> None:
    plan = compile_flow(parse_flow(DEFINITIONS[flow_id]))
    assert list(plan.steps) == ["items" if flow_id == BATCH else ANSWER]


def test_a_specification_comes_through_the_agent_flow_as_it_went_in() -> None:
    spec = AgentSpec(
        prompt="What is {{ 7 * 7 }} and ${inputs.model}?",
        model="gpt-test",
        system="Be {brief}.",
        history=({"role": "user", "content": "hi"},),
        tools=(HttpTool(name="get", url="https://x.test/{id}", headers={"A": "{secret:TOKEN}"}),),
        skills=(Skill(name="s", instructions="i"),),
        guardrails=(Guardrail(name="g", rule="length", max_chars=9),),
        memories=("m",),
        max_turns=7,
        output_format="json",
        output_schema={"type": "object"},
        reasoning_effort="low",
        temperature=0.5,
        compaction="summarise",
        auto_memory=True,
        caveman=True,
        tsv_tool_results=True,
        todos=True,
        repository=Repository(url="https://x.test/r.git"),
        secrets={"TOKEN": "mine"},
    )
    plan = compile_flow(parse_flow(DEFINITIONS[AGENT_RUN]))
    for sent in (spec, AgentSpec(prompt="just this")):
        scope: dict[str, Any] = {"inputs": msgspec.to_builtins(sent), "nodes": {}, "execution": {}}
        action = plan.steps[NodeId(ANSWER)].act(scope)
        assert isinstance(action, RunAgent)
        assert action.spec == sent


def test_a_built_in_flow_is_published_once_when_it_is_needed() -> None:
    async def scenario() -> None:
        async with running() as app:
            assert await app.gateway.catalogue.published(TENANT, TASK_ANALYSIS) is None
            first = await ensure(app.gateway, TENANT, TASK_ANALYSIS)
            again = await ensure(app.gateway, TENANT, TASK_ANALYSIS)
            described = await app.gateway.catalogue.describe(TENANT, TASK_ANALYSIS)
            assert described is not None
            assert (first.version, len(described[1])) == (again.version, 1)

    asyncio.run(scenario())


def test_a_built_in_flow_that_was_disabled_stays_so() -> None:
    async def scenario() -> None:
        async with running() as app:
            await ensure(app.gateway, TENANT, AGENT_RUN)
            await app.gateway.catalogue.disable(TENANT, AGENT_RUN, Cause(at=app.gateway.clock()))
            with pytest.raises(NotFound, match="disabled"):
                await ensure(app.gateway, TENANT, AGENT_RUN)

    asyncio.run(scenario())


# --- specifications -----------------------------------------------------------------------------------


def test_a_specification_is_put_together_from_what_the_tenant_has() -> None:
    async def scenario() -> None:
        async with running() as app:
            by_id = await created(app, SKILL, {"name": "one", "instructions": "1", "tags": []})
            await created(app, SKILL, {"name": "two", "instructions": "2", "tags": ["Team"]})
            await created(app, SKILL, {"name": "other", "instructions": "3", "tags": ["else"]})
            rule = await created(
                app, GUARDRAIL, {"name": "short", "rule": "length", "max_chars": 5, "tags": [], "note": None}
            )
            await created(
                app,
                MCP_SERVER,
                {"name": "files", "url": "https://mcp.test", "allow": ["read", "list"], "description": "d"},
            )
            rules = [
                {"name": "several", "rule": "pattern", "pattern": "x"},
                {"name": "several", "rule": "length", "max_chars": 9},
            ]
            await created(app, GUARDRAIL, {"name": "several", "rules": rules, "tags": ["Safe"]})
            await created(app, GUARDRAIL, {"name": "off", "rules": rules, "tags": ["safe"], "enabled": False})
            agent = await created(
                app,
                AGENT,
                {
                    "name": "Ada",
                    "system_prompt": "You are Ada.",
                    "model": "gpt-agent",
                    "skill_ids": [by_id.resource_id, "gone"],
                    "tools": [
                        {"kind": "mcp", "server": "files", "allow": ["read", "write"]},
                        {"kind": "mcp", "server": "gone"},
                        {"kind": "flow", "flow_id": "greeting"},
                        {"kind": "flow", "flow_id": "gone"},
                    ],
                },
            )
            for number in range(3):
                await created(app, MEMORY, {"text": f"fact {number}", "parent": agent.resource_id})
            await created(app, MEMORY, {"text": "of another", "parent": "another"})
            options = RunOptions(
                skill_ids=(by_id.resource_id,),
                skill_tags=("team",),
                guardrail_ids=(rule.resource_id,),
                guardrail_tags=("safe",),
                infinite_session=True,
                max_turns=9,
                repo_url="https://x.test/r.git",
                repo_token_name="token",
                credential_overrides={"GH": "mine"},
            )
            spec = await app.gateway.agent_runs.spec(TENANT, agent, "hello", options, [{"role": "user"}])
            assert spec == AgentSpec(
                prompt="hello",
                model="gpt-agent",
                system="You are Ada.",
                history=({"role": "user"},),
                tools=(
                    McpServer(name="files", url="https://mcp.test", allow=("read",)),
                    FlowTool(flow_id="greeting", description="greeting", schema={"type": "object"}),
                ),
                skills=(Skill(name="one", instructions="1"), Skill(name="two", instructions="2")),
                guardrails=(
                    Guardrail(name="short", rule="length", max_chars=5),
                    Guardrail(name="several", rule="pattern", pattern="x"),
                    Guardrail(name="several", rule="length", max_chars=9),
                ),
                memories=("fact 0", "fact 1", "fact 2"),
                max_turns=9,
                compaction="summarise",
                repository=Repository(url="https://x.test/r.git", secret="token"),
                secrets={"GH": "mine"},
            )
            bypassed = await app.gateway.agent_runs.spec(
                TENANT, agent, "hello", RunOptions(bypass_memory=True, model="gpt-run")
            )
            assert (bypassed.memories, bypassed.model, bypassed.max_turns) == ((), "gpt-run", 5)

    asyncio.run(scenario())


def test_an_agent_of_another_tenant_brings_no_tool_that_names_the_callers_things() -> None:
    async def scenario() -> None:
        async with running() as app:
            tools = [
                {"kind": "http", "name": "open", "url": "https://x.test"},
                {
                    "kind": "http",
                    "name": "leak",
                    "url": "https://x.test",
                    "headers": {"A": "{secret:TOKEN}"},
                },
                {"kind": "flow", "flow_id": "greeting"},
            ]
            theirs = await created(app, AGENT, {"name": "Eve", "tools": tools, "status": "public"}, "eve")
            await app.gateway.catalogue.publish("eve", GREETING, Cause(at=app.gateway.clock()))
            spec = await app.gateway.agent_runs.spec(TENANT, theirs, "hello", RunOptions())
            assert [getattr(tool, "name", "") for tool in spec.tools] == ["open"]
            own = await app.gateway.agent_runs.spec("eve", theirs, "hello", RunOptions())
            assert len(own.tools) == 3

    asyncio.run(scenario())


def test_an_option_out_of_bounds_is_refused_before_anything_starts() -> None:
    async def scenario() -> None:
        async with running() as app:
            with pytest.raises(InvalidInput, match="max_turns"):
                await app.gateway.agent_runs.spec(TENANT, None, "hello", RunOptions(max_turns=201))

    asyncio.run(scenario())


def test_input_guardrails_name_what_they_refuse_and_what_they_miss() -> None:
    spec = AgentSpec(
        prompt="too long a prompt",
        guardrails=(
            Guardrail(name="short", rule="length", max_chars=5),
            Guardrail(name="answers only", stage="output", rule="length", max_chars=1),
            Guardrail(name="fields", rule="required_input", fields=("city",)),
            Guardrail(name="shape", rule="json_schema", schema={"required": ["city"]}),
        ),
    )
    found = AgentRuns.check_input(spec, spec.prompt, {"country": "x"})
    assert [(each.guardrail, each.is_missing) for each in found] == [
        ("short", False),
        ("fields", True),
        ("shape", False),
    ]
    assert AgentRuns.check_input(spec, "ok", {"city": "Rome"}) == ()
    assert found[1] == InputViolation("fields", "missing required input: city", True)


# --- runs ---------------------------------------------------------------------------------------------


def test_a_run_is_started_once_and_belongs_to_its_subject() -> None:
    async def scenario() -> None:
        async with running() as app:
            runs = app.gateway.agent_runs
            assert await runs.latest_run(TENANT, SUBJECT) is None
            await started(app, AgentSpec(prompt="one"), "run-1")
            await started(app, AgentSpec(prompt="one"), "run-1")
            await started(app, AgentSpec(prompt="two"), "run-2")
            await started(app, AgentSpec(prompt="other"), "run-3", subject="workflow:w2")
            assert [row.execution_id for row in await runs.runs(TENANT, SUBJECT, 10)] == ["run-2", "run-1"]
            latest = await runs.latest_run(TENANT, SUBJECT)
            assert latest is not None
            assert latest.execution_id == "run-2"
            assert await runs.latest_run("elsewhere", SUBJECT) is None

    asyncio.run(scenario())


def test_a_view_follows_its_run_event_by_event() -> None:
    async def scenario() -> None:
        async with running() as app:
            runs = app.gateway.agent_runs
            row = await started(app, AgentSpec(prompt="hello"), "run-1")
            assert (await runs.view(row)).status == "queued"
            driver = Driver(app, "run-1")
            await driver.begin()
            await driver.ask()
            usage = commands.Usage(model="m", input_tokens=3, output_tokens=2)
            await driver.answer("Hello!", usage=usage)
            row = await runs.latest_run(TENANT, SUBJECT)
            assert row is not None
            view = await runs.view(row)
            assert [message.content for message in view.messages] == ["hello", "Hello!"]
            assert view.usage is not None
            assert (view.usage.input_tokens, view.usage.cost_known) == (3, False)
            await driver.complete("Hello!")
            row = await runs.latest_run(TENANT, SUBJECT)
            assert row is not None
            pictures = await asyncio.gather(*(runs.view(row) for _ in range(5)))
            assert {picture.status for picture in pictures} == {"completed"}
            assert [log.event for log in pictures[0].logs].count("completed") == 1

    asyncio.run(scenario())


def test_the_next_runs_history_is_what_the_last_one_left() -> None:
    async def scenario() -> None:
        async with running() as app:
            runs = app.gateway.agent_runs
            assert await runs.session(TENANT, SUBJECT) == ()
            await started(app, AgentSpec(prompt="?"), "run-1")
            await Driver(app, "run-1").whole("first")
            kept = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "first"})
            assert await runs.session(TENANT, SUBJECT) == kept
            large = ({"role": "user", "content": "x" * 100_000},)
            await started(app, AgentSpec(prompt="?", history=kept), "run-2")
            await Driver(app, "run-2").whole("second", messages=large)
            assert await runs.session(TENANT, SUBJECT) == large
            await started(app, AgentSpec(prompt="still queued"), "run-3")
            assert await runs.session(TENANT, SUBJECT) == large

    asyncio.run(scenario())


def test_of_a_run_that_broke_off_the_history_keeps_what_was_answered() -> None:
    async def scenario() -> None:
        async with running() as app:
            runs = app.gateway.agent_runs
            before = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
            await started(app, AgentSpec(prompt="look", history=before), "run-1")
            driver = Driver(app, "run-1")
            await driver.begin()
            await driver.ask("model-1")
            await driver.answer("Looking", "model-1", tool_calls=(tool_call(1),))
            assert await runs.session(TENANT, SUBJECT) == ()  # it goes on
            await driver.send(
                commands.BeginStep,
                node_id=NodeId(ANSWER),
                attempt=1,
                step="tool-call_1",
                kind="tool",
                name="clock",
            )
            await driver.send(
                commands.EndStep,
                node_id=NodeId(ANSWER),
                attempt=1,
                step="tool-call_1",
                role="tool",
                content={"now": 12},
                tool_call_id="call_1",
                name="clock",
            )
            await driver.ask("model-2")
            await driver.answer("And again", "model-2", tool_calls=(tool_call(2),))
            await driver.fail()
            assert await runs.session(TENANT, SUBJECT) == (
                *before,
                {"role": "user", "content": "look"},
                {
                    "role": "assistant",
                    "content": "Looking",
                    "tool_calls": [msgspec.to_builtins(tool_call(1))],
                },
                {"role": "tool", "content": {"now": 12}, "tool_call_id": "call_1", "name": "clock"},
            )
            assert await runs.session(TENANT, SUBJECT, completed_only=True) == ()
            await started(app, AgentSpec(prompt="never answered", history=before), "run-2")
            await Driver(app, "run-2").begin()
            await Driver(app, "run-2").fail()
            assert await runs.session(TENANT, SUBJECT) == before

    asyncio.run(scenario())


def test_what_a_run_found_worth_keeping_is_there_for_the_next_once() -> None:
    async def scenario() -> None:
        async with running() as app:
            runs, registry = app.gateway.agent_runs, app.gateway.registry
            agent = await created(app, AGENT, {"name": "Ada"})
            spec = AgentSpec(prompt="?", auto_memory=True)
            await started(app, spec, "run-1", agent_id=agent.resource_id)
            await Driver(app, "run-1").whole("yes", memories=("likes tea", "lives in Rome"))
            made = await runs.spec(TENANT, agent, "?", RunOptions(), subject=SUBJECT)
            assert sorted(made.memories) == ["likes tea", "lives in Rome"]
            while await runs.memories.follow_once():
                continue
            listed, total = await registry.listing(TENANT, MEMORY, parent=agent.resource_id)
            assert total == 2
            assert {each.resource_id for each in listed} == {"run-1-1", "run-1-2"}
            assert listed[0].document["execution_id"] == "run-1"

    asyncio.run(scenario())


def test_memories_are_kept_by_following_the_log_alone() -> None:
    async def scenario() -> None:
        async with running() as app:
            spec = AgentSpec(prompt="?", auto_memory=True)
            await started(app, spec, "run-1", agent_id="a1")
            await Driver(app, "run-1").whole("yes", memories=("likes tea",))
            await started(app, AgentSpec(prompt="?"), "run-2", agent_id="a1")
            await Driver(app, "run-2").whole("yes", memories=("was not asked for",))
            # A reader of its own, so that the gateway's may be ahead of it or behind.
            await Memories(app.gateway).follow_once()
            listed, _ = await app.gateway.registry.listing(TENANT, MEMORY, parent="a1")
            assert [each.document["text"] for each in listed] == ["likes tea"]

    asyncio.run(scenario())


# --- streams ------------------------------------------------------------------------------------------


def test_a_run_is_followed_live_with_its_text() -> None:
    async def scenario() -> None:
        async with running() as app:
            row = await started(app, AgentSpec(prompt="hello"), "run-1")
            driver = Driver(app, "run-1")
            await driver.begin()
            await driver.ask()

            async def follow() -> list[Any]:
                return [happening async for _, happening in follow_run(app.gateway, row)]

            following = asyncio.create_task(follow())
            await app.host.say("run-1", ANSWER, "Hel")
            await app.host.until_heard("run-1", 1)
            await driver.answer("Hello!")
            await driver.complete("Hello!")
            found = await asyncio.wait_for(following, 20)
            assert [each.text for each in found if isinstance(each, TextDelta)] == ["Hel", "lo!"]
            assert isinstance(found[-1], RunEnded)

    asyncio.run(scenario())


def test_a_subjects_stream_goes_on_with_its_next_run() -> None:
    async def scenario() -> None:
        async with running() as app:
            await started(app, AgentSpec(prompt="before"), "run-0")
            await Driver(app, "run-0").whole("told nobody")
            ended: asyncio.Queue[tuple[int, RunEnded]] = asyncio.Queue()
            numbers: list[int] = []

            async def follow() -> None:
                async for number, happening in follow_subject(app.gateway, TENANT, SUBJECT):
                    numbers.append(number)
                    if isinstance(happening, RunEnded):
                        await ended.put((number, happening))

            following = asyncio.create_task(follow())
            for name in ("run-1", "run-2"):
                await started(app, AgentSpec(prompt="?"), name)
                await Driver(app, name).whole(name)
                _, end = await asyncio.wait_for(ended.get(), 20)
                assert end.answer == name
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            assert numbers == sorted(set(numbers))

            for seen, number in enumerate(numbers[:-1], 1):
                source = follow_subject(app.gateway, TENANT, SUBJECT, after=number)
                assert await numbers_of(source, len(numbers) - seen) == numbers[seen:]

    asyncio.run(scenario())


async def numbers_of(source: AsyncGenerator[Numbered], count: int) -> list[int]:
    """The first ``count`` ids."""
    async with aclosing(source):
        return [(await anext(source))[0] for _ in range(count)]


def test_until_terminal_replays_the_latest_run_and_closes() -> None:
    async def scenario() -> None:
        async with running() as app:
            for name in ("run-1", "run-2"):
                await started(app, AgentSpec(prompt="?"), name)
                await Driver(app, name).whole(name)
            source = follow_subject(app.gateway, TENANT, SUBJECT, until_terminal=True)
            found = [each async for each in source]
            assert [each.answer for _, each in found if isinstance(each, RunEnded)] == ["run-2"]
            seen = found[-1][0]
            rest = follow_subject(app.gateway, TENANT, SUBJECT, after=seen, until_terminal=True)
            assert [each async for each in rest] == []
            await started(app, AgentSpec(prompt="?"), "run-3")
            await Driver(app, "run-3").whole("run-3")
            newer = follow_subject(app.gateway, TENANT, SUBJECT, after=seen, until_terminal=True)
            assert [each.answer async for _, each in newer if isinstance(each, RunEnded)] == ["run-3"]

    asyncio.run(scenario())


def test_a_run_that_was_cancelled_is_not_told_to_those_who_come_later() -> None:
    async def scenario() -> None:
        async with running() as app:
            await started(app, AgentSpec(prompt="?"), "run-1")
            driver = Driver(app, "run-1")
            await driver.begin()
            await driver.send(commands.RequestCancel)

            async def is_gone() -> bool:
                return True

            source = follow_subject(app.gateway, TENANT, SUBJECT, is_gone=is_gone)
            assert [each async for each in source] == []
            replayed = follow_subject(app.gateway, TENANT, SUBJECT, until_terminal=True)
            assert [each.status async for _, each in replayed if isinstance(each, RunEnded)] == ["cancelled"]

    asyncio.run(scenario())


def test_a_subjects_stream_ends_when_the_resource_is_gone() -> None:
    async def scenario() -> None:
        async with running() as app:
            gone = asyncio.Event()

            async def is_gone() -> bool:
                return gone.is_set()

            async def follow() -> list[Numbered]:
                return [each async for each in follow_subject(app.gateway, TENANT, SUBJECT, is_gone=is_gone)]

            following = asyncio.create_task(follow())
            gone.set()
            app.gateway.agent_runs.news.tell(TENANT, SUBJECT)
            assert await asyncio.wait_for(following, 20) == []

    asyncio.run(scenario())
