"""`heliograph packages`, and what `heliograph status` says of a node that nothing can hold."""

from __future__ import annotations

import time
from pathlib import Path

from tests.cli.command import Served

FLOW = """
heliograph: 1
id: priced
code: {package: %s}
nodes:
  - {id: total, kind: python, function: "prices:total", with: {net: 100}}
  - id: stamp
    kind: python
    function: "prices:total"
    with: {net: "${nodes.total}"}
    resources: {custom: {franking_machine: 1}}
"""


def test_code_is_uploaded_and_run_and_what_nothing_can_hold_is_said(served: Served, flow_files: Path) -> None:
    code = flow_files / "code"
    (code / "__pycache__").mkdir(parents=True)
    (code / "prices.py").write_text("def total(net):\n    return net + 19\n")
    (code / "__pycache__" / "prices.pyc").write_bytes(b"stale")
    package = served.ok("packages", "upload", str(code)).out.strip()
    assert served.ok("packages", "upload", str(code / "prices.py")).out.strip() == package
    assert served.ok("packages", "list", "--json").json()[0]["modules"] == ["prices"]

    flow = flow_files / "priced.yaml"
    flow.write_text(FLOW % package)
    execution = served.ok("submit", str(flow)).out.strip()
    said = "stamp can't be placed; missing: 1 franking_machine: no node has any"
    deadline = time.monotonic() + 60
    while said not in served.ok("status", execution).out:
        assert time.monotonic() < deadline
    assert "unschedulable, missing: 1 franking_machine" in served.ok("events", execution).out
    served.ok("cancel", execution)


def test_a_folder_without_modules_is_no_package(served: Served, flow_files: Path) -> None:
    empty = flow_files / "empty"
    empty.mkdir()
    ended = served.run("packages", "upload", str(empty))
    assert ended.code == 1
    assert "the package has no files" in ended.err
