"""The section on wide maps of docs/flows.md, as it is written: its flow, its commands, and what they tell."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.command import Served
from tests.sandbox import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SECTION = (REPOSITORY / "docs" / "flows.md").read_text().split("## Wide maps")[1].split("\n## ")[0]
(FLOW,) = re.findall(r"```yaml\n(.*?)```", SECTION, re.DOTALL)
(COMMANDS,) = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)


def test_the_documented_flow_runs_and_tells_how_far_it_is(served: Served, flow_files: Path) -> None:
    (flow_files / "prices.yaml").write_text(FLOW)
    orders = [{"price": n, "count": 2} for n in range(1_500)] + [{"price": 1}]
    (flow_files / "orders.jsonl").write_text("".join(json.dumps(order) + "\n" for order in orders))
    served.ok("flows", "publish", str(flow_files / "prices.yaml"))
    run, status = [line.split()[1:] for line in COMMANDS.strip().splitlines()]
    ended = served.run(*run)
    assert ended.code == 0, ended
    output = json.loads(ended.out)
    assert (output["dataset"], output["items"], output["failed"]) == (1, 1_501, 0)
    told = [line for line in ended.err.splitlines() if "chunks_recorded" in line]
    assert "priced  0 of 1501" in told[0]
    assert any("priced  1501 of 1501, 1 failed" in line for line in told)
    assert "prices" in served.ok(*status).out

    (latest,) = served.ok("status", "--flow", "prices", "--json").json()["executions"]
    shown = served.ok("status", latest["execution_id"], "--watch")
    assert "priced: 1501 of 1501, 1 failed" in shown.out
    assert "labelled: 1501 of 1501" in shown.out
    assert "chunks_recorded" in shown.err
