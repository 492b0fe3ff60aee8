"""The real loop with the real tools: what the loop records is what the tools find again after a crash."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from actors.agents.home import AgentSettings
from runtime import events
from runtime.agent_spec import AgentSpec, McpServer, PythonTool, Repository
from runtime.events import BlobRef, MessageRecorded
from runtime.vault import Vault, load_key
from tests.actors.agents.loop_household import output_of, run_until_killed
from tests.actors.agents.tools.git_house import served
from tests.actors.agents.tools.tool_household import LOOPBACK, SECRETS, SERVER, ToolHome
from tests.model_server.fixture import model_server
from tests.model_server.script import Reply, Rule, ToolUse, says
from tests.model_server.server import ModelServer

__all__ = ["model_server"]


def settings_for(server: ModelServer, folder: Path) -> AgentSettings:
    return AgentSettings(
        model="test-model",
        model_url=server.url,
        checkouts=str(folder / "checkouts"),
        secret_key_file=str(folder / "key"),
        tool_allow=LOOPBACK,
    )


def edit(call_id: str, path: str, old: str, new: str) -> ToolUse:
    return ToolUse("edit_file", {"path": path, "old_text": old, "new_text": new}, id=call_id)


def test_killed_anywhere_a_run_ends_with_the_same_diff(tmp_path: Path, model_server: ModelServer) -> None:
    both = Reply(calls=(edit("e1", "a.txt", "one", "two"), edit("e2", "b.txt", "", "new\n")))
    again = Reply(calls=(edit("e3", "a.txt", "two", "three"), edit("e4", "a.txt", "missing", "x")))
    model_server.play(Rule(turns=(both, again, says("done"))))
    with served(tmp_path) as remote:
        commit = remote.push({"a.txt": "one\n"})
        spec = AgentSpec(prompt="edit", repository=Repository(url=remote.url, branch="main"))
        settings, home = settings_for(model_server, tmp_path), ToolHome(tmp_path)
        whole, outcome = run_until_killed(spec, settings, None, (), 1_000, home)
        assert outcome is not None
        expected = diff_of(output_of(outcome).diff_ref, home)
        assert "-one\n+three" in expected
        assert "+new" in expected
        answered = sorted(event.step for event in whole if isinstance(event, MessageRecorded))
        for cut in range(5, len(whole), 3):
            history, _ = run_until_killed(spec, settings, None, (), cut, home)
            remote.push({"a.txt": f"moved on {cut}\n"})
            history, outcome = run_until_killed(spec, settings, None, history, 1_000, home)
            assert outcome is not None
            recorded = [event.step for event in history if isinstance(event, MessageRecorded)]
            assert sorted(recorded) == answered
            if any(is_clone(event) for event in history[:cut]):
                assert diff_of(output_of(outcome).diff_ref, home) == expected
            remote.reset(commit)
    assert list((tmp_path / "checkouts").glob("*/*")) == []


def is_clone(event: events.Event) -> bool:
    return isinstance(event, MessageRecorded) and event.step == "tool-repository"


def diff_of(ref: Any, home: ToolHome) -> str:
    return home.blobs.get_bytes(BlobRef(**ref)).decode()


def test_no_secret_stands_in_the_record_of_a_run_that_used_one(
    tmp_path: Path, model_server: ModelServer
) -> None:
    home = ToolHome(tmp_path)
    settings = settings_for(model_server, tmp_path)
    Vault(home.blobs.url, load_key("", settings.secret_key_file, create=True)).set("t", "api", SECRETS["api"])
    calls = (ToolUse("needs_token", {}, id="c1"), ToolUse("multiply", {"left": 6, "right": 7}, id="c2"))
    model_server.play(Rule(turns=(Reply(calls=calls), says("{results}"))))
    spec = AgentSpec(
        prompt="sign in",
        tools=(
            McpServer(name="local", command=(sys.executable, SERVER, "stdio"), allow=("needs_token",)),
            PythonTool(function="tests.actors.agents.tools.sample_tools:multiply"),
        ),
        secrets={"API_TOKEN": "api"},
    )
    history, outcome = run_until_killed(spec, settings, None, (), 1_000, home)
    assert outcome is not None
    assert output_of(outcome).output == "signed in with ***\n42"
    assert SECRETS["api"] not in str(history)
    assert SECRETS["api"] not in str(outcome)
    tools = {
        event.name for event in history if isinstance(event, events.StepStarted) and event.kind == "tool"
    }
    assert tools == {"needs_token", "multiply"}
