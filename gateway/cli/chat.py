"""`heliograph chat`: a conversation with an agent, in the terminal or in a pipe.

A conversation is a workflow of the server, so it outlives this command: `--workflow` comes back to it.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.agents import AgentArgument
from gateway.cli.failures import CliFailure, usage
from gateway.cli.options import ApiKey, Url

if TYPE_CHECKING:
    from gateway.cli.connection import Server

INTERRUPTED = 130
TITLE_CHARS_MAX = 60

_WORKFLOWS = "/api/workflows"


def chat(
    agent: AgentArgument,
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="Without it: stdin, or one prompt after the other."),
    ] = None,
    workflow: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Come back to a conversation, running or not.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Its model [default: the agent's].", show_default=False)
    ] = None,
    max_turns: Annotated[
        int | None,
        typer.Option(
            min=1, max=200, help="Rounds of tool calls for one prompt [default: 5].", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run's events, one a line.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Talk to an agent: the answer streams in, tool calls show as they happen.

    Ctrl-C halts the run; Ctrl-C twice leaves it running and says how to come back to it.
    """
    from gateway.cli.agents import agent_of
    from gateway.cli.connection import connected

    with connected(url, api_key) as server:
        found = agent_of(server, agent)
        if workflow is not None:
            if model is not None or max_turns is not None:
                raise usage("--model and --max-turns are chosen when a conversation begins")
            talk = _come_back(server, agent, found, workflow, as_json)
        else:
            talk = Conversation(server, agent, "", as_json)
            talk.options = {"agent_id": found["id"], "model": model, "max_turns": max_turns}
        if talk.is_running:
            talk.follow(shows_prompt=True)
        if prompt is not None or not sys.stdin.isatty():
            text = prompt if prompt is not None else sys.stdin.read().strip()
            if text:
                talk.say(text)
            elif not talk.has_followed:
                raise usage("nothing to say: stdin is empty", "Name a prompt, or pipe one in.")
        else:
            _converse(talk)


def _come_back(
    server: Server, agent: str, found: dict[str, Any], workflow_id: str, as_json: bool
) -> Conversation:
    from gateway.cli.connection import segment

    kept = server.get(f"{_WORKFLOWS}/{segment(workflow_id)}")
    if kept["agent_id"] != found["id"]:
        raise usage(f"workflow {workflow_id} is a conversation with another agent: {kept['agent_id']}")
    talk = Conversation(server, agent, kept["id"], as_json)
    talk.is_running = kept["status"] == "running"
    return talk


def _converse(talk: Conversation) -> None:
    """One prompt after the other, until Ctrl-D or a Ctrl-C where nothing runs."""
    import readline  # input() edits lines, and remembers them, once it is imported

    del readline
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            if talk.workflow_id:
                talk.note(f"come back with: {talk.way_back}")
            return
        if not text:
            continue
        try:
            talk.say(text)
        except CliFailure as failure:
            if failure.code == INTERRUPTED and not talk.was_halted:
                raise
            talk.note(failure.message)
            if failure.hint:
                talk.note(f"  {failure.hint}")


class Conversation:
    """One workflow; made with its first prompt."""

    def __init__(self, server: Server, agent: str, workflow_id: str, as_json: bool) -> None:
        self._server = server
        self._agent = agent
        self._as_json = as_json
        self.workflow_id = workflow_id
        self.options: dict[str, Any] = {}
        self.is_running = False
        self.has_followed = False
        self.was_halted = False

    @property
    def way_back(self) -> str:
        import shlex

        return f"heliograph chat {shlex.quote(self._agent)} --workflow {self.workflow_id}"

    def note(self, text: str) -> None:
        from gateway.cli.output import note

        note(text)

    def say(self, prompt: str) -> None:
        """Send a prompt and show its run to the end. Raises: CliFailure unless it completed."""
        if not self.workflow_id:
            title = " ".join(prompt.split())[:TITLE_CHARS_MAX]
            body = {**self.options, "title": title, "output_format": "markdown"}
            self.workflow_id = str(self._server.post(_WORKFLOWS, body)["id"])
        try:
            self._server.post(f"{self._path}/prompt", {"prompt": prompt})
        except KeyboardInterrupt:
            raise self._left(halting=False) from None
        self.follow()

    def follow(self, *, shows_prompt: bool = False) -> None:
        """Show the unfinished run, or the latest, to its end. Raises: CliFailure unless it completed."""
        from gateway.cli.chat_screen import Screen, is_end
        from gateway.cli.run_feed import Outcome, RunFeed

        screen = Screen(shows_prompt=shows_prompt)
        seen: list[str] = []
        faults: list[str] = []

        def show(event: dict[str, Any]) -> None:
            if is_end(event):
                seen.append(event["data"]["status"])
            elif event["type"] == "log" and event["data"]["event"] == "error":
                faults.append(event["data"]["detail"])
            if self._as_json:
                print(json.dumps(event, ensure_ascii=False), flush=True)
            else:
                screen.show(event)

        self.has_followed = True
        events = self._server.events(f"{self._path}/stream?until=terminal", 0, is_end)
        feed = RunFeed(events, self._halt, screen.say)
        outcome = feed.follow(show)
        self.was_halted = feed.was_halted and outcome is Outcome.ENDED
        if not self._as_json and screen.summary():
            screen.say(screen.summary())
        if outcome is not Outcome.ENDED:
            raise self._left(halting=outcome is Outcome.LEFT_HALTING)
        self.is_running = False
        self._judge(seen[-1] if seen else self._status(), faults[-1] if faults else "")

    @property
    def _path(self) -> str:
        from gateway.cli.connection import segment

        return f"{_WORKFLOWS}/{segment(self.workflow_id)}"

    def _halt(self) -> None:
        try:
            self._server.post(f"{self._path}/halt")
        except CliFailure:
            # It may have ended in the same moment; then its end is on its way here.
            if self._server.get(self._path)["status"] == "running":
                raise

    def _status(self) -> str:
        """When the stream ended without saying how the run did."""
        return str(self._server.get(self._path).get("last_task_status") or "")

    def _left(self, *, halting: bool) -> CliFailure:
        what = "is being halted" if halting else "goes on"
        return CliFailure(
            f"left: the run {what} on the server", f"Come back with: {self.way_back}", INTERRUPTED
        )

    def _judge(self, status: str, error: str) -> None:
        hint = f"Go on with: {self.way_back}"
        match status:
            case "completed":
                return
            case "halted":
                raise CliFailure("the run was halted", hint, INTERRUPTED)
            case "max_turns_reached":
                raise CliFailure("the run used up its turns before it had an answer", hint)
            case _:
                raise CliFailure(error or f"the run ended {status or 'in a way nobody told'}", hint)
