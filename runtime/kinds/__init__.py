"""The node kinds: one file each, and the table that names them.

A kind is pure: its ``act`` says what is to be done (an ``Action`` of ``runtime.plan``), and the shell does
it. Start reading at ``kind``, then any of the others. A new kind is one file and one line here.
"""

from collections.abc import Mapping

from runtime.kinds import (
    agent,
    branch,
    chat_model,
    child_flow,
    http_request,
    map,  # noqa: A004 - the kind's own name
    python,
    select,
    sleep,
    template,
    text_file,
    tool,
    wait_for_signal,
)
from runtime.kinds.kind import SETTINGS, Binder, Kind, Setting, TextBinder

KINDS: Mapping[str, Kind] = {
    "agent": agent.KIND,
    "branch": branch.KIND,
    "chat_model": chat_model.KIND,
    "flow": child_flow.KIND,
    "http_request": http_request.KIND,
    "map": map.KIND,
    "python": python.KIND,
    "select": select.KIND,
    "sleep": sleep.KIND,
    "template": template.KIND,
    "text_file": text_file.KIND,
    "tool": tool.KIND,
    "wait_for_signal": wait_for_signal.KIND,
}

__all__ = ["KINDS", "SETTINGS", "Binder", "Kind", "Setting", "TextBinder"]
