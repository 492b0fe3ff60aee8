"""The clients printed in the contract's source, as they are (ability contract, scenarios 1 and 6)."""

from __future__ import annotations

import json
import re
import subprocess

import httpx
import pytest

from tests.contracts.ability import seed
from tests.contracts.ability.wire import run, status_of, wait_for
from tests.contracts.live_server import LiveServer

pytestmark = [pytest.mark.acceptance, pytest.mark.ray]

EXAMPLE_ID = "a1b2c3d4-e5f6-7890-abcd-ef1234567890"


def shell(command: list[str]) -> str:
    ended = subprocess.run(["curl", "-sS", *command[1:]], capture_output=True, timeout=60, check=True)
    return ended.stdout.decode()


@pytest.mark.node
def test_the_javascript_client_logs_known_events_only(server: LiveServer) -> None:
    """Scenario 6."""
    # That client takes each network read for one frame, and a starved process reads two at once, however
    # far apart they were written; so on a busy machine it gets another try.
    lines: list[str] = []
    found: list[re.Match[str] | None] = [None]
    for _ in range(3):
        if not all(found):
            lines = node(seed.javascript(server.url, server.first_key))
            found = [re.fullmatch(r"\[(node_output|final_response)\] (\{.*\})", line) for line in lines]
    assert [each and each[1] for each in found] == ["node_output", "node_output", "final_response"], lines
    messages = [json.loads(each[2]) for each in found if each]
    assert [each.get("node_id") for each in messages] == ["analyse", "phrase", None]
    assert messages[-1]["status"] == "COMPLETED"
    assert messages[-1]["results"] == {"output": "Analysed: Hello."}


def node(script: str) -> list[str]:
    """The lines a script logs."""
    command = ["node", "--input-type=module", "-"]
    ended = subprocess.run(command, input=script.encode(), capture_output=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout.decode().splitlines()


def test_the_page_prints_six_commands() -> None:
    commands = seed.curl_commands("http://h", "k")
    assert [command[command.index("-X") + 1] for command in commands] == [
        "POST",
        "POST",
        "GET",
        "DELETE",
        "DELETE",
    ]


def test_the_curl_examples_work(server: LiveServer, client: httpx.Client) -> None:
    """Scenario 1. Only the example's request ids are replaced by ids that exist."""
    run_it, stream_it, ask, cancel, cancel_several = seed.curl_commands(server.url, server.first_key)

    request_id = json.loads(shell(run_it))
    assert wait_for(client, "my-ability", request_id)["results"] == {"output": "Analysed: Hello."}

    frames = [each.split("\n", 1) for each in shell(stream_it).split("\n\n") if each.strip()]
    assert [each[0] for each in frames] == ["node_output:", "node_output:", "final_response:"]
    assert json.loads(frames[-1][1])["results"] == {"output": "Analysed: Hello."}

    shown = json.loads(shell([part.replace(EXAMPLE_ID, request_id) for part in ask]))
    assert shown == status_of(client, "my-ability", request_id)

    held = run(client, "long")
    command = [part.replace(EXAMPLE_ID, held).replace("my-ability", "long") for part in cancel]
    assert shell(command) == "true"
    assert status_of(client, "long", held)["status"] == "CANCELED"

    ids = [run(client, "long") for _ in range(3)]
    command = [part.replace("my-ability", "long") for part in cancel_several]
    for number, each in enumerate(ids, start=1):
        command = [part.replace(f"id-00{number}", each) for part in command]
    assert shell(command) == "true"
    assert {status_of(client, "long", each)["status"] for each in ids} == {"CANCELED"}
    assert json.loads(shell(cancel_several))["error_code"] == "REQUEST_NOT_FOUND"
