"""What a release's stored history tells: every event at least once, every kind of end, every aggregate.

``python -m tests.replay.stories NAME`` writes ``NAME.jsonl`` and ``NAME.states.json`` from today's code. That
is done once for a release; from then on the files only ever get read.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from projections.inline_rebuild import fold
from runtime import administration as admin
from runtime import callbacks, events, resources
from runtime.administration import Cause
from runtime.event_log import Append, Chain, EventLog, Recorded, store_env
from runtime.events import (
    BlobRef,
    ChunkResult,
    Event,
    FileDescriptor,
    ItemOutcome,
    StepError,
    StepLogs,
    ToolCall,
)
from runtime.ids import ExecutionId, FlowId, KeyId, Micros, Position, TenantId
from tests.conformance.histories import START, Story, execution_id
from tests.replay.histories import FOLDER, save

ACME = TenantId("acme")
ERROR = StepError(type="ValueError", message="bad “value”", traceback="Traceback …")
URL = "https://example.org/hook"
CAUSE = Cause(at=Micros(START), by="key_admin", cause="req_2")

Decide = Callable[[Any], tuple[Event, ...]]


class Teller:
    def __init__(self, log: EventLog) -> None:
        self._log = log

    def put(self, append: Append) -> None:
        [outcome] = self._log.append([append])
        if not isinstance(outcome, tuple):
            raise outcome

    def go_on(self, story: Story, *steps: tuple[type[Event], dict[str, Any]]) -> None:
        for kind, fields in steps:
            self.put(story.tell(story.next(kind, **fields)))

    def decide(self, stream: str, evolve: Callable[[Any, Event], Any], *decisions: Decide) -> None:
        state: object = None
        chain = Chain()
        for decision in decisions:
            told = decision(state)
            for event in told:
                state = evolve(state, event)
            self.put(Append(stream, told, state, chain))


def tell_all(log: EventLog) -> None:
    teller = Teller(log)
    tell_completed(teller)
    tell_other_ends(teller)
    tell_administration(teller)
    tell_callbacks(teller)
    tell_resources(teller)


def tell_completed(teller: Teller) -> None:
    story = Story(1, nodes=7)
    file = FileDescriptor(
        file_id="f1", name="a.txt", content_type="text/plain", size=3, sha256="cd" * 32, uri="artifact://1/f1"
    )
    queued = story.queued(
        timeout_seconds=3600.0,
        debug=True,
        files=(file,),
        callback_url=URL,
        corr="story-1",
        request_key="k",
        subject="task:t1",
        queue_key="ada",
        priority=5,
        cause="req_1",
    )
    teller.put(story.tell(queued))
    tell_nodes(teller, story)
    tell_steps(teller, story)
    teller.go_on(story, (events.Completed, {"output": {"text": "done", "n": 1.5, "big": 2**60}}))


def tell_nodes(teller: Teller, story: Story) -> None:
    logs = StepLogs(stdout="out", stderr="err", records=("r1",), dropped=5)
    items = (ItemOutcome(index=0, output={"n": 1}), ItemOutcome(index=1, error=ERROR))
    ref = BlobRef(sha256="5e" * 32, size=70_001)
    chunks = (
        ChunkResult(first=3, items=2, results=ref, duration_ms=1.5),
        ChunkResult(first=0, items=3, failed=1, results=ref, errors=ref),
    )
    teller.go_on(
        story,
        (events.Started, {"queue_slot": 1}),
        (events.NodeStarted, {"node_id": "fetch", "where": "host-1"}),
        (events.NodeFailed, {"node_id": "fetch", "error": ERROR, "retry_at": START + 50, "logs": logs}),
        (events.NodeStarted, {"node_id": "fetch", "attempt": 2}),
        (events.NodeCompleted, {"node_id": "fetch", "attempt": 2, "output_ref": ref, "where": "worker-2"}),
        (events.Paused, {}),
        (events.Resumed, {}),
        (events.Recovered, {"owner": "host-2/7"}),
        (events.NodeStarted, {"node_id": "map"}),
        (events.NodeProgressed, {"node_id": "map", "total": 3, "items": items}),
        (events.NodeProgressed, {"node_id": "map", "total": 3, "items": (ItemOutcome(index=2),)}),
        (events.NodeCompleted, {"node_id": "map", "output": [{"n": 1}, None, None], "skips": ("other",)}),
        (events.NodeStarted, {"node_id": "wide"}),
        (events.ChunksRecorded, {"node_id": "wide", "total": 5, "source": "lines 4d", "chunks": ()}),
        (events.ChunksRecorded, {"node_id": "wide", "chunks": chunks, "done": 5, "failed": 1, "rate": 2.5}),
        (events.NodeCompleted, {"node_id": "wide", "output": {"dataset": 1, "items": 5}}),
        (events.NodeSkipped, {"node_id": "other", "reason": "branch"}),
        (events.NodeStarted, {"node_id": "ask"}),
        (
            events.NodeWaiting,
            {"node_id": "ask", "until": START + 10**6, "signal": "approve", "on_timeout": "continue"},
        ),
        (events.SignalReceived, {"signal_id": "sig1", "name": "approve", "payload": {"ok": True}}),
        (events.NodeCompleted, {"node_id": "ask", "output": {"ok": True}}),
        (events.NodeStarted, {"node_id": "nap"}),
        (events.NodeWaiting, {"node_id": "nap", "until": START + 2 * 10**6}),
        (events.TimerFired, {"node_id": "nap"}),
        (events.NodeCompleted, {"node_id": "nap"}),
    )


def tell_steps(teller: Teller, story: Story) -> None:
    """An agent node: a call that is retried and answered with a tool call, the tool, and a large answer."""
    call = ToolCall(tool_call_id="call_1", name="search", arguments={"q": "Grüße"})
    model = {"node_id": "agent", "step": "model-1"}
    tool = {"node_id": "agent", "step": "tool-call_1"}
    side = {"node_id": "agent", "step": "memory-1", "purpose": "memory"}
    usage = {"input_tokens": 11, "output_tokens": 5, "cache_read_tokens": 3, "cache_write_tokens": 2}
    ref = BlobRef(sha256="7a" * 32, size=90_000)
    teller.go_on(
        story,
        (events.NodeStarted, {"node_id": "agent"}),
        (
            events.StepStarted,
            {**model, "kind": "model", "name": "m", "request_hash": "9b" * 32, "request": {"messages": 2}},
        ),
        (events.StepRetried, {**model, "tries": 1, "error": ERROR, "retry_at": START + 60}),
        (
            events.MessageRecorded,
            {
                **model,
                "role": "assistant",
                "content": "Grüße",
                "tool_calls": (call,),
                "raw": {"parts": []},
                "duration_ms": 12.5,
            },
        ),
        (
            events.UsageRecorded,
            {**model, **usage, "model": "m", "cost": 0.25, "cost_known": True, "duration_ms": 12.5},
        ),
        (events.StepStarted, {**tool, "kind": "tool", "name": "search", "child_id": execution_id(6)}),
        (
            events.MessageRecorded,
            {
                **tool,
                "role": "tool",
                "content": "no",
                "tool_call_id": "call_1",
                "name": "search",
                "is_error": True,
            },
        ),
        (events.NodeLogged, {"node_id": "agent", "event": "todos", "detail": {"percent_complete": 50}}),
        (events.StepStarted, {**side, "kind": "model", "name": "m"}),
        (events.MessageRecorded, {**side, "role": "assistant", "content_ref": ref, "raw_ref": ref}),
        (events.UsageRecorded, {**side, "model": "m"}),
        (events.NodeCompleted, {"node_id": "agent", "output": {"output": "Grüße"}}),
    )


def tell_other_ends(teller: Teller) -> None:
    failed = Story(2, nodes=1)
    teller.put(failed.begun())
    teller.go_on(
        failed,
        (events.NodeStarted, {"node_id": "n0"}),
        (events.NodeFailed, {"node_id": "n0", "error": ERROR}),
        (events.Failed, {"error": ERROR, "node_id": "n0"}),
    )
    cancelled = Story(3)
    teller.put(cancelled.begun())
    teller.go_on(
        cancelled,
        (events.CancellationRequested, {"previous_status": "running", "reason": "no longer needed"}),
        (events.Cancelled, {}),
    )
    late = Story(4)
    teller.put(late.tell(late.queued(timeout_seconds=1.0)))
    teller.go_on(late, (events.TimedOut, {"timeout_seconds": 1.0}))
    open_ended = Story(5, nodes=1)
    ref = BlobRef(sha256="1f" * 32, size=40_000)
    teller.put(open_ended.tell(open_ended.queued(input=None, input_ref=ref)))
    child = {"child_id": execution_id(6), "child_flow": "child", "child_input": {"a": [1]}}
    teller.go_on(
        open_ended,
        (events.Started, {}),
        (events.NodeStarted, {"node_id": "call"}),
        (events.NodeWaiting, {"node_id": "call", **child}),
    )
    mid_call = Story(7, nodes=1)
    teller.put(mid_call.begun())
    step = {"node_id": "agent", "step": "model-1"}
    teller.go_on(
        mid_call,
        (events.NodeStarted, {"node_id": "agent"}),
        (events.StepStarted, {**step, "kind": "model", "name": "m"}),
        (events.MessageRecorded, {**step, "role": "assistant", "content": "paid for"}),
        (events.StepStarted, {**step, "step": "model-2", "kind": "model", "name": "m"}),
    )


def tell_administration(teller: Teller) -> None:
    flow = FlowId("greeting")
    teller.decide(
        "flow:acme:greeting",
        admin.evolve_flow,
        lambda state: admin.publish(state, ACME, flow, "0123456789abcdef", {"name": "Greeting"}, CAUSE),
        lambda state: admin.publish(state, ACME, flow, "fedcba9876543210", {"name": "Greeting 2"}, CAUSE),
        lambda state: admin.disable(state, CAUSE),
        lambda state: admin.enable(state, CAUSE),
    )
    teller.decide(
        "key:k1",
        admin.evolve_key,
        lambda state: admin.create_key(
            state,
            KeyId("k1"),
            "ab" * 32,
            ACME,
            "ci",
            ("run", "read"),
            CAUSE,
            requests_per_minute=60,
            expires_at=Micros(START + 99),
        ),
        lambda state: admin.revoke_key(state, CAUSE),
    )


def tell_callbacks(teller: Teller) -> None:
    due, later = Micros(START + 30), Micros(START + 6 * 10**6)
    for number in (1, 2):
        run = ExecutionId(execution_id(number))
        status = 502 if number == 1 else 410
        steps: list[Decide] = [
            lambda state, run=run: callbacks.schedule(state, run, ACME, URL, "ability", at=due),
            lambda state, status=status: callbacks.fail(
                state, str(status), at=due, draw=0.5, status_code=status
            ),
        ]
        if number == 1:
            steps.append(lambda state: callbacks.deliver(state, 204, at=later))
        teller.decide(f"callback:{run}", callbacks.evolve_callback, *steps)


def tell_resources(teller: Teller) -> None:
    document = {"name": "Ada", "tags": ["Web"], "status": "public", "latest_run": execution_id(1)}
    teller.decide(
        "resource:acme:agent:a1",
        resources.evolve_resource,
        lambda state: resources.create(state, ACME, "agent", "a1", document, CAUSE),
        lambda state: resources.change(state, {"name": "Ada L.", "note": None}, CAUSE),
    )
    teller.decide(
        "resource:acme:skill:s1",
        resources.evolve_resource,
        lambda state: resources.create(state, ACME, "skill", "s1", {"title": "Greet"}, CAUSE),
        lambda state: resources.delete(state, CAUSE),
    )


def states(history: Sequence[Recorded]) -> dict[str, object]:
    """The state of every stream after its last event."""
    found: dict[str, object] = {}
    for one in history:
        found[one.originator_id] = fold(one.originator_id, found.get(one.originator_id), one.event())
    return found


def main(name: str) -> None:
    log = EventLog.open(store_env("memory://"))
    tell_all(log)
    history = log.feed(Position(0), 1_000)
    save(name, history)
    encoded = msgspec.json.Encoder(order="sorted").encode(states(history))
    (FOLDER / f"{name}.states.json").write_bytes(msgspec.json.format(encoded, indent=1) + b"\n")
    log.close()


if __name__ == "__main__":
    main(sys.argv[1])
