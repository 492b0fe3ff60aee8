"""`heliograph secrets` and `heliograph mcp` against a real server."""

from __future__ import annotations

from pathlib import Path

from tests.cli.command import Served, heliograph


def test_a_secret_is_set_from_a_pipe_listed_and_removed(served: Served) -> None:
    ended = served.run("secrets", "set", "github", "--value", "-", stdin="ghp-pipe-value\n")
    assert ended.code == 0, ended
    assert ended.out == ""
    assert "secret github is set" in ended.err
    assert "ghp-pipe-value" not in ended.err
    [line] = [one for one in served.ok("secrets", "list").out.splitlines() if one.startswith("github")]
    assert len(line.split("\t")[1]) == 16
    assert served.ok("secrets", "remove", "github", "--json").json()["name"] == "github"
    assert [one for one in served.ok("secrets", "list", "--json").json() if one["name"] == "github"] == []
    gone = served.run("secrets", "remove", "github")
    assert gone.code == 1
    assert "heliograph secrets list" in gone.err


def test_a_value_on_the_command_line_is_refused_and_not_repeated(folder: Path) -> None:
    for arguments in (("--value", "ghp-visible"), ("--value", "-"), ()):
        ended = heliograph(folder, "secrets", "set", "github", *arguments)
        assert ended.code == 2, ended
        assert "ghp-visible" not in ended.err
        assert "Traceback" not in ended.err


def test_a_secret_that_breaks_a_rule_is_named(served: Served) -> None:
    ended = served.run("secrets", "set", "a b", "--value", "-", stdin="x")
    assert ended.code == 1
    assert "field name: must match" in ended.err


def test_mcp_servers_are_added_listed_and_removed(served: Served) -> None:
    ended = served.ok("mcp", "add", "files", "--", "files-server", "--root", ".")
    assert "MCP server files is added" in ended.err
    ended = served.ok(
        "mcp", "add", "tickets", "--http", "https://mcp.example.org/mcp",
        "--header", "Authorization=Bearer {secret:tickets-token}", "--category", "work", "--allow", "search",
    )  # fmt: skip
    assert "heliograph secrets set tickets-token" in ended.err
    lines = served.ok("mcp", "list").out.splitlines()
    assert lines == [
        "files\t\tfiles-server --root .\tnot needed",
        "tickets\twork\thttps://mcp.example.org/mcp\tmissing: tickets-token",
    ]
    assert served.run("secrets", "set", "tickets-token", "--value", "-", stdin="x").code == 0
    shown = {one["name"]: one for one in served.ok("mcp", "list", "--json").json()}
    assert shown["tickets"]["auth_verified"] is True
    assert shown["tickets"]["allow"] == ["search"]
    assert "is removed" in served.ok("mcp", "remove", "files").err
    assert served.ok("mcp", "remove", "tickets", "--json").json()["name"] == "tickets"
    assert served.ok("mcp", "list").out == ""
    gone = served.run("mcp", "remove", "tickets")
    assert gone.code == 1
    assert "heliograph mcp list" in gone.err


def test_a_mistake_in_a_mcp_command_exits_with_2(folder: Path) -> None:
    for arguments in (
        ("add", "files"),
        ("add", "files", "--http", "https://example.org", "--", "also-a-command"),
        ("add", "files", "--http", "https://example.org", "--header", "no-equals-sign"),
    ):
        ended = heliograph(folder, "mcp", *arguments)
        assert ended.code == 2, (arguments, ended)
        assert "Traceback" not in ended.err
