"""Workflows contract, acceptance scenarios 7, 8, 9 and 19: the stream."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import threading
import time
from pathlib import Path

import httpx
import msgspec
import pytest

from gateway.dialects.workflows.tickets import TICKET_SECONDS, Tickets
from runtime.ids import SECOND, Micros
from tests.contracts.live_server import LiveServer
from tests.contracts.workflows.agent_tools import ROWS
from tests.contracts.workflows.wire import STREAM_SECONDS, Api, Heard
from tests.model_server import ModelServer, Reply, Rule, ToolUse, fails, says, tool_loop

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]

HELD = Rule(turns=(says("one two three four", deltas=4, hang="gate", hang_after=2),), prompt="hold")
ECHO = Rule(turns=(says("{prompt}"),))
USAGE_KEYS = {
    "total_input_tokens",
    "total_output_tokens",
    "total_cache_read_tokens",
    "total_cache_write_tokens",
    "total_premium_requests",
    "total_cost",
    "total_in",
    "total_out",
    "cost",
}


def deltas(frames: list[Heard]) -> str:
    return "".join(frame.data["delta"] for frame in frames if frame.type == "message_delta")


def test_a_late_follower_misses_nothing(api: Api, model_server: ModelServer) -> None:
    """Scenario 7; late means: the model has said half of its answer."""
    model_server.play(HELD)
    workflow_id = api.workflow()
    api.prompt(workflow_id, "hold on")
    model_server.journal.until_hanging("gate")
    with api.stream(workflow_id, until="terminal") as frames:
        first = [next(frames), next(frames)]
        model_server.release("gate")
        rest = list(frames)
    assert first[0].data == {"status": "running", "current_turn": 0}
    assert (first[1].log, first[1].data["detail"]) == ("prompt_received", "hold on")
    assert [frame.is_end for frame in rest] == [False] * (len(rest) - 1) + [True]
    assert rest[-1].data["status"] == rest[-2].log == "completed"
    assert deltas(rest) == "one two three four"


def test_deltas_make_up_the_messages_and_usage_only_rises(api: Api, model_server: ModelServer) -> None:
    """Scenario 8, over a run of two answers and a tool call."""
    use = Reply(
        text="Let me look.", calls=(ToolUse("rows", {"topic": "x"}),), input_tokens=100, output_tokens=7
    )
    model_server.play(Rule(turns=(use, says("Found three.", input_tokens=150, output_tokens=5))))
    workflow_id = api.workflow(api.agent(tool_definitions=[ROWS]))
    api.run(workflow_id)
    frames = api.run_frames(workflow_id)
    told = ""
    contents: list[str] = []
    for frame in frames:
        if frame.type == "message_delta":
            told += frame.data["delta"]
        elif frame.type == "message" and frame.data["role"] == "assistant":
            contents.append(frame.data["content"])
            assert told == frame.data["content"]
            told = ""
    assert contents == ["Let me look.", "Found three."]
    [result] = [frame.data for frame in frames if frame.type == "message" and frame.data["role"] == "tool"]
    assert result["name"] == "rows"
    usages = [frame.data for frame in frames if frame.type == "usage"]
    assert all(set(usage) >= USAGE_KEYS for usage in usages)
    assert [usage["total_in"] for usage in usages] == [100, 250]
    assert all(usage["total_in"] == usage["total_input_tokens"] for usage in usages)
    assert all(usage["total_out"] == usage["total_output_tokens"] for usage in usages)
    assert all(usage["cost"] == usage["total_cost"] for usage in usages)
    for key, earlier in usages[0].items():
        assert usages[1][key] >= earlier
    shown = api.get(workflow_id)["usage"]
    assert {key: usages[-1][key] for key in shown} == shown
    [call] = [frame.data for frame in frames if frame.log == "tool_call"]
    [answer] = [frame.data for frame in frames if frame.log == "tool_result"]
    assert call["tool_input"] == {"topic": "x"}
    assert "tool_output" in answer
    order = [frame.log or frame.type for frame in frames]
    assert order[:2] == ["status", "prompt_received"]
    assert order[-2:] == ["completed", "status"]


def test_a_stream_is_resumed_behind_any_of_its_frames(api: Api, model_server: ModelServer) -> None:
    """Scenario 9."""
    model_server.play(tool_loop("rows", {"topic": "x"}, "all done now", prompt="tool"), ECHO)
    workflow_id = api.workflow(api.agent(tool_definitions=[ROWS]))
    api.run(workflow_id, "tool")
    whole = api.run_frames(workflow_id)
    ids = [frame.id for frame in whole]
    assert ids == sorted(set(ids))
    for seen, frame in enumerate(whole[:-1], 1):
        assert api.after(workflow_id, str(frame.id), len(whole) - seen) == whole[seen:]
    api.run(workflow_id, "second")
    second = api.run_frames(workflow_id)
    assert second[0].id > ids[-1]
    assert api.after(workflow_id, str(whole[-2].id), 1 + len(second)) == [whole[-1], *second]


def test_a_last_event_id_that_is_no_number_is_ignored(api: Api, model_server: ModelServer) -> None:
    """Scenario 9."""
    model_server.play(HELD)
    workflow_id = api.workflow()
    api.prompt(workflow_id, "hold on")
    model_server.journal.until_hanging("gate")
    [first] = api.after(workflow_id, "abc", 1)
    assert first.data["status"] == "running"
    model_server.release("gate")


def test_a_resumed_stream_doubles_no_text_of_the_answer_in_flight(
    api: Api, model_server: ModelServer
) -> None:
    """Section 3.8: cut in the middle of an answer, resumed, and joined with what came before."""
    model_server.play(HELD)
    workflow_id = api.workflow()
    api.prompt(workflow_id, "hold on")
    model_server.journal.until_hanging("gate")
    with api.stream(workflow_id) as frames:
        before = [next(frames)]
        while before[-1].type != "message_delta":
            before.append(next(frames))
    model_server.release("gate")
    headers = {"last-event-id": str(before[-1].id)}
    with api.stream(workflow_id, headers, until="terminal") as frames:
        after = list(frames)
    assert deltas(before) + deltas(after) == "one two three four"
    [message] = [frame.data["content"] for frame in after if frame.type == "message"]
    assert message == "one two three four"


def test_one_stream_tells_of_run_after_run(api: Api, client: httpx.Client) -> None:
    """Section 3.8: it belongs to the workflow, and begins live when nothing runs."""
    workflow_id = api.workflow()
    api.run(workflow_id, "before")
    with api.stream(workflow_id) as frames:
        told: list[str] = []
        for prompt in ("first", "second"):
            api.prompt(workflow_id, prompt)
            run = list(itertools.takewhile(lambda frame: not frame.is_end, frames))
            told += [frame.data["detail"] for frame in run if frame.log == "prompt_received"]
        assert told == ["first", "second"]


def test_the_framing_is_that_of_the_contract(api: Api, client: httpx.Client) -> None:
    """Section 3.8 and G8, on the bytes."""
    workflow_id = api.workflow()
    with client.stream("GET", f"/api/workflows/{workflow_id}/stream") as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache, no-transform"
        lines = response.iter_lines()
        assert [next(lines), next(lines)] == ["retry: 3000", ""]
        assert next(lines) == ": keepalive"
        api.prompt(workflow_id)
        heard = list(itertools.islice((line for line in lines if not line.startswith(":")), 4))
    frame = [line for line in heard if line]
    assert [line.partition(":")[0] for line in frame[:2]] == ["id", "data"]
    body = msgspec.json.decode(frame[1].removeprefix("data: "))
    assert list(body) == ["id", "type", "data", "timestamp"]
    assert frame[0] == f"id: {body['id']}"


def test_a_stream_needs_a_key_or_a_ticket(api: Api, server: LiveServer) -> None:
    """Sections 1 and 3.8."""
    url = f"{server.url}/api/workflows/{api.workflow()}/stream"
    for params in ({}, {"ticket": ""}, {"ticket": "a.b"}, {"ticket": "é"}):
        refused = httpx.get(url, params=params)
        assert (refused.status_code, refused.json()) == (401, {"detail": "Invalid or missing API key"})


def test_a_ticket_opens_one_workflow_for_ten_minutes(api: Api, server: LiveServer) -> None:
    """Scenario 19."""
    workflow_id, other_id = api.workflow(), api.workflow()
    stream_url = api.prompt(workflow_id)["stream_url"]
    opened = httpx.get(f"{server.url}{stream_url}&until=terminal")
    assert opened.status_code == 200
    assert '"status":"completed"' in opened.text
    ticket = stream_url.partition("?ticket=")[2]
    elsewhere = httpx.get(f"{server.url}/api/workflows/{other_id}/stream", params={"ticket": ticket})
    assert (elsewhere.status_code, elsewhere.json()) == (401, {"detail": "Invalid or missing API key"})
    # As the server signs, eleven minutes ago and just now.
    tickets = Tickets([(server.folder / "webhook-secret").read_text().strip()])
    now = time.time_ns() // 1000
    for age, status in ((TICKET_SECONDS + 60, 401), (60, 200)):
        text = tickets.issue("default", workflow_id, "first", Micros(now - age * SECOND))
        url = f"{server.url}/api/workflows/{workflow_id}/stream"
        answer = httpx.get(url, params={"ticket": text, "until": "terminal"})
        assert answer.status_code == status


_LISTENER = """
const source = new EventSource(process.argv[2]);
source.onmessage = (event) => {
  const told = JSON.parse(event.data);
  console.log(JSON.stringify({ last: event.lastEventId, ...told }));
  if (told.type === "status" && told.data.status !== "running") source.close();
};
source.onerror = () => { console.error("stream failed"); process.exit(1); };
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
def test_an_event_source_follows_without_headers(
    api: Api, server: LiveServer, model_server: ModelServer, tmp_path: Path
) -> None:
    """Scenario 19, with the EventSource of Node.js itself."""
    flag = "--experimental-eventsource"
    if subprocess.run(["node", flag, "-e", "EventSource"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("this Node.js has no EventSource")
    model_server.play(HELD)
    workflow_id = api.workflow()
    stream_url = api.prompt(workflow_id, "hold on")["stream_url"]
    model_server.journal.until_hanging("gate")
    script = tmp_path / "listener.js"
    script.write_text(_LISTENER)
    command = ["node", flag, str(script), server.url + stream_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as listener:
        watch = threading.Timer(STREAM_SECONDS, listener.kill)
        watch.start()
        assert listener.stdout is not None
        first = listener.stdout.readline()  # it listens: now the run may end
        model_server.release("gate")
        rest = listener.stdout.read()
        watch.cancel()
    assert listener.returncode == 0
    seen = [msgspec.json.decode(line) for line in (first + rest).splitlines()]
    heard = [Heard(int(each["last"]), each["type"], each["data"]) for each in seen]
    assert (heard[0].data["status"], heard[1].log) == ("running", "prompt_received")
    assert [frame.is_end for frame in heard] == [False] * (len(heard) - 1) + [True]
    assert deltas(heard) == "one two three four"


def test_an_answer_that_broke_off_is_begun_anew_and_says_so(api: Api, model_server: ModelServer) -> None:
    """Section 3.8: the pieces since the last `retrying` make up the message."""
    broken = says("one two three four", deltas=4, cut_after=2)
    model_server.play(Rule(turns=((broken, says("five six")),)))
    workflow_id = api.workflow()
    with api.stream(workflow_id) as frames:
        api.prompt(workflow_id)
        heard = list(itertools.takewhile(lambda frame: not frame.is_end, frames))
    again = max(number for number, frame in enumerate(heard) if frame.log == "retrying")
    assert deltas(heard[again:]) == "five six"
    [message] = [frame.data["content"] for frame in heard if frame.type == "message"]
    assert message == "five six"


def test_a_limit_of_the_provider_is_told(api: Api, model_server: ModelServer) -> None:
    """Section 3.8: the log's event `rate_limited`."""
    model_server.play(Rule(turns=(fails(429, retry_after=0.1, then=says("now")),)))
    workflow_id = api.workflow()
    task = api.run(workflow_id)
    assert task["status"] == "completed"
    assert [each["event"] for each in task["logs"]].count("rate_limited") == 1
