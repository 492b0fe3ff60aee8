"""MCP servers as real processes, over stdio and streamable HTTP."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.agents.tools import mcp_stdio
from actors.agents.tools.interface import ToolResult, ToolsUnavailable
from actors.agents.tools.mcp_tools import ProcessPlaces
from runtime.agent_spec import McpServer
from runtime.plan import CallTool
from tests.actors.agents.tools.tool_household import SECRETS, SERVER, bounded, house, http_server, stdio

ALL = {"echo", "add", "slow", "fail", "big", "needs_token", "picture", "idempotency_key", "die", "indiscreet"}


def servers() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [process for process in found if "tools_server.py" in " ".join(process.cmdline())]


def test_the_tools_of_a_stdio_server_are_offered_called_and_its_process_ends(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:
            async with home.open(stdio()) as opened:
                assert len(servers()) == 1
                assert {tool.name for tool in opened.definitions} == ALL
                adding = next(tool for tool in opened.definitions if tool.name == "add")
                assert adding.description == "The sum of two whole numbers."
                assert adding.parameters["required"] == ["a", "b"]
                assert opened.instructions == "About the tools of local: Add before you echo."
                assert await home.call(opened, "add", a=1, b=2) == ToolResult(content=3)
                answers = await asyncio.gather(
                    *(home.call(opened, "echo", text=str(number)) for number in range(20))
                )
                assert [answer.content for answer in answers] == [str(number) for number in range(20)]
            assert servers() == []

    bounded(body())


def test_a_streamable_http_server_answers_with_the_token_it_wants(tmp_path: Path) -> None:
    async def body(url: str) -> None:
        async with house(tmp_path) as home:
            with_token = McpServer(name="far", url=url, headers={"Authorization": "Bearer {secret:api}"})
            async with home.open(with_token) as opened:
                assert {tool.name for tool in opened.definitions} == ALL
                assert await home.call(opened, "add", a=1, b=2) == ToolResult(content=3)
                assert (await home.call(opened, "fail")).is_error
            assert home.secrets.asked == [("t", "api")]
            with pytest.raises(ToolsUnavailable, match="MCP server far") as refused:
                async with home.open(McpServer(name="far", url=url)):
                    pytest.fail("it opened without a token")
            assert refused.value.kind == "McpUnavailable"
            assert refused.value.message.endswith("(HTTP 401)")

    with http_server("--token", SECRETS["api"]) as url:
        bounded(body(url))


def test_results_are_structured_text_errors_or_a_description(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home, home.open(stdio()) as opened:
            failed = await home.call(opened, "fail")
            assert failed.is_error
            assert "this one never works" in str(failed.content)
            assert await home.call(opened, "picture") == ToolResult(content="[image/png, 9 bytes]")
            wrong = await home.call(opened, "add", a="one")
            assert wrong.is_error
            key = await home.call(opened, "idempotency_key", step="tool-7")
            assert key.content == home.journal.key("tool-7")
            unknown = await home.call(opened, "none_such")
            assert unknown == ToolResult(content="there is no tool called none_such", is_error=True)

    bounded(body())


def test_only_allowed_tools_are_offered(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home, home.open(stdio(allow=("add",))) as opened:
            assert [tool.name for tool in opened.definitions] == ["add"]

    bounded(body())


def test_names_that_collide_carry_their_servers(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:
            one, two = stdio("one", allow=("add", "echo")), stdio("two", allow=("add",))
            async with home.open(one, two) as opened:
                assert {tool.name for tool in opened.definitions} == {"one_add", "echo", "two_add"}
                assert (await home.call(opened, "two_add", a=2, b=2)).content == 4

    bounded(body())


def test_a_slow_call_is_given_up_and_the_session_goes_on(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home, home.open(stdio(timeout_seconds=4)) as opened:
            slow = await home.call(opened, "slow", seconds=600)
            assert slow == ToolResult(content="slow took longer than its 4 s", is_error=True)
            assert (await home.call(opened, "add", a=1, b=1)).content == 2

    bounded(body())


def test_a_server_that_dies_in_a_call_is_told_to_the_model(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home, home.open(stdio()) as opened:
            gone = await home.call(opened, "die")
            assert gone.is_error
            assert "MCP server local" in str(gone.content)
            again = await home.call(opened, "add", a=1, b=1)
            assert again.is_error
            assert "MCP server local" in str(again.content)

    bounded(body())


def test_overrides_reach_the_process_and_their_values_leave_it_never(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:
            async with home.open(stdio(), secrets={"API_TOKEN": "api"}) as opened:
                assert await home.call(opened, "needs_token") == ToolResult(content="signed in with ***")
                described = {tool.name: tool.description for tool in opened.definitions}
                assert described["indiscreet"] == "Signs in as ***."
                echoed = await home.call(opened, "echo", text=f"it is {SECRETS['api']}")
                assert echoed.content == "it is ***"
            async with home.open(stdio(env={"API_TOKEN": "{secret:other}"})) as opened:
                assert await home.call(opened, "needs_token") == ToolResult(content="signed in with ***")
            async with home.open(stdio()) as opened:
                assert "API_TOKEN is not set" in str((await home.call(opened, "needs_token")).content)

    bounded(body())


def test_an_unknown_secret_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:
            with pytest.raises(ToolsUnavailable) as missing:
                async with home.open(stdio(env={"TOKEN": "{secret:lost}"})):
                    pytest.fail("it opened")
            assert (missing.value.kind, missing.value.message) == (
                "SecretNotFound",
                "there is no secret called lost",
            )
            assert servers() == []

    bounded(body())


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("/nowhere/server",), "there is no program called /nowhere/server"),
        ((sys.executable, "-c", "import sys; sys.exit('no licence')"), "it said: no licence"),
    ],
)
def test_a_server_that_can_not_be_started_is_named_with_the_reason(
    tmp_path: Path, command: tuple[str, ...], reason: str
) -> None:
    async def body() -> ToolsUnavailable:
        async with house(tmp_path) as home:
            with pytest.raises(ToolsUnavailable) as refused:
                async with home.open(stdio("good"), McpServer(name="bad", command=command)):
                    pytest.fail("it opened")
            assert servers() == []
            return refused.value

    error = bounded(body())
    assert error.kind == "McpUnavailable"
    assert error.message.startswith("MCP server bad can't be used: ")
    assert reason in error.message


NOISY = """
import sys
sys.path.insert(0, {folder!r})
sys.stdout.write("Starting up ...\\n")
sys.stdout.flush()
sys.argv = ["server", "stdio"]
import tools_server
tools_server.main()
"""


def test_noise_on_stdout_does_no_harm_and_an_endless_line_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_stdio, "LINE_BYTES_MAX", 1_000_000)
    noisy = NOISY.format(folder=str(Path(SERVER).parent))
    endless = "import sys\nwhile True: sys.stdout.write('x' * 65536)"
    before = set(psutil.Process().children())  # those of fixtures that live as long as the run

    async def body() -> None:
        async with house(tmp_path) as home:
            async with home.open(McpServer(name="noisy", command=(sys.executable, "-c", noisy))) as opened:
                assert (await home.call(opened, "add", a=1, b=2)).content == 3
                too_long = await home.call(opened, "big", size=2_000_000)
                assert too_long.is_error
            with pytest.raises(ToolsUnavailable, match="MCP server endless can't be used"):
                async with home.open(McpServer(name="endless", command=(sys.executable, "-c", endless))):
                    pytest.fail("it opened")
            assert set(psutil.Process().children()) <= before

    bounded(body())


def test_a_url_out_of_bounds_or_without_a_server_is_refused(tmp_path: Path) -> None:
    async def body(url: str, allow: str) -> ToolsUnavailable:
        async with house(tmp_path, tool_allow=allow) as home:
            with pytest.raises(ToolsUnavailable) as refused:
                async with home.open(McpServer(name="far", url=url)):
                    pytest.fail("it opened")
            return refused.value

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/mcp"
        private = bounded(body(url, ""))
        assert private.message == (
            "MCP server far can't be used: the host's address is not public (loopback)"
        )
        closed = bounded(body(url, "127.0.0.1"))
        assert (closed.kind, closed.message[:27]) == ("McpUnavailable", "MCP server far can't be use")


def test_a_process_that_ignores_its_end_is_killed(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:
            async with home.open(stdio("deaf", "--deaf")) as opened:
                assert (await home.call(opened, "add", a=1, b=1)).content == 2
                (process,) = servers()
            assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    bounded(body())


def test_a_cancelled_run_leaves_no_process_and_no_task(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:
            in_call = asyncio.Event()

            async def work() -> None:
                async with home.open(stdio()) as opened:
                    in_call.set()
                    await home.call(opened, "slow", seconds=600)

            task = asyncio.create_task(work())
            await in_call.wait()
            assert len(servers()) == 1
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            assert servers() == []

    bounded(body())


def test_one_call_without_a_model_uses_the_servers_own_name(tmp_path: Path) -> None:
    async def body() -> None:
        async with house(tmp_path) as home:

            async def once(name: str, **arguments: Any) -> ToolResult:
                action = CallTool(stdio(), name, arguments, {"API_TOKEN": "api"})
                return await home.box.call_once(action, "tool-call", home.journal)

            assert await once("add", a=2, b=3) == ToolResult(content=5)
            assert await once("needs_token") == ToolResult(content="signed in with ***")
            missing = await once("subtract")
            assert missing == ToolResult(content="MCP server local has no tool subtract", is_error=True)
            assert servers() == []

    bounded(body())


def test_places_for_processes_are_taken_together_and_given_back(tmp_path: Path) -> None:
    async def body() -> None:
        places = ProcessPlaces(2)
        with pytest.raises(ToolsUnavailable, match="at most 2"):
            async with places.take(3):
                pytest.fail("there are only two")
        order: list[str] = []

        async def second() -> None:
            async with places.take(2):
                order.append("second")

        async with places.take(1):
            waiting = asyncio.create_task(second())
            await asyncio.sleep(0)
            order.append("first")
        await waiting
        assert order == ["first", "second"]

    bounded(body())
