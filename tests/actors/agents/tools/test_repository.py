"""A run in a copy of a repository: fetched over real HTTP, confined, bounded, made again after a crash."""

from __future__ import annotations

import asyncio
import os
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.agents.tools.bound_tool import ToolFailed
from actors.agents.tools.interface import ToolResult, ToolsUnavailable
from actors.agents.tools.toolbox import HostToolBox, RunTools
from actors.agents.tools.working_copy import WorkingCopy
from actors.egress import EgressGuard, EgressRules
from runtime.agent_spec import AgentSpec, Repository
from runtime.events import BlobRef, ToolCall
from tests.actors.agents.loop_household import Actor
from tests.actors.agents.tools.git_house import git, served
from tests.actors.agents.tools.tool_household import SECRETS, House, bounded, house

FILES: dict[str, str | bytes] = {
    "README.md": "# Project\nIt is small.\n",
    "src/main.py": "def main():\n    return 1\n",
    "src/data.bin": b"\x00\xff\x00",
    ".gitignore": "*.log\n",
}


def copies(folder: Path) -> list[Path]:
    return list((folder / "checkouts").glob("*/*"))


async def edit(home: House, opened: RunTools, call_id: str, **arguments: Any) -> ToolResult:
    """An edit as the loop makes it: asked for by a recorded answer of the model, and recorded itself."""
    model, step = f"model-{call_id}", f"tool-{call_id}"
    call = ToolCall(tool_call_id=call_id, name="edit_file", arguments=arguments)
    await home.journal.begin(model, "model", "test")
    await home.journal.end(model, "assistant", tool_calls=(call,))
    await home.journal.begin(step, "tool", "edit_file")
    result = await opened.call("edit_file", arguments, step, home.journal)
    await home.journal.end(
        step, "tool", content=result.content, is_error=result.is_error, tool_call_id=call_id
    )
    return result


def test_a_run_lists_reads_searches_edits_and_keeps_the_diff(tmp_path: Path) -> None:
    async def body(url: str, commit: str) -> None:
        async with house(tmp_path) as home:
            async with home.open(repository=Repository(url=url, branch="main")) as opened:
                listed: Any = (await home.call(opened, "list_files")).content
                assert listed == {"files": [".gitignore", "README.md", "src/data.bin", "src/main.py"]}
                only: Any = (await home.call(opened, "list_files", path="src", pattern="*.py")).content
                assert only == {"files": ["src/main.py"]}
                read: Any = (await home.call(opened, "read_file", path="src/main.py", first_line=2)).content
                assert (read["text"], read["total_lines"]) == ("    return 1\n", 2)
                binary = await home.call(opened, "read_file", path="src/data.bin")
                assert binary == ToolResult(content="src/data.bin: is no text", is_error=True)
                found: Any = (await home.call(opened, "search", query="RETURN", ignore_case=True)).content
                assert found == {"hits": [{"path": "src/main.py", "line": 2, "text": "    return 1"}]}
                regex: Any = (await home.call(opened, "search", query="^# .*t$", regex=True)).content
                assert [hit["path"] for hit in regex["hits"]] == ["README.md"]
                assert (await home.call(opened, "search", query="nowhere")).content == {"hits": []}

                old, new = "return 1", "return 2"
                first = await edit(home, opened, "a", path="src/main.py", old_text=old, new_text=new)
                assert first == ToolResult(content="src/main.py: changed")
                again = await edit(home, opened, "b", path="src/main.py", old_text=old, new_text=new)
                assert again == ToolResult(content="src/main.py: the change is there already")
                await edit(home, opened, "c", path="notes/new.log", new_text="a note\n")
                missing = await edit(home, opened, "d", path="README.md", old_text="lost", new_text="x")
                assert missing.is_error

                diff = str((await home.call(opened, "diff")).content)
                assert "-    return 1\n+    return 2" in diff
                ref: Any = await opened.finish(home.journal)
                kept = BlobRef(**ref)
                assert kept.media_type == "text/x-diff"
                assert home.home.blobs.get_bytes(kept).decode() == diff
                assert home.actor.logged("artifact") == [{"name": "diff", "ref": ref}]
                assert len(copies(tmp_path)) == 1
            assert copies(tmp_path) == []
            answer = home.journal.answer("tool-repository")
            assert answer is not None
            assert answer.content == {"commit": commit, "branch": "main"}

            again_at = tmp_path / "apply"
            git(tmp_path, "clone", "--quiet", str(tmp_path / "served" / "project.git"), str(again_at))
            (tmp_path / "the.diff").write_text(diff)
            git(again_at, "apply", str(tmp_path / "the.diff"))
            assert (again_at / "notes" / "new.log").read_text() == "a note\n"

    with served(tmp_path) as remote:
        bounded(body(remote.url, remote.push(FILES)))


def test_nothing_changed_is_no_diff(tmp_path: Path) -> None:
    async def body(url: str) -> None:
        async with house(tmp_path) as home, home.open(repository=Repository(url=url)) as opened:
            assert await opened.finish(home.journal) is None
            assert home.actor.logged("artifact") == []

    with served(tmp_path) as remote:
        remote.push(FILES)
        bounded(body(remote.url))


def test_after_a_crash_the_same_commit_has_the_recorded_edits_again(tmp_path: Path) -> None:
    async def body(remote: Any) -> None:
        repository = Repository(url=remote.url, branch="main")
        actor = Actor()
        async with house(tmp_path, actor) as home, home.open(repository=repository) as opened:
            await edit(home, opened, "a", path="README.md", old_text="small", new_text="large")
            await edit(home, opened, "b", path="README.md", old_text="large", new_text="huge")
            await edit(home, opened, "c", path="README.md", old_text="nothing", new_text="x")
            await edit(home, opened, "d", path="new.txt", new_text="new\n")
            before = (await home.call(opened, "diff")).content
        remote.push({"README.md": "# Another project\n"})
        async with house(tmp_path, Actor(actor.events)) as home:
            async with home.open(repository=repository) as opened:
                assert (await home.call(opened, "diff")).content == before
                read: Any = (await home.call(opened, "read_file", path="README.md")).content
                assert read["text"] == "# Project\nIt is huge.\n"
            assert home.actor.steps().count("tool-repository") == 1

    with served(tmp_path) as remote:
        remote.push(FILES)
        bounded(body(remote))


def test_the_token_is_sent_and_stands_nowhere(tmp_path: Path) -> None:
    async def body(remote: Any) -> None:
        repository = Repository(url=remote.url, branch="main", secret="api")
        async with house(tmp_path) as home:
            async with home.open(repository=repository) as opened:
                everything = b"".join(
                    path.read_bytes() for path in (tmp_path / "checkouts").rglob("*") if path.is_file()
                )
                assert SECRETS["api"].encode() not in everything
                sent = remote.requests[0][1]
                assert sent is not None
                assert sent.removeprefix("Basic ").encode() not in everything
                created = await edit(home, opened, "a", path="leak.txt", new_text=f"{sent} {SECRETS['api']}")
                assert not created.is_error
                assert (await home.call(opened, "read_file", path="leak.txt")).content == {
                    "path": "leak.txt",
                    "first_line": 1,
                    "total_lines": 1,
                    "text": "Basic *** ***",
                }
            wrong = Repository(url=remote.url, branch="main", secret="other")
            refusal = await refused(House(tmp_path, Actor(), home.box_settings), wrong)
            assert refusal.kind == "RepositoryUnavailable"
            assert SECRETS["other"] not in refusal.message

    with served(tmp_path, token=SECRETS["api"]) as remote:
        remote.push(FILES)
        bounded(body(remote))


async def refused(home: House, repository: Repository) -> ToolsUnavailable:
    try:
        with pytest.raises(ToolsUnavailable) as error:
            async with home.open(repository=repository):
                pytest.fail("it opened")
        return error.value
    finally:
        await home.box.close()
        await home.home.aclose()


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        ({"branch": "none-such"}, "RepositoryUnavailable", "none-such"),
        ({"secret": "lost"}, "SecretNotFound", "there is no secret called lost"),
        ({"url": "file:///etc"}, "RepositoryUnavailable", "neither http nor https"),
        ({"url": "ext::sh -c true"}, "RepositoryUnavailable", "a character that does not belong"),
        ({"url": "http://192.168.1.1/x.git"}, "RepositoryUnavailable", "not public (private)"),
        ({"url": "--upload-pack=true"}, "RepositoryUnavailable", "neither http nor https"),
    ],
)
def test_a_repository_that_can_not_be_had_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, str], kind: str, reason: str
) -> None:
    async def body(url: str) -> ToolsUnavailable:
        async with house(tmp_path) as home:
            with pytest.raises(ToolsUnavailable) as error:
                async with home.open(repository=Repository(**{"url": url, **change})):
                    pytest.fail("it opened")
            assert home.journal.answer("tool-repository") is None
            return error.value

    with served(tmp_path) as remote:
        remote.push(FILES)
        error = bounded(body(remote.url))
    assert error.kind == kind
    assert reason in error.message
    assert copies(tmp_path) == []


def test_a_repository_above_the_bound_is_refused_and_removed(tmp_path: Path) -> None:
    async def body(url: str) -> None:
        async with house(tmp_path, checkout_bytes_max=200_000) as home:
            with pytest.raises(ToolsUnavailable) as error:
                async with home.open(repository=Repository(url=url)):
                    pytest.fail("it opened")
            assert error.value.kind == "RepositoryTooLarge"
            assert copies(tmp_path) == []

    with served(tmp_path) as remote:
        remote.push({"large.bin": os.urandom(1_000_000)})
        bounded(body(remote.url))


def test_a_server_that_never_answers_is_given_up_and_nothing_is_left(tmp_path: Path) -> None:
    async def body(url: str) -> None:
        async with house(tmp_path, checkout_seconds_max=1.0) as home:
            with pytest.raises(ToolsUnavailable) as error:
                async with home.open(repository=Repository(url=url)):
                    pytest.fail("it opened")
            assert error.value.kind == "TimeoutError"
            assert copies(tmp_path) == []
            assert git_processes() == []

    with served(tmp_path) as remote:
        remote.push(FILES)
        remote.hold = remote.arrived.__class__()
        bounded(body(remote.url))


def git_processes() -> list[psutil.Process]:
    found = psutil.Process().children(recursive=True)
    return [process for process in found if process.name().startswith("git")]


def test_a_run_cancelled_while_fetching_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    async def body(remote: Any) -> None:
        async with house(tmp_path) as home:

            async def work() -> None:
                async with home.open(repository=Repository(url=remote.url)):
                    pytest.fail("it opened")

            task = asyncio.create_task(work())
            await asyncio.to_thread(remote.arrived.wait, 60)
            assert len(copies(tmp_path)) == 1
            assert git_processes() != []
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            assert git_processes() == []
            assert copies(tmp_path) == []

    with served(tmp_path) as remote:
        remote.push(FILES)
        remote.hold = remote.arrived.__class__()
        bounded(body(remote))


def test_what_a_killed_run_left_is_removed_and_what_lives_stays(tmp_path: Path) -> None:
    async def body(url: str) -> None:
        async with house(tmp_path) as home, home.open(repository=Repository(url=url)):
            (alive,) = copies(tmp_path)
            name = alive.name.rpartition("-")[0]
            left = alive.parent / f"{name}-left"
            left.mkdir()
            (left / "lock").touch()
            async with house(tmp_path) as other, other.open(repository=Repository(url=url)):
                assert not left.exists()
                assert alive.exists()
                assert len(copies(tmp_path)) == 2

    with served(tmp_path) as remote:
        remote.push(FILES)
        bounded(body(remote.url))


def test_a_server_of_plain_files_is_enough(tmp_path: Path) -> None:
    async def body(url: str) -> None:
        async with (
            house(tmp_path) as home,
            home.open(repository=Repository(url=url, branch="main")) as opened,
        ):
            read: Any = (await home.call(opened, "read_file", path="README.md")).content
            assert read["text"] == FILES["README.md"]

    with served(tmp_path, plain_files=True) as remote:
        remote.push(FILES)
        bounded(body(remote.url))


def test_git_dials_the_vetted_address_of_a_name_and_no_other(tmp_path: Path) -> None:
    async def body(url: str) -> None:
        async with house(tmp_path, tool_allow="git.example.test") as home:

            async def resolve(host: str, port: int) -> tuple[IPv4Address, ...]:
                assert host == "git.example.test"  # a name that nobody but this function knows
                return (IPv4Address("127.0.0.1"),)

            rules = EgressRules.parse("git.example.test")
            box = HostToolBox(home.home, home.box_settings, home.secrets, EgressGuard(rules, resolve))
            spec = AgentSpec(prompt="go", repository=Repository(url=url))
            async with box.open(spec, home.journal) as opened:
                assert not (await opened.call("list_files", {}, "tool-1", home.journal)).is_error
            await box.close()

    with served(tmp_path) as remote:
        remote.push(FILES)
        bounded(body(remote.url.replace("127.0.0.1", "git.example.test")))


def test_links_and_hooks_of_the_repository_lead_nowhere(tmp_path: Path) -> None:
    async def body(url: str) -> None:
        async with house(tmp_path) as home, home.open(repository=Repository(url=url)) as opened:
            link: Any = (await home.call(opened, "read_file", path="link")).content
            assert link["text"] == "/etc/passwd"  # a file that holds the link's target
            (copy,) = copies(tmp_path)
            assert not (copy / "work" / "link").is_symlink()
            assert not (copy / "work" / ".git" / "hooks").exists()

    with served(tmp_path) as remote:
        (remote.source / "link").symlink_to("/etc/passwd")
        remote.push(FILES)
        bounded(body(remote.url))


@pytest.mark.parametrize(
    "path",
    ["../outside", "/etc/passwd", "a/../../outside", ".git/config", "a/.GIT/x", "link/x", "~/x", "x\0y"],
)
def test_no_path_leads_out_of_the_copy(tmp_path: Path, path: str) -> None:
    root = tmp_path / "work"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    copy = WorkingCopy(root)
    for act in (
        lambda: copy.read_file(path, 1, 10),
        lambda: copy.edit_file(path, "", "x"),
        lambda: copy.list_files(path, ""),
    ):
        with pytest.raises(ToolFailed, match=r"relative|outside|own files|link"):
            act()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["work"]
