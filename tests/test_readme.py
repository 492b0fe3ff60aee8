"""The README is true: its tables are the code's, and its commands work as printed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import httpx
import pytest

from gateway.dialects import DIALECTS
from gateway.settings import SECRETS, Settings, describe
from runtime.events import EVENT_TYPES
from tests.sandbox import REPOSITORY, Sandbox

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
READY_SECONDS = 90.0


def settings_table() -> str:
    rows = [
        f"| `{key}` | {f'`{default}`' if default else ''} | {meaning} |"
        for key, default, meaning in describe()
    ]
    return "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def secrets_table() -> str:
    rows = [f"| `{key}` | {meaning} |" for key, meaning in SECRETS]
    return "\n".join(["| secret | meaning |", "|---|---|", *rows])


def events_list() -> str:
    return ", ".join(f"`{name}`" for name in EVENT_TYPES)


def between(begin: str, end: str) -> str:
    found = re.search(re.escape(begin) + r"[^\n]*?-->\s*(.*?)\s*" + re.escape(end), README, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_settings_table_is_that_of_the_code() -> None:
    assert between("<!-- settings: begin", "<!-- settings: end -->") == settings_table()


def test_the_secrets_table_is_that_of_the_code() -> None:
    assert between("<!-- secrets: begin", "<!-- secrets: end -->") == secrets_table()


def test_every_stored_event_name_is_listed() -> None:
    assert between("<!-- events: begin", "<!-- events: end -->") == events_list()


def test_every_contract_is_named() -> None:
    settings = Settings()
    prefixes = {build(settings).resources[0].path.split("/{")[0] for build in DIALECTS}
    missing = [prefix for prefix in prefixes if prefix.rpartition("/")[0] not in README]
    assert prefixes
    assert missing == []


@pytest.fixture
def home(sandbox: Sandbox) -> Generator[Path]:
    """A folder with the command on its path; emptied at the end."""
    folder = sandbox.root / "readme"
    (folder / "bin").mkdir(parents=True)
    command = folder / "bin" / "heliograph"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gateway.cli "$@"\n')
    command.chmod(0o755)
    yield folder
    subprocess.run(["rm", "-rf", str(folder)], check=True)


def environment(home: Path, **more: str) -> dict[str, str]:
    path = f"{home / 'bin'}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    kept = {key: value for key, value in os.environ.items() if key != "PATH"}
    return {
        **kept,
        "PATH": path,
        "PYTHONPATH": str(REPOSITORY),
        "HELIOGRAPH_DATA_DIR": str(home / "data"),
        **more,
    }


def run(script: str, env: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=env,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
    return done.stdout


@pytest.mark.acceptance
@pytest.mark.timeout(300)
def test_the_commands_work_as_printed(home: Path) -> None:
    alone, *with_server = BLOCKS
    assert "Hello Ada" in run(alone, environment(home))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = environment(home, HELIOGRAPH_PORT=str(port))
    printed = home / "serve.out"
    with printed.open("wb") as output:
        server = subprocess.Popen(
            ["heliograph", "serve", "--model", "offline"],
            env=env,
            cwd=REPOSITORY,
            stdout=output,
            stderr=output,
            text=False,
        )
    try:
        deadline = time.monotonic() + READY_SECONDS
        while "\nready: " not in printed.read_text():
            assert server.poll() is None, printed.read_text()
            assert time.monotonic() < deadline, printed.read_text()
            time.sleep(0.1)
        url = re.search(r"serves on (\S+)", printed.read_text())
        assert url is not None
        key = (home / "data" / "credentials.json").read_text()
        secret = re.search(r"hg_[\w-]+", key)
        assert secret is not None
        outputs = run("\n".join(with_server), {**env, "URL": url[1], "KEY": secret[0]})
        assert httpx.get(f"{url[1]}/openapi.json").json()["openapi"].startswith("3.")
        assert httpx.get(f"{url[1]}/docs").is_success
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(40) == 0
    assert '"status":"COMPLETED"' in outputs
    assert "execution_completed" in outputs
    assert "Already" not in outputs
    assert outputs.count("[offline model] ") > 5
    assert '{"event":"completed","data"' in outputs
    assert '"type":"status","data":{"status":"completed"' in outputs
    assert outputs.count('"Hello Grace') == 0
    assert '{"index":2,"output":"Hello Margaret!' in outputs
    replayed = re.findall(r'\{"execution_id":"([0-9a-f-]+)","status_url"', outputs)
    assert len(replayed) == 2
    assert replayed[0] == replayed[1]
