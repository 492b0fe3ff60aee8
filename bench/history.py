"""A long log before the server starts: real executions, decided once, then recorded many times over.

Only the id differs between the copies; events, states and summary rows are what a host would have written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from uuid_utils import uuid7

from bench.flows import THREE_TEMPLATES
from gateway.keys import FIRST_TENANT
from runtime import commands
from runtime.event_log import Append, Chain, EventLog
from runtime.events import Event
from runtime.execution import Decision, decide, start
from runtime.flow import parse_flow
from runtime.graph import compile_flow
from runtime.ids import Micros
from runtime.state import ExecutionState

EXECUTIONS_PER_COMMIT = 500


class History(NamedTuple):
    events: int
    seconds: float
    execution_ids: list[str]


def record(env: Mapping[str, str], events_least: int) -> History:
    """Record finished executions until the log has so many events more. Blocking."""
    log = EventLog.open(env)
    began = time.monotonic()
    try:
        told, state = one_life()
        ids: list[str] = []
        while len(ids) * len(told) < events_least:
            group = [_copy(told, state, str(uuid7())) for _ in range(EXECUTIONS_PER_COMMIT)]
            for outcome in log.append(group):
                if not isinstance(outcome, tuple):
                    raise outcome
            ids += [append.originator_id for append in group]
        return History(len(ids) * len(told), time.monotonic() - began, ids)
    finally:
        log.close()


def one_life() -> tuple[list[Event], ExecutionState]:
    """Every event of one execution of three templates, and the state they lead to."""
    definition = parse_flow(THREE_TEMPLATES)
    plan = compile_flow(definition)
    at = Micros(time.time_ns() // 1000)
    begun = start(
        commands.StartExecution(
            at=at,
            by="first",
            execution_id=str(uuid7()),
            tenant=FIRST_TENANT,
            flow_id=definition.id,
            flow_version=definition.version,
            source="executions",
            input={"name": "history"},
            owner="host-0/history",
        ),
        plan,
    )
    told, state = list(begun.events), begun.state

    def tell(decision: Decision) -> None:
        nonlocal state
        told.extend(decision.events)
        state = decision.state

    tell(decide(state, plan, commands.Admit(at=at)))
    for node_id in plan.steps:
        tell(decide(state, plan, commands.StartNode(at=at, node_id=node_id, where="host-0")))
        done = commands.RecordCompleted(at=at, node_id=node_id, attempt=1, output="hello history")
        tell(decide(state, plan, done))
    tell(decide(state, plan, commands.Complete(at=at, output="hello history")))
    return told, state


def _copy(told: list[Event], state: ExecutionState, execution_id: str) -> Append:
    replace = msgspec.structs.replace
    events = [replace(event, originator_id=execution_id) for event in told]
    return Append(execution_id, events, replace(state, execution_id=execution_id), Chain())
