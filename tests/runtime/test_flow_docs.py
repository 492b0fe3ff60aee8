"""The examples of docs/flows.md are flows, and its tables are complete."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from runtime.flow import parse_flow
from runtime.flow_fields import field_names
from runtime.graph import compile_flow
from runtime.kinds import KINDS

TEXT = (Path(__file__).parents[2] / "docs" / "flows.md").read_text()


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("example", examples("yaml"))
def test_every_yaml_example_compiles(example: str) -> None:
    assert compile_flow(parse_flow(example)).steps


def test_the_python_example_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = examples("python")
    path = tmp_path / "documented_flow.py"
    path.write_text(example)
    spec = importlib.util.spec_from_file_location("documented_flow", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "documented_flow", module)
    spec.loader.exec_module(module)

    assert list(compile_flow(module.definition).steps) == ["count_words", "go", "sleep", "sum"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_documented_with_its_fields(kind: str) -> None:
    (row,) = [line for line in TEXT.splitlines() if line.startswith(f"| `{kind}` |")]

    assert {f"`{name}`" for name in field_names(KINDS[kind].config)} - set(re.findall(r"`\w+`", row)) == set()
