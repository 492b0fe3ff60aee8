"""Conversations of an agent that are interrupted, and what must hold of each afterwards.

One conversation: three calls of the model, between them two calls of a tool. What was paid for is counted
where it is paid: in the model server's journal, and in the file into which the tool writes its keys.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from runtime import events
from runtime.ids import ExecutionId
from tests.contracts.live_server import flow
from tests.faults.server import FaultyServer
from tests.model_server import Answer, Asked, Exchange, ModelServer, Reply, ToolUse, says

END_SECONDS = 90.0
PAUSE_SECONDS = 0.02
MODEL_CALLS = ("model-1", "model-2", "model-3")
TOOLS = ("take_note", "take_note_when_told")

TALK = flow(
    "talk",
    {
        "id": "agent",
        "kind": "agent",
        "prompt": "{{ inputs.file }}",
        "tools": [{"kind": "python", "function": f"tests.faults.agent_tools:{name}"} for name in TOOLS],
    },
    output="${nodes.agent.output}",
)

ANSWER = "Two notes: noted one, noted two"


def script(
    hang_at: int | None = None, *, hang_after: int = 0, tool: str = TOOLS[0]
) -> Callable[[Asked], Answer]:
    """The model's side. Turn ``hang_at`` hangs when it is asked for the first time.

    The prompt is the path of the file that the tool writes into, so conversations don't meet.
    """

    def answer(asked: Asked) -> Answer:
        turns = (_calls(tool, asked, "one"), _calls(tool, asked, "two"), says(ANSWER))
        reply = turns[min(asked.turn, 2)]
        if asked.turn != hang_at or asked.tries:
            return reply
        return Reply(text=reply.text, calls=reply.calls, hang="gate", hang_after=hang_after)

    return answer


def _calls(tool: str, asked: Asked, text: str) -> Reply:
    return Reply(text=f"Taking note {text}.", calls=(ToolUse(tool, {"file": asked.prompt, "text": text}),))


class Talk(NamedTuple):
    """One conversation, started for good."""

    execution_id: str
    notes: Path


def begin(server: FaultyServer, name: str) -> Talk:
    """Start it, and again with the same key until the start is acknowledged."""
    folder = server.folder / name
    folder.mkdir()
    notes = folder / "notes"
    body = {"input_data": {"file": str(notes)}}
    answer = insist(server, "POST", "/v1/executions/talk/async", json=body, headers={"Idempotency-Key": name})
    return Talk(answer.json()["execution_id"], notes)


def insist(server: FaultyServer, method: str, path: str, **request: Any) -> httpx.Response:
    """The answer to a request that is repeated until the server is there to give one."""
    deadline = time.monotonic() + END_SECONDS
    last = ""
    while time.monotonic() < deadline:
        try:
            with server.client() as client:
                response = client.request(method, path, **request)
        except httpx.TransportError as error:
            last = repr(error)
        else:
            if response.is_success:
                return response
            last = f"{response.status_code} {response.text}"
            assert "retry-after" in response.headers, last
        time.sleep(PAUSE_SECONDS)
    raise AssertionError(f"{method} {path}: {last}")


def until_ended(server: FaultyServer, talk: Talk) -> dict[str, Any]:
    deadline = time.monotonic() + END_SECONDS
    while True:
        shown: dict[str, Any] = insist(server, "GET", f"/v1/executions/{talk.execution_id}").json()
        if shown["status"] in ("COMPLETED", "FAILED", "CANCELLED"):
            return shown
        assert time.monotonic() < deadline, f"still {shown}"
        time.sleep(PAUSE_SECONDS)


class Steps(NamedTuple):
    """What the log says of one conversation. By step: when it was recorded, and how often it was repeated."""

    answered_at: dict[str, int]
    answers: Counter[str]
    repeated: Counter[str]


def steps_of(server: FaultyServer, talk: Talk) -> Steps:
    answered_at: dict[str, int] = {}
    answers: Counter[str] = Counter()
    repeated: Counter[str] = Counter()
    with server.log() as log:
        for recorded in log.read(ExecutionId(talk.execution_id)):
            event = recorded.event()
            if isinstance(event, events.MessageRecorded):
                answered_at[event.step] = event.at
                answers[event.step] += 1
            elif isinstance(event, events.StepRetried):
                repeated[event.step] += 1
    return Steps(answered_at, answers, repeated)


def broken_promises(
    server: FaultyServer, model_server: ModelServer, talk: Talk, tool: str = TOOLS[0]
) -> list[str]:
    """What does not hold of a conversation that has ended; nothing, if all is well."""
    shown = until_ended(server, talk)
    if (shown["status"], shown["final_output"]) != ("COMPLETED", {"output": ANSWER}):
        return [f"it ended {shown['status']} with {shown['final_output']}, {shown['error_message']}"]
    steps = steps_of(server, talk)
    found: list[str] = []
    tools = [step for step in steps.answers if step.startswith("tool-")]
    if set(steps.answers) != {*MODEL_CALLS, *tools} or len(tools) != 2:
        found.append(f"recorded answers: {dict(steps.answers)}")
    found += [f"{step} was recorded {count} times" for step, count in steps.answers.items() if count != 1]
    asked: defaultdict[str, list[Exchange]] = defaultdict(list)
    for exchange in model_server.journal.until_settled():
        if exchange.idempotency_key.startswith(talk.execution_id):
            asked[exchange.idempotency_key].append(exchange)
    if set(asked) != {_key(talk, step) for step in MODEL_CALLS}:
        found.append(f"keys of model calls: {sorted(asked)}")
    for step in MODEL_CALLS:
        calls = asked[_key(talk, step)]
        found += [
            f"{step} was asked again after its answer was recorded"
            for call in calls
            if call.at * 1e6 > steps.answered_at[step]
        ]
        # A call whose beginning is recorded may not have been made; none is made without its beginning.
        if not 1 <= len(calls) <= 1 + steps.repeated[step]:
            found.append(f"{step} was asked {len(calls)} times, {steps.repeated[step]} repeats are recorded")
    return found + _broken_notes(talk, steps, tools)


def _broken_notes(talk: Talk, steps: Steps, tools: list[str]) -> list[str]:
    lines = [line.split(" ", 1) for line in talk.notes.read_text().splitlines()]
    times = Counter(key for key, _ in lines)
    found = [f"the tool was called with the key {key}" for key in times if key not in _keys(talk, tools)]
    for step, text in zip(tools, ("one", "two"), strict=True):
        key = _key(talk, step)
        if not 1 <= times[key] <= 1 + steps.repeated[step]:
            found.append(f"{step} was called {times[key]} times, {steps.repeated[step]} repeats are recorded")
        if {note for each, note in lines if each == key} != {text}:
            found.append(f"{step} did not get the note {text}: {lines}")
    return found


def _keys(talk: Talk, steps: list[str]) -> set[str]:
    return {_key(talk, step) for step in steps}


def _key(talk: Talk, step: str) -> str:
    return f"{talk.execution_id}:agent:{step}"
