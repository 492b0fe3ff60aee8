"""What the companion paths keep for runs: tools of agents, rules of guardrails (contract 3.13)."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.agent_documents import AGENT, GUARDRAIL, MCP_SERVER, RunOptions
from runtime.administration import Cause
from runtime.agent_spec import HttpTool, McpServer
from tests.gateway.running_app import Running, running

HTTP = {"kind": "http", "name": "look", "url": "https://example.com/{id}"}


async def made(app: Running, path: str, **body: Any) -> str:
    answer = await app.client.post(path, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def test_an_agent_has_its_own_tools_and_the_registered_servers_it_names() -> None:
    async def run() -> None:
        async with running(model="scripted") as app:
            registry, cause = app.gateway.registry, Cause(at=app.gateway.clock())
            for name, tags in (("files", []), ("mail", ["office"]), ("other", ["home"])):
                server = {"name": name, "url": f"https://{name}.example/mcp", "tags": tags}
                await registry.create("default", MCP_SERVER, server, cause, f"id-of-{name}")
            agent_id = await made(
                app,
                "/api/agents",
                name="a",
                tool_definitions=[HTTP],
                mcp_server_ids=["id-of-files", "no-such"],
                mcp_server_tags=["Office"],
            )
            agent = await registry.get("default", AGENT, agent_id)
            spec = await app.gateway.agent_runs.spec("default", agent, "x", RunOptions())
            assert [type(tool) for tool in spec.tools] == [HttpTool, McpServer, McpServer]
            assert [tool.name for tool in spec.tools if isinstance(tool, McpServer)] == ["files", "mail"]
            await app.client.put(f"/api/agents/{agent_id}", json={"mcp_server_tags": []})
            agent = await registry.get("default", AGENT, agent_id)
            spec = await app.gateway.agent_runs.spec("default", agent, "x", RunOptions())
            assert [tool.name for tool in spec.tools if isinstance(tool, McpServer)] == ["files"]

    asyncio.run(run())


def test_an_agent_of_another_contract_keeps_its_fields_when_it_is_renamed() -> None:
    async def run() -> None:
        async with running(model="scripted") as app:
            registry = app.gateway.registry
            document = {"name": "plan", "tools": [HTTP], "flow_id": "task-1", "status": "private"}
            kept = await registry.create("default", AGENT, document, Cause(at=app.gateway.clock()))
            answer = await app.client.put(f"/api/agents/{kept.resource_id}", json={"name": "renamed"})
            assert answer.json()["name"] == "renamed"
            after = await registry.get("default", AGENT, kept.resource_id)
            assert after is not None
            assert after.document == {**document, "name": "renamed"}

    asyncio.run(run())


def test_a_guardrail_stands_for_each_of_its_rules_while_it_is_enabled() -> None:
    async def run() -> None:
        async with running(model="scripted") as app:
            output = {
                "forbidden_patterns": ["a", "b"],
                "required_patterns": ["c"],
                "max_length": 9,
                "pii_detection": True,
                "must_be_valid_json": True,
                "instructions": "be kind",
            }
            guardrail_id = await made(
                app, "/api/guardrails", name="g", guardrail_type="output", output_config=output
            )
            runs, options = app.gateway.agent_runs, RunOptions(guardrail_ids=(guardrail_id,))
            spec = await runs.spec("default", None, "x", options)
            assert {rule.stage for rule in spec.guardrails} == {"output"}
            assert [rule.rule for rule in spec.guardrails] == [
                "length",
                *["pattern"] * 3,
                "json_schema",
                *["pattern"] * 3,
                "model",
            ]
            off = await app.client.put(f"/api/guardrails/{guardrail_id}", json={"enabled": False})
            assert off.status_code == 200
            assert (await runs.spec("default", None, "x", options)).guardrails == ()
            kept = await app.gateway.registry.get("default", GUARDRAIL, guardrail_id)
            assert kept is not None
            assert len(kept.document["rules"]) == 9

    asyncio.run(run())
