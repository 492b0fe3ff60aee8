"""The steps of a map's items: kept while an item is under way, dropped once its outcome is recorded."""

from typing import Any

from runtime import commands
from runtime.events import ChunkResult, ItemOutcome
from runtime.execution import decide, start
from runtime.flow import parse_flow
from runtime.graph import compile_flow
from runtime.ids import Micros, NodeId
from runtime.state import ExecutionState, item_prefix

IT = NodeId("it")
PLAN = compile_flow(
    parse_flow(
        {
            "heliograph": 1,
            "id": "f",
            "nodes": [
                {
                    "id": "it",
                    "kind": "map",
                    "over": "inputs.list",
                    "each": {"kind": "chat_model", "prompt": "{{ item }}"},
                }
            ],
        }
    )
)


def running_map() -> ExecutionState:
    state = start(
        commands.StartExecution(
            at=Micros(1),
            execution_id="e",
            tenant="t",
            flow_id="f",
            flow_version="v",
            source="s",
            owner="o",
        ),
        PLAN,
    ).state
    state = decide(state, PLAN, commands.Admit(at=Micros(2))).state
    return decide(state, PLAN, commands.StartNode(at=Micros(2), node_id=IT)).state


def then(state: ExecutionState, command: Any, **fields: Any) -> ExecutionState:
    return decide(state, PLAN, command(at=Micros(3), node_id=IT, attempt=1, **fields)).state


def begin(state: ExecutionState, index: int) -> ExecutionState:
    step = item_prefix(index) + "model-1"
    return then(state, commands.BeginStep, step=step, kind="model", name="m")


def test_the_outcome_of_an_item_takes_the_place_of_its_steps() -> None:
    state = running_map()
    for index in (1, 11, 2):
        state = begin(state, index)
    state = then(state, commands.RecordProgress, total=20, items=(ItemOutcome(index=1, output="x"),))
    assert list(state.nodes[IT].steps) == ["11.model-1", "2.model-1"]


def test_an_answered_step_of_an_unfinished_item_is_kept_for_a_recovery() -> None:
    state = begin(running_map(), 3)
    state = then(state, commands.EndStep, step="3.model-1", role="assistant", content="paid for")
    state = then(state, commands.RecordProgress, total=20, items=(ItemOutcome(index=4, output="x"),))
    answer = state.nodes[IT].steps["3.model-1"].answer
    assert answer is not None
    assert answer.content == "paid for"


def test_the_steps_of_items_in_recorded_chunks_are_dropped() -> None:
    state = running_map()
    for index in (0, 3, 12):
        state = begin(state, index)
    done = (ChunkResult(first=0, items=3), ChunkResult(first=10, items=5))
    state = then(state, commands.RecordChunks, source="s", chunks=done)
    assert list(state.nodes[IT].steps) == ["3.model-1"]
