"""Commands that need no server, and how commands fail when there is none."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import environment, heliograph

COMMANDS = (
    "serve",
    "demo",
    "run",
    "chat",
    "submit",
    "status",
    "events",
    "cancel",
    "signal",
    "pause",
    "resume",
)
GROUPS = ("agents", "flows", "keys", "secrets", "mcp", "projections", "verify", "doctor")


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_help_names_every_command_and_shows_examples(folder: Path) -> None:
    ended = heliograph(folder, "--help")
    assert ended.code == 0
    assert [command for command in (*COMMANDS, *GROUPS) if f" {command} " not in ended.out] == []
    assert "heliograph run flows/hello.yaml" in ended.out
    assert "HELIOGRAPH_URL" in ended.out
    assert ended.err == ""


def test_every_command_explains_itself(folder: Path) -> None:
    from typer.main import get_command

    from gateway.cli.main import app

    def names(command: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        inner = getattr(command, "commands", None)
        if inner is None:
            assert getattr(command, "help", ""), path
            return [path]
        return [name for key, value in inner.items() for name in names(value, (*path, key))]

    found = names(get_command(app))
    assert len(found) >= 24
    assert heliograph(folder, "flows", "publish", "--help").code == 0


def test_asking_for_help_loads_nothing_heavy(folder: Path) -> None:
    heavy = ["fastapi", "httpx", "jinja2", "pydantic", "ray"]
    code = f"import sys, gateway.cli.main; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=environment(folder), capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


def test_a_mistake_in_the_command_exits_with_2(folder: Path) -> None:
    for arguments in (
        ("fly",),
        ("submit",),
        ("status", "--limit", "many"),
        ("submit", "hello", "--input", "no-equals-sign"),
        ("submit", "hello", "--input-json", "[1]"),
        ("submit", "hello", "--input-json", "{bad"),
        ("submit", "hello", "--input-file", "/nowhere/input.json"),
        ("signal", "some-id", "go", "--payload", "not json"),
        ("flows", "validate", "/nowhere/flow.yaml"),
        ("keys", "create", "x", "--expires", "soon"),
        ("status", "--url", "ftp://somewhere"),
    ):
        ended = heliograph(folder, *arguments)
        assert ended.code == 2, (arguments, ended)
        assert ended.err
        assert "Traceback" not in ended.err


def test_a_server_that_is_not_there_is_named_with_what_to_do(folder: Path) -> None:
    url = f"http://127.0.0.1:{unused_port()}"
    for arguments in (
        ("status",),
        ("submit", "hello"),
        ("flows", "list"),
        ("events", "--follow"),
        ("run", "hello"),
    ):
        ended = heliograph(folder, *arguments, env={"HELIOGRAPH_URL": url})
        assert ended.code == 1
        assert ended.out == ""
        first, hint = ended.err.strip().splitlines()
        assert first == f"error: no server answers at {url}"
        assert "heliograph serve" in hint


def test_a_valid_flow_file_is_named(folder: Path, flow_files: Path) -> None:
    ended = heliograph(folder, "flows", "validate", str(flow_files / "hello.yaml"))
    assert ended.code == 0
    assert ended.out == f"{flow_files / 'hello.yaml'}: valid, flow hello\n"


def test_every_broken_rule_of_a_flow_file_is_named(folder: Path, flow_files: Path) -> None:
    broken = str(flow_files / "broken.yaml")
    ended = heliograph(folder, "flows", "validate", broken)
    assert ended.code == 1
    assert "node greet, field template: unknown node 'gone'" in ended.err
    assert "node shout, field wat: unknown key" in ended.err
    as_json = heliograph(folder, "flows", "validate", "--json", broken)
    assert as_json.code == 1
    [checked] = as_json.json()
    assert checked["valid"] is False
    assert {(problem["node"], problem["field"]) for problem in checked["problems"]} == {
        ("greet", "template"),
        ("shout", "wat"),
    }


def test_a_broken_flow_file_is_refused_before_any_server_is_asked(folder: Path, flow_files: Path) -> None:
    env = {"HELIOGRAPH_URL": f"http://127.0.0.1:{unused_port()}"}
    for command in (("flows", "publish"), ("run",), ("submit",)):
        ended = heliograph(folder, *command, str(flow_files / "broken.yaml"), env=env)
        assert ended.code == 1
        assert "unknown node 'gone'" in ended.err


def test_the_graph_of_a_flow_file_is_mermaid_or_json(folder: Path, flow_files: Path) -> None:
    hello = str(flow_files / "hello.yaml")
    drawn = heliograph(folder, "flows", "graph", hello)
    assert drawn.code == 0
    assert drawn.out.startswith("flowchart TD\n")
    assert "n0 --> n1" in drawn.out
    graph = heliograph(folder, "flows", "graph", "--json", hello).json()
    assert graph["edges"] == [{"from": "greet", "to": "shout"}]


def test_a_taken_port_is_named_with_what_to_do(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = heliograph(folder, "serve", "--port", str(port))
    assert ended.code == 1
    assert ended.err.splitlines()[0] == f"error: port {port} on 127.0.0.1 is in use"
    assert f"--port {port + 1}" in ended.err


def test_a_wrong_setting_is_named_with_its_value(folder: Path) -> None:
    ended = heliograph(folder, "serve", env={"HELIOGRAPH_RUNNING_MAX": "lots"})
    assert ended.code == 2
    assert "HELIOGRAPH_RUNNING_MAX='lots'" in ended.err


def test_an_unusable_store_ends_the_start_with_one_line(folder: Path) -> None:
    (folder / "not-a-folder").write_text("")
    store = f"sqlite:///{folder / 'not-a-folder' / 'heliograph.db'}"
    ended = heliograph(folder, "serve", "--port", "0", "--store", store)
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("error: ") or "error: " in ended.err
    assert "Traceback" not in ended.err


def test_doctor_finds_nothing_wrong_with_the_default(folder: Path) -> None:
    ended = heliograph(folder, "doctor", "--json", env={"HELIOGRAPH_PORT": str(unused_port())})
    findings = {finding["name"]: finding for finding in ended.json()}
    assert ended.code == 0, ended
    assert {"Python", "Ray", "Store", "Port", "Disk", "Blobs"} <= findings.keys()
    assert all(finding["ok"] for finding in findings.values() if finding["fatal"])
    assert not (folder / "heliograph.db").exists()


@pytest.mark.parametrize(
    ("setting", "value", "name"),
    [
        ("STORE", "postgresql://user:secret@127.0.0.1:{port}/db", "Store"),
        ("STORE", "mysql://nope", "Store"),
        ("BLOBS", "carrier-pigeon://coop", "Blobs"),
        ("RAY_ADDRESS", "127.0.0.1:{port}", "Ray cluster"),
    ],
)
def test_doctor_says_what_to_correct(folder: Path, setting: str, value: str, name: str) -> None:
    env = {f"HELIOGRAPH_{setting}": value.format(port=unused_port()), "HELIOGRAPH_PORT": str(unused_port())}
    ended = heliograph(folder, "doctor", env=env)
    assert ended.code == 1
    assert f"FAIL  {name}" in ended.out
    assert f"HELIOGRAPH_{setting}" in ended.out
    assert name in ended.err
    assert "secret" not in ended.out + ended.err
