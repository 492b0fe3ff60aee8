"""``update_todos``: how a model shows its plan and how far it is; logged, and told to whoever follows."""

from typing import Annotated, Literal

import msgspec

from actors.agents.tools.bound_tool import Arguments, BoundTool, ToolFailed
from actors.agents.tools.interface import ToolDefinition, ToolResult
from actors.step_journal import StepJournal

TODOS_MAX = 100
TITLE_CHARS_MAX = 500
_STATUSES = ("not-started", "in-progress", "completed")

Title = Annotated[str, msgspec.Meta(max_length=TITLE_CHARS_MAX)]


class _Todo(msgspec.Struct, frozen=True):
    id: Annotated[str, msgspec.Meta(max_length=100)] | int
    title: Title
    status: Literal["not-started", "in-progress", "completed"]


class _Given(msgspec.Struct, frozen=True):
    todos: Annotated[tuple[_Todo, ...], msgspec.Meta(max_length=TODOS_MAX)]
    current_step: Title = ""


async def _update(arguments: Arguments, step: str, journal: StepJournal) -> ToolResult:
    try:
        given = msgspec.convert(dict(arguments), _Given)
    except msgspec.ValidationError as error:
        raise ToolFailed(f"the list was not changed: {error}") from None
    todos = [{"id": str(todo.id), "title": todo.title, "status": todo.status} for todo in given.todos]
    done = sum(todo.status == "completed" for todo in given.todos)
    under_way = next((todo.title for todo in given.todos if todo.status == "in-progress"), "")
    journal.log(
        "todos",
        {
            "todos": todos,
            "current_step": given.current_step or under_way,
            "percent_complete": done / len(given.todos) if given.todos else 0.0,
        },
    )
    return ToolResult(content=f"The list is up to date: {done} of {len(given.todos)} completed.")


UPDATE_TODOS = BoundTool(
    definition=ToolDefinition(
        name="update_todos",
        description=(
            "Show your plan and your progress to the user. Give the whole list each time, one item for each"
            " step, and call it again whenever the status of a step changes."
        ),
        parameters={
            "type": "object",
            "properties": {
                "todos": {
                    "type": "array",
                    "maxItems": TODOS_MAX,
                    "items": {
                        "type": "object",
                        "properties": {
                            "id": {
                                "type": ["string", "integer"],
                                "description": "The step's for good.",
                            },
                            "title": {"type": "string", "maxLength": TITLE_CHARS_MAX},
                            "status": {"type": "string", "enum": list(_STATUSES)},
                        },
                        "required": ["id", "title", "status"],
                    },
                },
                "current_step": {
                    "type": "string",
                    "maxLength": TITLE_CHARS_MAX,
                    "description": "What you are doing now, in a few words.",
                },
            },
            "required": ["todos"],
        },
        timeout_seconds=10.0,
    ),
    call=_update,
)
