"""Published flows as tools: a call starts a child execution, or finds the one an earlier try started."""

from actors.agents.home import AgentHome
from actors.agents.tools.bound_tool import Arguments, BoundTool, ToolFailed, object_schema
from actors.agents.tools.interface import ToolDefinition, ToolResult, child_id_of
from actors.step_journal import StepJournal
from runtime.agent_spec import FlowTool

RESULT_BYTES_MAX = 8 * 1024 * 1024


def bind_flow(spec: FlowTool, home: AgentHome) -> BoundTool:
    """Raises: ToolsUnavailable for a schema that is none."""
    name = spec.name or spec.flow_id
    definition = ToolDefinition(
        name=name,
        description=spec.description or f"Run the flow {spec.flow_id} and give its output.",
        parameters=object_schema(spec.schema, name),
        timeout_seconds=spec.timeout_seconds,
        result_bytes_max=spec.result_bytes_max,
        child_flow=spec.flow_id,
    )

    async def call(arguments: Arguments, step: str, journal: StepJournal) -> ToolResult:
        child_id = child_id_of(home, journal, step)
        outcome = await home.run_child_flow(
            journal.execution, journal.node_id, child_id, spec.flow_id, dict(arguments)
        )
        if outcome.error is not None:
            raise ToolFailed(f"{outcome.error.type}: {outcome.error.message}")
        if outcome.output_ref is None:
            return ToolResult(content=outcome.output)
        if outcome.output_ref.size > RESULT_BYTES_MAX:
            size = outcome.output_ref.size
            raise ToolFailed(f"the flow's output has {size} bytes; at most {RESULT_BYTES_MAX} are taken")
        return ToolResult(content=await home.load(outcome.output_ref))

    return BoundTool(definition=definition, call=call)
