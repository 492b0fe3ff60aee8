"""The published schema is current, and agrees with the compiler about shapes."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from runtime.errors import InvalidGraph
from runtime.flow import parse_flow
from runtime.flow_schema import flow_json_schema, schema_text
from runtime.graph import compile_flow
from runtime.kinds import KINDS
from tests.runtime.authored_flows import linear, waits, wide

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "flows").glob("*.yaml"))


@pytest.fixture(scope="module")
def validator() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(flow_json_schema())


def test_the_published_schema_is_current() -> None:
    """If not: ``python -c "from runtime.flow_schema import schema_text as s; print(s(), end='')"``."""
    assert (ROOT / "docs" / "flow.schema.json").read_text() == schema_text()


def test_the_schema_is_a_schema() -> None:
    jsonschema_rs.meta.validate(flow_json_schema())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_compiles_and_keeps_the_schema(
    path: Path, validator: jsonschema_rs.Draft202012Validator
) -> None:
    definition = parse_flow(path.read_bytes())

    assert definition.id == path.stem
    assert compile_flow(definition).steps
    validator.validate(dict(definition.document))


@pytest.mark.parametrize("authored", [linear, wide, waits], ids=lambda authored: authored.id)
def test_flows_made_in_python_keep_the_schema(
    authored: Any, validator: jsonschema_rs.Draft202012Validator
) -> None:
    validator.validate(dict(authored.definition().document))


GOOD: dict[str, dict[str, Any]] = {
    "agent": {"prompt": "x", "tools": [{"kind": "flow", "flow_id": "child"}]},
    "branch": {"cases": [{"when": "inputs.x", "then": []}]},
    "chat_model": {"prompt": "x", "output_schema": {"type": "object"}},
    "flow": {"flow": "child"},
    "http_request": {"url": "http://a.example"},
    "map": {"over": "inputs.x", "each": {"kind": "select", "expression": "item"}},
    "python": {"function": "a:b"},
    "select": {"expression": "inputs.x"},
    "sleep": {"seconds": 1},
    "template": {"template": "x"},
    "text_file": {"uri": "x"},
    "tool": {"tool": {"kind": "python", "function": "a:b"}, "arguments": {"x": "${inputs.x}"}},
    "wait_for_signal": {"signal": "x"},
}


def flow_of(kind: str) -> dict[str, Any]:
    return {"heliograph": 1, "id": "f", "nodes": [{"id": "a", "kind": kind, **GOOD[kind]}]}


@pytest.mark.parametrize("kind", KINDS)
def test_schema_and_compiler_accept_every_kind(
    kind: str, validator: jsonschema_rs.Draft202012Validator
) -> None:
    document = flow_of(kind)

    assert compile_flow(parse_flow(document)).steps
    assert validator.is_valid(document)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"colour": 1},
        {"id": "a b"},
        {"needs": "b"},
        {"when": 1},
        {"kind": "nope"},
        {"name": None},
        {"retry": {"x": 1}},
    ],
    ids=str,
)
def test_schema_and_compiler_refuse_the_same_shapes(
    kind: str, wrong: dict[str, Any], validator: jsonschema_rs.Draft202012Validator
) -> None:
    document = flow_of(kind)
    document["nodes"][0] |= wrong

    assert not validator.is_valid(document)
    with pytest.raises(InvalidGraph):
        compile_flow(parse_flow(document))


def test_the_schema_is_plain_json() -> None:
    assert json.loads(schema_text()) == flow_json_schema()
