"""All the tools of a run behind one door: opened together, called by name, released together.

    open: secrets by name -> MCP servers started -> functions described -> repository copied -> tools
    call: arguments checked -> the tool, within its time -> secrets taken out -> result

Every fault of a call is a result for the model; only what keeps the run from having its tools is raised.
"""

import asyncio
import os
import re
import traceback
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

import msgspec
import structlog

from actors.agents.home import AgentHome, AgentSettings
from actors.agents.tools.bound_tool import BoundTool, ToolFailed, check
from actors.agents.tools.credentials import Credentials, SecretSource
from actors.agents.tools.flow_tools import bind_flow
from actors.agents.tools.git_command import GitFailed
from actors.agents.tools.http_tools import bind_http
from actors.agents.tools.interface import ToolDefinition, ToolResult, ToolsUnavailable
from actors.agents.tools.mcp_tools import ProcessPlaces, bind_mcp, instructions_of, open_sessions
from actors.agents.tools.python_tools import PythonTools
from actors.agents.tools.repository import RepositoryTools, open_repository
from actors.agents.tools.todos import UPDATE_TODOS
from actors.egress import EgressGuard, EgressRules
from actors.step_journal import StepJournal
from runtime.agent_spec import AgentSpec, FlowTool, HttpTool, McpServer, PythonTool, ToolSpec
from runtime.errors import DomainError
from runtime.events import Json
from runtime.plan import CallTool
from runtime.vault import Vault, load_key

log = structlog.stdlib.get_logger(__name__)

NAME_CHARS_MAX = 64
_REFUSED = re.compile(r"[^a-zA-Z0-9_-]")


def create_toolbox(home: AgentHome, settings: AgentSettings) -> "HostToolBox":
    """The tools of one host, with the secrets of its installation."""
    return HostToolBox(home, settings, _InstalledSecrets(home, settings))


class _InstalledSecrets:
    """Opens the vault when a secret is first needed: most runs need none, and then no key either."""

    def __init__(self, home: AgentHome, settings: AgentSettings) -> None:
        self._home = home
        self._settings = settings
        self._vault: Vault | None = None

    def get(self, tenant: str, name: str) -> str:
        if self._vault is None:
            given = os.environ.get("HELIOGRAPH_SECRET_KEY", "")
            self._vault = Vault(self._home.blobs.url, load_key(given, self._settings.secret_key_file))
        return self._vault.get(tenant, name)


class HostToolBox:
    """Implements ``interface.ToolBox``; lives on the host's loop."""

    def __init__(
        self,
        home: AgentHome,
        settings: AgentSettings,
        secrets: SecretSource,
        guard: EgressGuard | None = None,
    ) -> None:
        """``guard``: of MCP servers and repositories; by default as ``settings.tool_allow`` says."""
        self._home = home
        self._settings = settings
        self._secrets = secrets
        self._guard = guard or EgressGuard(EgressRules.parse(settings.tool_allow))
        self._python = PythonTools(home)
        self._places = ProcessPlaces(settings.mcp_processes_max)

    @asynccontextmanager
    async def open(self, spec: AgentSpec, journal: StepJournal) -> AsyncGenerator["RunTools"]:
        """See ``interface.ToolBox.open``."""
        credentials = Credentials(self._secrets, journal.execution.tenant, spec.secrets)
        async with AsyncExitStack() as stack:
            try:
                tools, instructions = await self._bind(spec.tools, credentials, journal, stack)
                repository: RepositoryTools | None = None
                own: list[BoundTool] = [UPDATE_TODOS] if spec.todos else []
                if spec.repository is not None:
                    repository = await stack.enter_async_context(
                        open_repository(
                            spec.repository,
                            self._settings,
                            self._guard,
                            credentials,
                            self._home.blobs,
                            journal,
                        )
                    )
                    own += repository.tools
            except ToolsUnavailable as error:
                raise ToolsUnavailable(error.kind, credentials.redactor.text(error.message)) from None
            # Ours first: their names stay, and by its name a recorded edit is found again after a crash.
            yield RunTools(with_unique_names([*own, *tools]), instructions, repository, credentials)

    async def call_once(self, action: CallTool, step: str, journal: StepJournal) -> ToolResult:
        """See ``interface.ToolBox.call_once``."""
        credentials = Credentials(self._secrets, journal.execution.tenant, action.secrets)
        try:
            async with AsyncExitStack() as stack:
                tools, _ = await self._bind((action.tool,), credentials, journal, stack)
                named = [tool for tool in tools if not tool.server or tool.own_name == action.name]
                if not named:
                    message = f"MCP server {tools[0].server if tools else ''} has no tool {action.name}"
                    return ToolResult(content=message, is_error=True)
                return await _call(named[0], action.arguments, step, journal, credentials)
        except ToolsUnavailable as error:
            raise ToolsUnavailable(error.kind, credentials.redactor.text(error.message)) from None

    async def close(self) -> None:
        self._guard.close()

    async def _bind(
        self,
        specs: Sequence[ToolSpec],
        credentials: Credentials,
        journal: StepJournal,
        stack: AsyncExitStack,
    ) -> tuple[list[BoundTool], list[str]]:
        """The tools in the order of ``specs``, and what MCP servers say about theirs."""
        servers = [spec for spec in specs if isinstance(spec, McpServer)]
        sessions = iter(
            await stack.enter_async_context(open_sessions(servers, credentials, self._guard, self._places))
            if servers
            else ()
        )
        tools: list[BoundTool] = []
        instructions: list[str] = []
        for spec in specs:
            match spec:
                case PythonTool():
                    tools.append(await self._python.bind(spec, journal))
                case FlowTool():
                    tools.append(bind_flow(spec, self._home))
                case HttpTool():
                    tools.append(bind_http(spec, self._home, credentials))
                case McpServer():
                    session = next(sessions)
                    tools += bind_mcp(spec, session)
                    instructions.append(instructions_of(spec, session))
        return tools, [text for text in instructions if text]


class RunTools:
    """Implements ``interface.OpenTools``."""

    def __init__(
        self,
        tools: Sequence[BoundTool],
        instructions: Sequence[str],
        repository: RepositoryTools | None,
        credentials: Credentials,
    ) -> None:
        self._tools = {tool.definition.name: tool for tool in tools}
        self._repository = repository
        self._credentials = credentials
        # What a server says about its tools goes to the model too, and a server knows its secrets.
        self.definitions: tuple[ToolDefinition, ...] = tuple(
            _without_secrets(tool.definition, credentials) if tool.server else tool.definition
            for tool in tools
        )
        self.instructions = credentials.redactor.text("\n\n".join(instructions))

    async def call(
        self, name: str, arguments: Mapping[str, Json], step: str, journal: StepJournal
    ) -> ToolResult:
        tool = self._tools.get(name)
        if tool is None:
            return ToolResult(content=f"there is no tool called {name}", is_error=True)
        return await _call(tool, arguments, step, journal, self._credentials)

    async def finish(self, journal: StepJournal) -> Json:
        """See ``interface.OpenTools.finish``. A diff that can't be kept is logged, and the run goes on."""
        if self._repository is None:
            return None
        try:
            ref = await self._repository.finish(journal)
        except (ToolFailed, GitFailed, TimeoutError, DomainError) as error:
            journal.log("artifact", {"name": "diff", "error": str(error) or type(error).__name__})
            return None
        return None if ref is None else msgspec.to_builtins(ref)


async def _call(
    tool: BoundTool,
    arguments: Mapping[str, Json],
    step: str,
    journal: StepJournal,
    credentials: Credentials,
) -> ToolResult:
    """One call; every fault is a result. Raises: CancelledError only."""
    definition = tool.definition
    try:
        if not tool.server:
            check(definition, arguments)
        async with asyncio.timeout(definition.timeout_seconds):
            result = await tool.call(arguments, step, journal)
    except TimeoutError:
        message = f"{definition.name} took longer than its {definition.timeout_seconds:g} s"
        result = ToolResult(content=message, is_error=True)
    except ToolFailed as error:
        result = ToolResult(content=str(error), is_error=True)
    except ToolsUnavailable as error:  # a secret that was removed meanwhile
        result = ToolResult(content=f"{error.kind}: {error.message}", is_error=True)
    except DomainError as error:
        result = ToolResult(content=f"{type(error).__name__}: {error}", is_error=True)
    except Exception as error:  # noqa: BLE001  # ours or a library's: the model may go on without this tool
        # Not `exception`: a traceback with its variables could show a secret.
        trace = credentials.redactor.text("".join(traceback.format_exception(error)))
        log.error("a tool failed in a way nobody foresaw", tool=definition.name, traceback=trace)
        result = ToolResult(content=f"{definition.name} failed: {type(error).__name__}", is_error=True)
    return msgspec.structs.replace(result, content=credentials.redactor.value(result.content))


def _without_secrets(definition: ToolDefinition, credentials: Credentials) -> ToolDefinition:
    parameters = cast("dict[str, Json]", credentials.redactor.value(dict(definition.parameters)))
    description = credentials.redactor.text(definition.description)
    return msgspec.structs.replace(definition, description=description, parameters=parameters)


def with_unique_names(tools: Sequence[BoundTool]) -> list[BoundTool]:
    """Names a model may use, each once.

    A name that several have: the tools of MCP servers get ``<server>_`` before it. What still collides is
    numbered in the order of the tools, which is that of the specification.
    """
    names = [_allowed(tool.definition.name) for tool in tools]
    counts = Counter(names)
    names = [
        _allowed(f"{tool.server}_{name}") if tool.server and counts[name] > 1 else name
        for tool, name in zip(tools, names, strict=True)
    ]
    taken: set[str] = set()
    unique: list[BoundTool] = []
    for tool, name in zip(tools, names, strict=True):
        number, candidate = 2, name
        while candidate in taken:
            ending = f"_{number}"
            number, candidate = number + 1, name[: NAME_CHARS_MAX - len(ending)] + ending
        taken.add(candidate)
        definition = msgspec.structs.replace(tool.definition, name=candidate)
        unique.append(msgspec.structs.replace(tool, definition=definition))
    return unique


def _allowed(name: str) -> str:
    return _REFUSED.sub("_", name)[:NAME_CHARS_MAX] or "tool"
