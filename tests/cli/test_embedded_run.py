"""`heliograph run` where no server runs: it brings the runtime with it, and takes it away again."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from gateway.credentials import read_credentials
from tests.cli.command import heliograph

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def test_a_flow_file_runs_without_any_set_up_and_its_history_stays(folder: Path, flow_files: Path) -> None:
    ended = heliograph(folder, "run", str(flow_files / "hello.yaml"), "-i", "name=Ada")
    assert ended.code == 0, ended
    assert json.loads(ended.out) == "Hello Ada"
    kept = read_credentials(folder)
    assert kept is not None
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{kept.url}/health")
    report = heliograph(folder, "verify", "--json").json()
    assert (report["ok"], report["executions"]) == (True, {"completed": 1})
