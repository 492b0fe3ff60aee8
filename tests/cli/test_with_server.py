"""Commands against a server that `heliograph serve` started; nothing but two directories is set."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.cli.command import Served, environment


def wait_until(served: Served, execution_id: str, status: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        found: dict[str, Any] = served.ok("status", execution_id, "--json").json()
        if found["status"] == status:
            return found
        assert time.monotonic() < deadline, found


def waiting_execution(served: Served) -> str:
    execution_id = served.ok("submit", "waiting").out.strip()
    wait_until(served, execution_id, "waiting")
    return execution_id


# --- beginning --------------------------------------------------------------------------------------------


def test_the_first_start_prints_a_key_and_keeps_it_for_its_owner_alone(served: Served) -> None:
    path = served.folder / "credentials.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert served.credentials().api_key in served.printed()
    assert str(path) in served.printed()


def test_the_kept_key_is_not_sent_to_another_server(served: Served) -> None:
    # Same server, other name: to the command line that is another one.
    url = served.credentials().url.replace("127.0.0.1", "localhost")
    ended = served.run("status", "--url", url)
    assert ended.code == 1
    assert ended.err.startswith(f"error: {url} asks for an API key\n")
    assert "HELIOGRAPH_API_KEY" in ended.err


def test_a_wrong_key_is_named(served: Served) -> None:
    ended = served.run("status", env={"HELIOGRAPH_API_KEY": "hg_wrong"})
    assert ended.code == 1
    assert "refuses this API key" in ended.err
    assert "hg_wrong" not in ended.err


# --- flows ------------------------------------------------------------------------------------------------


def test_publishing_again_says_unchanged(served: Served, flow_files: Path) -> None:
    ended = served.ok("flows", "publish", str(flow_files / "hello.yaml"))
    assert ended.out.split()[0] == "hello"
    assert ended.out.strip().endswith("unchanged")
    [answer] = served.ok("flows", "publish", "--json", str(flow_files / "hello.yaml")).json()
    assert answer["changed"] is False


def test_flows_are_listed_shown_and_drawn(served: Served) -> None:
    listed = served.ok("flows", "list").out.splitlines()
    assert [line.split("\t")[0] for line in listed if line.startswith("hello")] == ["hello"]
    assert served.ok("flows", "show", "hello").json()["definition"]["id"] == "hello"
    assert served.ok("flows", "graph", "hello").out.startswith("flowchart TD\n")


def test_a_disabled_flow_can_not_be_started(served: Served, flow_files: Path) -> None:
    text = (flow_files / "waiting.yaml").read_text().replace("id: waiting", "id: switched")
    (flow_files / "switched.yaml").write_text(text)
    served.ok("flows", "publish", str(flow_files / "switched.yaml"))
    assert "is disabled" in served.ok("flows", "disable", "switched").err
    ended = served.run("submit", "switched")
    assert ended.code == 1
    assert "no published flow is called 'switched'" in ended.err
    assert "is enabled" in served.ok("flows", "enable", "switched").err


def test_an_unknown_flow_is_named_with_what_to_do(served: Served) -> None:
    for command in ("submit", "run"):
        ended = served.run(command, "nowhere")
        assert ended.code == 1
        assert ended.err.splitlines() == [
            "error: no published flow is called 'nowhere'",
            "  `heliograph flows list` shows what is published.",
        ]


# --- executions -------------------------------------------------------------------------------------------


def test_run_prints_the_output_alone_on_stdout(served: Served) -> None:
    ended = served.ok("run", "hello", "--input", "name=Ada")
    assert json.loads(ended.out) == "Hello Ada"
    assert "node_completed" in ended.err
    assert served.ok("run", "hello", "-i", "name=Ada", "--quiet").err == ""


def test_run_takes_a_file_and_publishes_it(served: Served, flow_files: Path) -> None:
    text = (flow_files / "hello.yaml").read_text().replace("id: hello", "id: from-file")
    (flow_files / "from-file.yaml").write_text(text)
    found = served.ok("run", str(flow_files / "from-file.yaml"), "-i", "name=Ada", "--json").json()
    assert (found["flow_id"], found["status"], found["output"]) == ("from-file", "completed", "Hello Ada")


def test_input_comes_from_options_json_file_and_stdin(served: Served, flow_files: Path) -> None:
    (flow_files / "input.json").write_text('{"name": "File"}')
    cases = [
        (("--input-json", '{"name": "Json"}'), "", "Json"),
        (("--input-file", str(flow_files / "input.json")), "", "File"),
        (("--input-file", "-"), '{"name": "Stdin"}', "Stdin"),
        (("--input-json", '{"name": "Json"}', "-i", "name=Option"), "", "Option"),
        (("-i", 'name="1"'), "", "1"),
    ]
    for arguments, stdin, name in cases:
        ended = served.run("run", "hello", "-q", *arguments, stdin=stdin)
        assert ended.code == 0, ended
        assert json.loads(ended.out) == f"Hello {name}"


def test_wrong_input_is_named(served: Served) -> None:
    ended = served.run("run", "hello", "-i", "name=1")
    assert ended.code == 1
    assert "name" in ended.err


def test_run_of_a_failing_flow_exits_with_1_and_says_why(served: Served) -> None:
    ended = served.run("run", "failing", "-i", "zero=0")
    assert ended.code == 1
    assert ended.out == ""
    assert "ended failed at node bad: ZeroDivisionError" in ended.err


def test_submit_twice_with_one_idempotency_key_starts_one_execution(served: Served) -> None:
    arguments = ("submit", "hello", "-i", "name=Ada", "--idempotency-key", "cli-1")
    assert served.ok(*arguments).out == served.ok(*arguments).out


def test_status_shows_one_execution_or_lists_the_latest(served: Served) -> None:
    execution_id = served.ok("submit", "hello", "-i", "name=Ada").out.strip()
    wait_until(served, execution_id, "completed")
    shown = served.ok("status", execution_id).out
    assert "completed" in shown
    assert [line.split("\t")[0] for line in shown.splitlines() if "\t" in line] == ["greet", "shout"]
    listed = served.ok("status", "--flow", "hello", "--status", "completed").out
    assert execution_id in listed
    assert served.ok("status", "--flow", "nowhere").out == ""


def test_events_are_printed_one_a_line(served: Served) -> None:
    execution_id = served.ok("submit", "hello", "-i", "name=Ada").out.strip()
    wait_until(served, execution_id, "completed")
    events = [json.loads(line) for line in served.ok("events", execution_id, "--json").out.splitlines()]
    assert events[0]["type"] == "execution.queued"
    assert events[-1]["type"] == "execution.completed"
    followed = served.ok("events", execution_id, "--follow", "--json").out.splitlines()
    assert [json.loads(line) for line in followed] == events
    later = served.ok("events", execution_id, "--after", str(events[1]["position"]), "--json").out
    assert len(later.splitlines()) == len(events) - 2
    assert "node_started" in served.ok("events", execution_id).out
    everything = served.ok("events", "--json").out.splitlines()
    assert {event["position"] for event in events} <= {json.loads(line)["position"] for line in everything}


def test_following_goes_on_until_the_end(served: Served) -> None:
    execution_id = waiting_execution(served)
    with subprocess.Popen(
        [sys.executable, "-m", "gateway.cli", "events", execution_id, "--follow"],
        env=environment(served.folder) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as follower:
        assert follower.stdout is not None
        for line in follower.stdout:
            if "node_waiting" in line:
                served.ok("signal", execution_id, "go", "--payload", '{"by": "ada"}')
        assert follower.wait(60) == 0
    assert wait_until(served, execution_id, "completed")["output"] == {"by": "ada"}


def test_pause_resume_and_cancel(served: Served) -> None:
    execution_id = waiting_execution(served)
    assert f"execution {execution_id} was waiting, is paused" in served.ok("pause", execution_id).err
    assert served.ok("resume", execution_id, "--json").json()["status"] == "waiting"
    served.ok("cancel", execution_id, "--reason", "no longer needed")
    wait_until(served, execution_id, "cancelled")
    again = served.run("cancel", execution_id)
    assert again.code == 1
    assert again.err.startswith("error: ")
    assert "Traceback" not in again.err


def test_an_unknown_execution_is_not_found(served: Served) -> None:
    for arguments in (
        ("status", "nobody"),
        ("events", "nobody"),
        ("events", "nobody", "-f"),
        ("cancel", "nobody"),
    ):
        ended = served.run(*arguments)
        assert ended.code == 1
        assert ended.err.startswith("error: Execution not found.\n")


# --- keys -------------------------------------------------------------------------------------------------


def test_a_key_is_created_used_listed_and_revoked(served: Served) -> None:
    created = served.ok("keys", "create", "reader", "--scope", "audit", "--expires", "1d")
    secret = created.out.strip()
    assert secret.startswith("hg_")
    assert secret not in created.err
    env = {"HELIOGRAPH_API_KEY": secret}
    assert served.run("status", env=env).code == 0
    refused = served.run("keys", "list", env=env)
    assert refused.code == 1
    assert "may not do that" in refused.err
    listed = served.ok("keys", "list", "--json").json()
    [key] = [key for key in listed if key["name"] == "reader"]
    assert secret not in json.dumps(listed)
    served.ok("keys", "revoke", key["key_id"])
    assert served.run("status", env=env).code == 1


def test_the_last_admin_key_stays(served: Served) -> None:
    ended = served.run("keys", "revoke", "first")
    assert ended.code == 1
    assert "last admin key" in ended.err


def test_hosts_are_listed_and_stay_on_a_machine_of_its_own(served: Served) -> None:
    listed = served.ok("hosts")
    assert "host-0" in listed.out
    assert "nodes: 1;" in listed.err
    refused = served.run("hosts", "drain", "host-0")
    assert refused.code == 1
    assert "stay as many as they are" in refused.err


def test_a_taken_port_is_recognised_as_a_running_server(served: Served) -> None:
    port = served.credentials().url.rpartition(":")[2]
    ended = served.run("doctor", "--json", env={"HELIOGRAPH_PORT": port})
    [finding] = [each for each in ended.json() if each["name"] == "Port"]
    assert finding["ok"] is True
    assert "is running there" in finding["found"]
    [hosts] = [each for each in ended.json() if each["name"] == "Hosts"]
    assert "take executions" in hosts["found"]
