"""`heliograph chat` and `heliograph agents` against a server whose model is a scripted one."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.cli.command import Served
from tests.cli.terminal import CTRL_C, CTRL_D, Terminal
from tests.model_server.script import Asked, Reply, calls, fails, says, tool_loop
from tests.model_server.server import ModelServer
from tests.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.trace_collector import Collector

pytestmark = [pytest.mark.slow, pytest.mark.ray]

WAIT_SECONDS = 60.0
HANGING = Reply(pieces=("one ", "two ", "three"), hang="gate", hang_after=2)


@pytest.fixture(scope="module")
def models() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


@pytest.fixture(scope="module")
def traces() -> Iterator[tuple[str, Collector] | None]:
    """Where spans go; nowhere without the library."""
    if find_spec("opentelemetry.exporter") is None:
        yield None
        return
    from tests.trace_collector import collecting

    with collecting() as found:
        yield found


@pytest.fixture(scope="module")
def agents(
    sandbox: Sandbox, models: ModelServer, flow_files: Path, traces: tuple[str, Collector] | None
) -> Iterator[Served]:
    """A server with an agent called Helper, which may use the flow ``hello``."""
    env = {"HELIOGRAPH_MODEL": "small", "HELIOGRAPH_MODEL_URL": models.url, "HELIOGRAPH_MODEL_KEY": "sk-test"}
    if traces is not None:
        env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": traces[0], "OTEL_BSP_SCHEDULE_DELAY": "100"}
    server = Served(sandbox.root / "chat", env)
    try:
        server.start()
        server.ok("flows", "publish", str(flow_files / "hello.yaml"))
        server.ok("agents", "create", "Helper", "--instructions", "Be brief.", "--flow", "hello")
        yield server
    finally:
        server.close()
        shutil.rmtree(server.folder)


@pytest.fixture
def model(models: ModelServer) -> Iterator[ModelServer]:
    models.reset()
    yield models
    models.reset()


def workflow_of(agents: Served, workflow_id: str) -> dict[str, Any]:
    kept = agents.credentials()
    headers = {"X-API-Key": kept.api_key}
    answer = httpx.get(f"{kept.url}/api/workflows/{workflow_id}", headers=headers, timeout=WAIT_SECONDS)
    return answer.raise_for_status().json()


def way_back(text: str) -> str:
    found = re.search(r"heliograph chat Helper --workflow (\S+)", text)
    assert found is not None, text
    return found[1]


# --- in a pipe --------------------------------------------------------------------------------------------


def test_a_pipe_gets_the_answer_alone_and_the_rest_is_told_beside_it(
    agents: Served, model: ModelServer
) -> None:
    model.play(tool_loop("hello", {"name": "Ada"}, "It says {results}"))
    ended = agents.ok("chat", "helper", "Greet Ada")
    assert ended.out == "It says Hello Ada\n"
    assert '-> hello {"name": "Ada"}' in ended.err
    assert re.search(r"<- hello 9 B in \d+ ms", ended.err)
    assert re.search(r"\d+ tokens in, \d+ out, cost unknown\n", ended.err)


def test_the_prompt_may_come_from_stdin(agents: Served, model: ModelServer) -> None:
    model.play(lambda asked: says("{prompt}"))
    ended = agents.run("chat", "Helper", stdin="from a pipe\n")
    assert (ended.code, ended.out) == (0, "from a pipe\n")
    assert agents.run("chat", "Helper").code == 2, "an empty one says nothing"


def test_the_events_can_be_had_as_they_are(agents: Served, model: ModelServer) -> None:
    model.play(lambda asked: says("Good morning"))
    events = [json.loads(line) for line in agents.ok("chat", "Helper", "Hi", "--json").out.splitlines()]
    assert (events[0]["type"], events[-1]["type"]) == ("status", "status")
    assert events[-1]["data"]["status"] == "completed"
    text = "".join(event["data"]["delta"] for event in events if event["type"] == "message_delta")
    assert text == "Good morning"


def test_a_refused_call_ends_with_one_line_and_a_way_back(agents: Served, model: ModelServer) -> None:
    model.play(
        lambda asked: says("You said {prompt}") if "again" in asked.prompt else fails(400, then=says(""))[0]
    )
    ended = agents.run("chat", "Helper", "Hi")
    assert ended.code == 1
    assert re.search(r"^error: .*HTTP 400", ended.err, re.MULTILINE)
    assert "sk-test" not in ended.err
    back = agents.ok("chat", "Helper", "again", "--workflow", way_back(ended.err))
    assert back.out == "You said again\n"


def test_a_conversation_goes_on_with_what_was_said(agents: Served, model: ModelServer) -> None:
    def remembering(asked: Asked) -> Reply:
        return says("Ada" if "I am Ada" in asked.text else "who?")

    model.play(remembering)
    with Terminal(agents.folder, "chat", "Helper", leave_seconds=0) as terminal:
        terminal.until("> ")
        terminal.type("I am Ada\n")
        terminal.until("\nAda\n")
        terminal.until("cost unknown\n")
        terminal.until("> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0
    back = agents.ok("chat", "Helper", "Who am I?", "--workflow", way_back(terminal.shown))
    assert back.out == "Ada\n"


def test_a_run_without_turns_left_says_so(agents: Served, model: ModelServer) -> None:
    model.play(lambda asked: calls("hello", name="Ada"))
    ended = agents.run("chat", "Helper", "Hi", "--max-turns", "2")
    assert ended.code == 1
    assert "error: the run used up its turns" in ended.err
    assert ended.err.count("-> hello") == 2


# --- at a terminal ----------------------------------------------------------------------------------------


def test_the_answer_is_shown_while_it_is_made(agents: Served, model: ModelServer) -> None:
    model.play(lambda asked: HANGING)
    with Terminal(agents.folder, "chat", "Helper", "Count", leave_seconds=0) as terminal:
        terminal.until("one two ")
        model.release("gate")
        terminal.until("three\n")
        assert terminal.end() == 0
    assert terminal.shown.count("one") == 1


def test_ctrl_c_halts_the_run(agents: Served, model: ModelServer) -> None:
    model.play(lambda asked: HANGING)
    with Terminal(agents.folder, "chat", "Helper", "Count", leave_seconds=0) as terminal:
        terminal.until("one two ")
        terminal.type(CTRL_C)
        terminal.until("error: the run was halted")
        assert terminal.end() == 130
    found = workflow_of(agents, way_back(terminal.shown))
    assert (found["status"], found["last_task_status"]) == ("active", "halted")


def test_ctrl_c_twice_leaves_the_run_running_and_one_can_come_back(
    agents: Served, model: ModelServer
) -> None:
    model.play(lambda asked: HANGING)
    with Terminal(agents.folder, "chat", "Helper", "Count", leave_seconds=WAIT_SECONDS) as terminal:
        terminal.until("one two ")
        terminal.type(CTRL_C)
        terminal.until("Ctrl-C again leaves it running")
        terminal.type(CTRL_C)
        terminal.until("left: the run goes on")
        assert terminal.end() == 130
    workflow_id = way_back(terminal.shown)
    assert workflow_of(agents, workflow_id)["status"] == "running"
    with Terminal(agents.folder, "chat", "Helper", "--workflow", workflow_id, leave_seconds=0) as terminal:
        terminal.until("> Count\n")
        terminal.until("one two ")
        model.release("gate")
        terminal.until("three\n")
        terminal.until("> ")
        terminal.type(CTRL_D)
        assert terminal.end() == 0


def test_nothing_a_model_writes_steers_the_terminal(agents: Served, model: ModelServer) -> None:
    model.play(lambda asked: says("\x1b]0;owned\x07bold \x1b[1mmove\x9b2J\ttab"))
    with Terminal(agents.folder, "chat", "Helper", "Hi", leave_seconds=0) as terminal:
        terminal.until("move")
        assert terminal.end() == 0
    assert "\x1b]" not in terminal.shown
    assert "\x9b" not in terminal.shown
    assert "]0;ownedbold [1mmove2J" in terminal.shown


# --- watched from outside ---------------------------------------------------------------------------------


def test_calls_are_counted_by_model_and_by_tool(agents: Served, model: ModelServer) -> None:
    model.play(tool_loop("hello", {"name": "Ada"}))

    def counted() -> dict[str, float]:
        text = httpx.get(f"{agents.credentials().url}/metrics", timeout=WAIT_SECONDS).text
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    agents.ok("chat", "Helper", "Greet Ada", "--model", "counted")
    wanted = {
        'heliograph_model_calls_total{model="counted"}': 2,
        'heliograph_model_unpriced_calls_total{model="counted"}': 2,
        'heliograph_model_seconds_count{model="counted"}': 2,
    }
    deadline = time.monotonic() + WAIT_SECONDS  # the read model follows the log
    while (found := counted()) | wanted != found:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert found['heliograph_tool_calls_total{outcome="ok",tool="hello"}'] >= 1
    assert found['heliograph_tool_seconds_count{tool="hello"}'] >= 1


def test_the_calls_of_a_run_are_spans_of_one_trace(
    agents: Served, model: ModelServer, traces: tuple[str, Collector] | None
) -> None:
    if traces is None:
        pytest.skip("the extra otel is not installed")
    from tests.trace_collector import attributes_of

    model.play(tool_loop("hello", {"name": "Grace"}))
    agents.ok("chat", "Helper", "Greet Grace")
    [newest, *_] = agents.ok("status", "--json", "--flow", "agent-run").json()["executions"]
    trace = newest["execution_id"].replace("-", "")
    deadline = time.monotonic() + WAIT_SECONDS
    while len(spans := [each for each in traces[1].spans if each.trace_id.hex() == trace]) < 3:
        assert time.monotonic() < deadline, spans
        time.sleep(0.1)
    told = sorted((each.start_time_unix_nano, each.name) for each in spans)
    assert [name for _, name in told] == ["chat small", "execute_tool hello", "chat small"]
    assert b"Grace" not in b"".join(each.SerializeToString() for each in spans)
    used = [attributes_of(each).get("gen_ai.usage.output_tokens", 0) for each in spans]
    assert sum(map(int, used)) > 0


# --- agents -----------------------------------------------------------------------------------------------


def test_agents_are_created_listed_and_deleted(agents: Served) -> None:
    made = agents.ok("agents", "create", "Twin", "--model", "big", "--json").json()
    assert (made["name"], made["model"]) == ("Twin", "big")
    [line] = [line for line in agents.ok("agents", "list").out.splitlines() if line.startswith("Helper")]
    assert line.split("\t")[2] == "hello"
    second = agents.ok("agents", "create", "Twin").out.strip()
    ended = agents.run("chat", "Twin", "Hi")
    assert ended.code == 1
    assert ended.err.startswith("error: 2 agents are called 'Twin'\n")
    for agent_id in (made["id"], second):
        assert "agent Twin is deleted" in agents.ok("agents", "delete", agent_id).err
    ended = agents.run("chat", "Twin", "Hi")
    assert ended.code == 1
    assert ended.err.startswith("error: no agent is called 'Twin'\n  `heliograph agents list`")


def test_a_tool_that_is_none_is_refused_in_one_line(agents: Served) -> None:
    assert agents.run("agents", "create", "X", "--tool", "[1]").code == 2
    ended = agents.run("agents", "create", "X", "--tool", '{"kind": "nonsense"}')
    assert ended.code == 1
    assert ended.err.startswith("error: tool_definitions: ")
    assert len(ended.err.splitlines()) == 1
