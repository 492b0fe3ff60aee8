"""A folder, flow files in it, and one server for all tests of the command line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import Served
from tests.sandbox import Sandbox

HELLO = """\
heliograph: 1
id: hello
name: Hello
inputs: {type: object, required: [name], properties: {name: {type: string}}}
nodes:
  - {id: greet, kind: template, template: "Hello {{ inputs.name }}"}
  - {id: shout, kind: select, value: "${nodes.greet}"}
"""
WAITING = """\
heliograph: 1
id: waiting
nodes: [{id: ask, kind: wait_for_signal, signal: go}]
"""
FAILING = """\
heliograph: 1
id: failing
nodes: [{id: bad, kind: template, template: "{{ 1 // inputs.zero }}"}]
"""
BROKEN = """\
heliograph: 1
id: broken
nodes:
  - {id: greet, kind: template, template: "{{ nodes.gone }}"}
  - {id: shout, kind: select, value: 1, wat: 2}
"""


@pytest.fixture(scope="package")
def flow_files(sandbox: Sandbox) -> Iterator[Path]:
    folder = sandbox.root / "flow-files"
    folder.mkdir()
    for name, text in (("hello", HELLO), ("waiting", WAITING), ("failing", FAILING), ("broken", BROKEN)):
        (folder / f"{name}.yaml").write_text(text)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def folder(sandbox: Sandbox) -> Iterator[Path]:
    """A data directory nothing was started over yet."""
    made = sandbox.root / "cli-own"
    made.mkdir()
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="package")
def served(sandbox: Sandbox, flow_files: Path) -> Iterator[Served]:
    server = Served(sandbox.root / "cli", {"HELIOGRAPH_FILES_ROOT": str(flow_files)})
    try:
        server.start()
        server.ok(
            "flows",
            "publish",
            *(str(flow_files / f"{name}.yaml") for name in ("hello", "waiting", "failing")),
        )
        yield server
    finally:
        server.close()
        shutil.rmtree(server.folder)
