"""Recorded events of agent runs, made by hand, and random ones with the text that flows between them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec
from hypothesis import strategies as st

from runtime import events
from runtime.events import Event, StepError, ToolCall

RATE_LIMITED = StepError(type="RateLimited", message="slow down (HTTP 429)")
INTERRUPTED = StepError(type="Interrupted", message="its answer was not recorded; the call is made again")


class Piece(NamedTuple):
    """A piece of text on the live feed."""

    node_id: str
    step: str
    offset: int
    text: str


class RunTeller:
    """Writes one run's history: positions rise with gaps, as in a log that others write to as well."""

    def __init__(self, prompt: str = "Say something", total_nodes: int = 1, gap: int = 3) -> None:
        self._gap = gap
        self.items: list[tuple[int, Event] | Piece] = []
        self.add(
            events.Queued,
            tenant="default",
            flow_id="agent-run",
            flow_version="1",
            source="test",
            input={"prompt": prompt},
            total_nodes=total_nodes,
            owner="host-0",
        )

    @property
    def recorded(self) -> list[tuple[int, Event]]:
        return [item for item in self.items if not isinstance(item, Piece)]

    def add(self, made: type[Event], **fields: Any) -> None:
        version = len(self.recorded) + 1
        event = made(originator_id="run-1", originator_version=version, at=version * 1_000_000, **fields)
        self.items.append((version * self._gap, event))

    def begin(self, *nodes: str) -> None:
        self.add(events.Started)
        for node in nodes or ("answer",):
            self.add(events.NodeStarted, node_id=node)

    def call(self, step: str, node: str = "answer", purpose: str = "") -> None:
        self.add(events.StepStarted, node_id=node, step=step, kind="model", name="gpt-test", purpose=purpose)

    def say(self, step: str, offset: int, text: str, node: str = "answer") -> None:
        self.items.append(Piece(node, step, offset, text))

    def retry(self, step: str, error: StepError = RATE_LIMITED, node: str = "answer") -> None:
        at = len(self.recorded) * 1_000_000
        self.add(events.StepRetried, node_id=node, step=step, tries=1, error=error, retry_at=at + 3_000_000)

    def answer(
        self, step: str, text: str, calls: Iterable[ToolCall] = (), node: str = "answer", purpose: str = ""
    ) -> None:
        self.add(
            events.MessageRecorded,
            node_id=node,
            step=step,
            role="assistant",
            content=text,
            tool_calls=tuple(calls),
            purpose=purpose,
        )
        self.add(
            events.UsageRecorded,
            node_id=node,
            step=step,
            model="gpt-test",
            input_tokens=10,
            output_tokens=5,
            cost=0.25,
            cost_known=True,
        )

    def tool(self, call: ToolCall, result: Any, node: str = "answer") -> None:
        step = f"tool-{call.tool_call_id}"
        self.add(
            events.StepStarted, node_id=node, step=step, kind="tool", name=call.name, request=call.arguments
        )
        self.tool_answer(call, result, node)

    def tool_answer(self, call: ToolCall, result: Any, node: str = "answer") -> None:
        self.add(
            events.MessageRecorded,
            node_id=node,
            step=f"tool-{call.tool_call_id}",
            role="tool",
            content=result,
            tool_call_id=call.tool_call_id,
            name=call.name,
        )

    def think(self, node: str = "answer") -> None:
        self.add(events.NodeLogged, node_id=node, event="thinking", detail={"text": "hm"})

    def end(self, output: Any, *nodes: str) -> None:
        for node in nodes or ("answer",):
            self.add(events.NodeCompleted, node_id=node, output=output)
        self.add(events.Completed, output=output)


def tool_call(number: int, name: str = "clock", **arguments: Any) -> ToolCall:
    return ToolCall(tool_call_id=f"call_{number}", name=name, arguments=arguments)


_TEXTS = st.text("abcde é𝄞", max_size=12)


@st.composite
def random_runs(draw: st.DrawFn) -> list[tuple[int, Event] | Piece]:
    """One or two agents side by side; tries that are given up after some text; tools and logs between."""
    nodes = ["left", "right"][: draw(st.integers(1, 2))]
    teller = RunTeller(total_nodes=len(nodes), gap=draw(st.integers(1, 4)))
    teller.begin(*nodes)
    scripts = [_node_script(draw, node) for node in nodes]
    while any(scripts):
        script = draw(st.sampled_from([each for each in scripts if each]))
        action, *arguments = script.pop(0)
        getattr(teller, action)(*arguments)
    end = draw(st.sampled_from(("completed", "failed", "cancelled")))
    if end == "completed":
        teller.end("done", *nodes)
    elif end == "failed":
        teller.add(events.NodeFailed, node_id=nodes[0], error=RATE_LIMITED)
        teller.add(events.Failed, error=RATE_LIMITED, node_id=nodes[0])
    else:
        teller.add(events.CancellationRequested, previous_status="running")
        teller.add(events.Cancelled)
    return teller.items


def _node_script(draw: st.DrawFn, node: str) -> list[tuple[Any, ...]]:
    script: list[tuple[Any, ...]] = []
    for number in range(1, draw(st.integers(1, 3)) + 1):
        step = f"model-{number}"
        script.append(("call", step, node))
        for _ in range(draw(st.integers(0, 2))):
            script += _pieces(draw, node, step, draw(_TEXTS), whole=False)
            script.append(("retry", step, draw(st.sampled_from((RATE_LIMITED, INTERRUPTED))), node))
        text = draw(_TEXTS)
        script += _pieces(draw, node, step, text, whole=draw(st.booleans()))
        if draw(st.booleans()):
            script.append(("answer", step, text, (), node))
        else:
            call = msgspec.structs.replace(tool_call(number), tool_call_id=f"{node}_{number}")
            script += [("answer", step, text, (call,), node), ("tool", call, {"now": number}, node)]
    return script


def _pieces(draw: st.DrawFn, node: str, step: str, text: str, *, whole: bool) -> list[tuple[Any, ...]]:
    """The text in pieces; some come twice, and unless ``whole`` some never come."""
    script: list[tuple[Any, ...]] = []
    cuts = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=4))})
    for start, stop in pairwise(cuts):
        script += [("say", step, start, text[start:stop], node)] * (1 if whole else draw(st.integers(0, 2)))
        if draw(st.integers(0, 5)) == 0:
            script.append(("say", step, 0, text[:stop], node))
        if draw(st.integers(0, 5)) == 0:
            script.append(("think", node))
    return script
