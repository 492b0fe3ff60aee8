"""The example flows, walked through by hand: what each node does with the outputs before it."""

from pathlib import Path
from typing import Any

from runtime.flow import parse_flow
from runtime.graph import compile_flow
from runtime.ids import NodeId
from runtime.plan import MapOver, Output, Plan, Wait

FLOWS = Path(__file__).parents[2] / "flows"


def plan_of(name: str) -> Plan:
    return compile_flow(parse_flow((FLOWS / name).read_bytes()))


def test_hello_greets_in_three_steps() -> None:
    plan = plan_of("hello.yaml")
    scope: dict[str, Any] = {"inputs": {"who": "Ada"}, "nodes": {}, "execution": {}}
    for node_id, step in plan.steps.items():
        action = step.act(scope)
        assert isinstance(action, Output)
        scope["nodes"][node_id] = action.value

    assert plan.output(scope) == "Hello Ada! Sincerely, Heliograph."


def test_approval_waits_and_takes_the_way_of_the_answer() -> None:
    plan = plan_of("approval.yaml")
    route = plan.steps[NodeId("route")]

    def taken(answer: Any) -> Any:
        return route.act({"inputs": {}, "nodes": {"decision": answer}})

    assert plan.steps[NodeId("decision")].act({"inputs": {}}) == Wait(
        signal="decision", delay_seconds=86400.0, on_timeout="continue"
    )
    assert taken({"approved": True}) == Output("approved", (NodeId("decline"),))
    assert taken({"approved": False}) == taken(None) == Output("else", (NodeId("accept"),))
    nodes = {"route": "else", "accept": None, "decline": "Declined: x"}
    assert plan.output({"nodes": nodes}) == {"outcome": "else", "letter": "Declined: x"}


def test_fanout_maps_every_word() -> None:
    plan = plan_of("fanout.yaml")
    scope: dict[str, Any] = {"inputs": {"words": ["red sun", "moon"]}, "nodes": {}}
    action = plan.steps[NodeId("numbered")].act(scope)
    assert isinstance(action, MapOver)
    outcomes = [action.each.act({**scope, "item": item, "index": i}) for i, item in enumerate(action.items)]
    scope["nodes"]["numbered"] = {
        "results": [o.value for o in outcomes if isinstance(o, Output)],
        "errors": [],
    }
    joined = plan.steps[NodeId("list")].act(scope)
    scope["nodes"]["list"] = joined.value if isinstance(joined, Output) else None

    assert plan.output(scope) == {"text": "1. Red Sun\n2. Moon", "count": 2, "failed": 0}
