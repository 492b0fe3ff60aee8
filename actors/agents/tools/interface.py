"""Between the agent loop and the tools: what a tool is told and what it gives, and who records what.

The loop records a tool call as the step ``tool-<tool_call_id>``: it begins the step, calls
``OpenTools.call``, cuts the result to ``ToolDefinition.result_bytes_max`` and ends the step. So whoever
implements a tool records no step of its own; it may ``journal.log`` (todos, artifacts). A call whose step has
an answer is never made.
"""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from actors.agents.home import AgentHome
from actors.step_journal import StepJournal
from runtime.agent_spec import RESULT_BYTES_MAX, AgentSpec
from runtime.events import Json
from runtime.ids import NodeId
from runtime.plan import CallTool


def child_id_of(home: AgentHome, journal: StepJournal, step: str) -> str:
    """The execution that a flow tool's call starts: the same in every attempt and after every crash."""
    return home.child_id(journal.execution, NodeId(journal.key(step)), 1)


class ToolDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """One tool as the model sees it.

    ``name``: at most 64 of ``[a-zA-Z0-9_-]``, unique among the tools of a run. ``parameters``: a JSON Schema
    of type object. ``timeout_seconds``: the loop gives a call up after it. ``child_flow``: a call runs this
    flow as a child execution, whose id is ``child_id_of`` the call's step.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Json]
    timeout_seconds: float = 60.0
    result_bytes_max: int = RESULT_BYTES_MAX
    child_flow: str = ""


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a call gave: told to the model as it is. ``is_error``: ``content`` says what went wrong.

    ``content``: any JSON value, without secrets; a long one is cut by the loop, not by the tool.
    """

    content: Json = None
    is_error: bool = False


class OpenTools(Protocol):
    """The tools of one run, connected."""

    @property
    def definitions(self) -> tuple[ToolDefinition, ...]:
        """In a stable order, since they are part of the request that a replay compares."""
        ...

    @property
    def instructions(self) -> str:
        """What the model should know about these tools (e.g. of an MCP server); usually empty."""
        ...

    async def call(
        self, name: str, arguments: Mapping[str, Json], step: str, journal: StepJournal
    ) -> ToolResult:
        """Call the tool once. ``arguments``: as the model gave them, checked against nothing yet.

        ``step``: name of the call's step; ``journal.key(step)`` is its stable idempotency key. A failure is a
        result with ``is_error``. Calls run side by side. Raises: CancelledError only.
        """
        ...

    async def finish(self, journal: StepJournal) -> Json:
        """After the model's last word: what is to be kept of the run's repository (``diff_ref``), or None.

        Called once, before ``open``'s context is left; not when the run failed.
        """
        ...


class ToolBox(Protocol):
    """What opens the tools of a run: one for the whole service, shared by all its runs.

    ``actors.agents.tools.toolbox.create_toolbox(home, settings)`` makes the real one.
    """

    def open(self, spec: AgentSpec, journal: StepJournal) -> AbstractAsyncContextManager[OpenTools]:
        """Connect what ``spec`` names. Leaving the context releases everything.

        Raises: ToolsUnavailable when a server or the repository can't be had; nothing else is expected.
        """
        ...

    async def call_once(self, action: CallTool, step: str, journal: StepJournal) -> ToolResult:
        """Open what ``action`` names, call it once, release it: a ``tool`` node, without a model.

        The loop records ``step`` around it. Raises: ToolsUnavailable when the tool can't be had, so that a
        later attempt of the node may have it; a failed call is a result.
        """
        ...

    async def close(self) -> None: ...


class ToolsUnavailable(Exception):
    """The tools of a run can't be opened. ``kind`` becomes the type of the run's ``StepError``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message
