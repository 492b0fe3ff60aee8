"""The tools of a run that works in a repository: list, read, search, edit, and see the difference.

All are confined to the copy: a path is taken below it, what lies behind a link or in ``.git`` is refused. The
copy is made as the recorded step ``tool-repository``, whose answer names the commit. A run that goes on after
a crash gets a fresh copy of that commit, and the recorded edits are made in it again, in their order: so what
the model was told about its files stays true.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec

from actors.agents.home import AgentSettings
from actors.agents.tools.bound_tool import Arguments, BoundTool, ToolFailed
from actors.agents.tools.checkout import Checkout, check_out
from actors.agents.tools.credentials import Credentials
from actors.agents.tools.git_command import GitFailed, run_git
from actors.agents.tools.interface import ToolDefinition, ToolResult, ToolsUnavailable
from actors.agents.tools.working_copy import WorkingCopy
from actors.egress import EgressGuard
from actors.step_journal import StepJournal
from runtime.agent_spec import Repository
from runtime.blob_store import BlobStore
from runtime.events import BlobRef, Json

STEP = "tool-repository"
EDIT = "edit_file"
TOOL_SECONDS = 30.0
SEARCH_HITS_MAX = 200
SEARCH_BYTES_MAX = 256 * 1024
LINE_CHARS_MAX = 500
DIFF_BYTES_MAX = 16 * 1024 * 1024
DIFF_MEDIA_TYPE = "text/x-diff"


class RepositoryTools:
    """Of one run, while its copy is there."""

    def __init__(self, checkout: Checkout, blobs: BlobStore, credentials: Credentials) -> None:
        self._checkout = checkout
        self._blobs = blobs
        self._credentials = credentials
        self._copy = WorkingCopy(checkout.folder)
        self._writing = asyncio.Lock()  # edits go one by one, as they will after a crash
        self.tools = tuple(
            BoundTool(definition=_definition(name), call=_bound(act))
            for name, act in (
                ("list_files", self._list),
                ("read_file", self._read),
                ("search", self._search),
                (EDIT, self._edit),
                ("diff", self._diff),
            )
        )

    async def redo(self, journal: StepJournal) -> None:
        """Make the recorded edits again. Raises: ToolsUnavailable of kind RepositoryDiverged."""
        for arguments in recorded_edits(journal):
            try:
                await self._edit(arguments)
            except ToolFailed as error:
                message = f"an edit made before the crash can't be made again: {error}"
                raise ToolsUnavailable("RepositoryDiverged", message[:2_000]) from None

    async def finish(self, journal: StepJournal) -> BlobRef | None:
        """Put the difference into the blob store; None when there is none.

        Raises: GitFailed, TimeoutError, Unavailable; ToolFailed when it is too large to be kept.
        """
        text, is_whole = await self._difference(DIFF_BYTES_MAX)
        if not is_whole:
            raise ToolFailed(f"the diff is larger than {DIFF_BYTES_MAX} bytes")
        if not text:
            return None
        ref = await asyncio.to_thread(self._blobs.put_bytes, text.encode(), DIFF_MEDIA_TYPE)
        journal.log("artifact", {"name": "diff", "ref": msgspec.to_builtins(ref)})
        return ref

    async def _list(self, arguments: Arguments) -> Json:
        return await asyncio.to_thread(
            self._copy.list_files, _text(arguments, "path"), _text(arguments, "pattern")
        )

    async def _read(self, arguments: Arguments) -> Json:
        return await asyncio.to_thread(
            self._copy.read_file,
            _text(arguments, "path"),
            arguments.get("first_line", 1),
            arguments.get("lines", 2_000),
        )

    async def _edit(self, arguments: Arguments) -> Json:
        async with self._writing:
            return await asyncio.to_thread(
                self._copy.edit_file,
                _text(arguments, "path"),
                _text(arguments, "old_text"),
                _text(arguments, "new_text"),
            )

    async def _search(self, arguments: Arguments) -> Json:
        """By git, not by ``re``: a pattern that never ends can be killed."""
        path = self._copy.inside(_text(arguments, "path")).relative_to(self._checkout.folder)
        options = ["--untracked", "--no-exclude-standard", "-n", "-I", "-z", "--no-color"]
        options += [
            "-E" if arguments.get("regex") else "-F",
            *(["-i"] if arguments.get("ignore_case") else []),
        ]
        output = await self._git(
            ("grep", *options, "-e", _text(arguments, "query"), "--", str(path)),
            SEARCH_BYTES_MAX,
            statuses=(0, 1),
        )
        hits: list[Json] = []
        for line in output.stdout.decode(errors="replace").split("\n"):
            name, _, rest = line.partition("\0")
            number, _, text = rest.partition("\0")
            if number.isdigit():
                hits.append({"path": name, "line": int(number), "text": text[:LINE_CHARS_MAX]})
        is_whole = output.is_whole and len(hits) <= SEARCH_HITS_MAX
        return {"hits": hits[:SEARCH_HITS_MAX], **({} if is_whole else {"truncated": True})}

    async def _diff(self, arguments: Arguments) -> Json:
        text, is_whole = await self._difference(DIFF_BYTES_MAX)
        return (text or "Nothing was changed.") + ("" if is_whole else "\n... cut: the diff is too large")

    async def _difference(self, limit: int) -> tuple[str, bool]:
        async with self._writing:
            # Forced: what the run wrote counts, whether or not the repository ignores such files.
            await self._git(("add", "--all", "--force"), limit)
            output = await self._git(
                ("diff", "--cached", "--no-ext-diff", "--no-textconv", "--no-color", "--binary", "HEAD"),
                limit,
            )
        return self._credentials.redactor.text(output.stdout.decode(errors="replace")), output.is_whole

    async def _git(self, arguments: tuple[str, ...], limit: int, statuses: tuple[int, ...] = (0,)) -> Any:
        return await run_git(
            arguments,
            str(self._checkout.folder),
            str(self._checkout.home),
            seconds=TOOL_SECONDS,
            output_bytes_max=limit,
            statuses=statuses,
        )


@asynccontextmanager
async def open_repository(
    repository: Repository,
    settings: AgentSettings,
    guard: EgressGuard,
    credentials: Credentials,
    blobs: BlobStore,
    journal: StepJournal,
) -> AsyncGenerator[RepositoryTools]:
    """Make the copy (or make it again) and give its tools. Leaving removes it. Raises: ToolsUnavailable."""
    answer = journal.answer(STEP)
    recorded = cast("dict[str, str]", answer.content) if answer is not None else {}
    if answer is None:
        await journal.begin(
            STEP, "tool", "repository", request={"url": repository.url, "branch": repository.branch}
        )
    began = journal.now()
    async with check_out(
        repository, recorded.get("commit", ""), settings, guard, credentials, journal
    ) as checkout:
        tools = RepositoryTools(checkout, blobs, credentials)
        if answer is None:
            await journal.end(
                STEP,
                "tool",
                name="repository",
                content={"commit": checkout.commit, "branch": checkout.branch},
                duration_ms=(journal.now() - began) / 1_000,
            )
        await tools.redo(journal)
        yield tools


def recorded_edits(journal: StepJournal) -> list[dict[str, Json]]:
    """Arguments of the edits that succeeded, in the order in which they were begun.

    An edit's own step holds what it gave; its arguments stand in the answer of the model that asked.
    """
    asked: dict[str, Json] = {}
    edits: list[dict[str, Json]] = []
    for step, known in journal.steps():
        if known.answer is None:
            continue
        asked.update((f"tool-{call.tool_call_id}", call.arguments) for call in known.answer.tool_calls)
        if known.kind == "tool" and known.name == EDIT and not known.answer.is_error:
            arguments = asked.get(step)
            if isinstance(arguments, str):
                arguments = msgspec.json.decode(arguments)
            if isinstance(arguments, dict):
                edits.append(cast("dict[str, Json]", arguments))
    return edits


def _text(arguments: Arguments, name: str) -> str:
    return str(arguments.get(name) or "")


def _bound(act: Callable[[Arguments], Awaitable[Json]]) -> Any:
    async def call(arguments: Arguments, step: str, journal: StepJournal) -> ToolResult:
        try:
            return ToolResult(content=await act(arguments))
        except GitFailed as error:
            raise ToolFailed(str(error)) from None

    return call


_PATH: Json = {"type": "string", "maxLength": 1_000, "description": "Relative to the repository's root."}
_TOOLS: dict[str, tuple[str, dict[str, Json], list[str]]] = {
    "list_files": (
        "List the repository's files.",
        {"path": _PATH, "pattern": {"type": "string", "description": "Of names, e.g. *.py"}},
        [],
    ),
    "read_file": (
        "Read a text file of the repository.",
        {
            "path": _PATH,
            "first_line": {"type": "integer", "minimum": 1},
            "lines": {"type": "integer", "minimum": 1, "maximum": 10_000},
        },
        ["path"],
    ),
    "search": (
        "Search the repository's text files for a text, or a POSIX extended regular expression.",
        {
            "query": {"type": "string", "minLength": 1, "maxLength": 1_000},
            "regex": {"type": "boolean"},
            "ignore_case": {"type": "boolean"},
            "path": _PATH,
        },
        ["query"],
    ),
    EDIT: (
        "Change a text file: replace old_text, which must be in it exactly once, by new_text. Without "
        "old_text a new file is created with new_text.",
        {
            "path": _PATH,
            "old_text": {"type": "string", "maxLength": 200_000},
            "new_text": {"type": "string", "maxLength": 200_000},
        },
        ["path", "new_text"],
    ),
    "diff": ("Show what was changed so far, as a unified diff.", {}, []),
}


def _definition(name: str) -> ToolDefinition:
    description, properties, required = _TOOLS[name]
    return ToolDefinition(
        name=name,
        description=description,
        parameters={
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        },
        timeout_seconds=TOOL_SECONDS,
    )
