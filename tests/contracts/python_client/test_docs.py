"""docs/python.md and docs/python.ipynb are true: their code runs as printed against a real server.

The cells of the notebook run in order in plain Python, each shown as a notebook would show it. A kernel would
bring thirty packages and prove little more.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.live_server import LiveServer
from tests.sandbox import REPOSITORY

TEXT = (REPOSITORY / "docs" / "python.md").read_text()
NOTEBOOK = REPOSITORY / "docs" / "python.ipynb"
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
PROMISED = re.findall(r"print\(.*\)  # (.+)$", TEXT, re.MULTILINE)


def test_the_examples_print_what_they_say(python_server: LiveServer, tmp_path: Path) -> None:
    """In a folder that the server's workers know nothing of: the code of the flows travels."""
    script: list[str] = []
    for block in BLOCKS:
        if named := re.match(r"# (\w+\.py)\n", block):
            (tmp_path / named[1]).write_text(block)
        else:
            script.append(block)
    (tmp_path / "script.py").write_text("\n".join(script))
    run = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}",
            "HELIOGRAPH_URL": python_server.url,
            "HELIOGRAPH_API_KEY": python_server.first_key,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == PROMISED
    assert len((tmp_path / "orders.jsonl").read_text().splitlines()) == 3


def test_the_cells_of_the_notebook_run(python_server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOGRAPH_URL", python_server.url)
    monkeypatch.setenv("HELIOGRAPH_API_KEY", python_server.first_key)
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text())
    shown: list[str] = []
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            shown.append(show(run_cell("".join(cell["source"]), names)))
    assert shown[2] == "['Hello Ada', 'HELLO ADA!']"
    assert "<svg" in shown[3]
    assert "completed" in shown[3]
    assert shown[4] == "{'approved': True}"
    assert shown[5].count("Hello") == 4
    assert "HELLO ANNIE!" in shown[6]


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """What the last expression of a cell gives, None when it ends with a statement."""
    tree = ast.parse(source)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        exec(compile(tree, "cell", "exec"), names)
        return None
    exec(compile(ast.Module(tree.body[:-1], []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def show(value: Any) -> str:
    drawn = getattr(value, "_repr_html_", None)
    return repr(value) if drawn is None else str(drawn())
