"""Reading definitions: what is one at all, and which texts are the same definition."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from runtime.errors import InvalidGraph
from runtime.flow import FlowDefinition, parse_flow
from runtime.flow_text import DEPTH_MAX, TEXT_BYTES_MAX
from runtime.graph import compile_flow

HELLO = """
heliograph: 1
id: hello
nodes:
  - id: greet
    kind: template
    template: "Hello {{ inputs.who }}"
"""


def with_node(**fields: Any) -> dict[str, Any]:
    node = {"id": "greet", "kind": "template", "template": "Hello {{ inputs.who }}", **fields}
    return {"heliograph": 1, "id": "hello", "nodes": [node]}


def refusal(document: str | bytes | Mapping[str, Any]) -> str:
    with pytest.raises(InvalidGraph) as caught:
        parse_flow(document)
    return str(caught.value)


def test_yaml_json_bytes_and_mapping_give_the_same_definition() -> None:
    definitions = [
        parse_flow(HELLO),
        parse_flow(HELLO.encode()),
        parse_flow(json.dumps(with_node())),
        parse_flow(json.dumps(with_node(), indent="\t")),
        parse_flow(with_node()),
    ]

    assert len({definition.version for definition in definitions}) == 1
    assert all(definition == definitions[0] for definition in definitions)


def test_the_version_of_a_document_never_changes() -> None:
    """Stored executions name it, so a change here is a new format version."""
    assert parse_flow(HELLO).version == "085c8b34a627c222"


@pytest.mark.parametrize(
    "spelled_out",
    [
        {"needs": []},
        {"name": ""},
        {"when": None},
        {"retry": {}},
        {"retry": {"attempts": 1, "backoff_factor": 2, "on": []}},
        {"timeout_seconds": None},
        {"resources": None},
    ],
)
def test_a_default_spelled_out_changes_nothing(spelled_out: dict[str, Any]) -> None:
    assert parse_flow(with_node(**spelled_out)).version == parse_flow(HELLO).version


def test_defaults_of_the_flow_and_of_a_kind_spelled_out_change_nothing() -> None:
    plain: dict[str, Any] = {
        "heliograph": 1,
        "id": "wide",
        "nodes": [
            {"id": "m", "kind": "map", "over": "inputs.l", "each": {"kind": "python", "function": "a:b"}}
        ],
    }
    spelled: dict[str, Any] = {**plain, "placement": "pooled", "description": "", "inputs": None}
    each = {"kind": "python", "function": "a:b", "with": {}, "retry": {"attempts": 1}}
    spelled["nodes"] = [plain["nodes"][0] | {"concurrency": 8, "on_error": "keep", "each": each}]

    assert parse_flow(plain).version == parse_flow(spelled).version


def test_whole_and_decimal_numbers_are_the_same_where_a_number_is_asked_for() -> None:
    assert parse_flow(with_node(timeout_seconds=30)) == parse_flow(with_node(timeout_seconds=30.0))


def test_any_other_difference_gives_another_version() -> None:
    versions = {
        parse_flow(document).version
        for document in (
            with_node(),
            with_node(template="Hullo"),
            with_node(name="Greeting"),
            with_node(retry={"attempts": 2}),
            with_node() | {"output": None},
            with_node() | {"output": "${nodes.greet}"},
            with_node() | {"placement": "dedicated"},
        )
    }

    assert len(versions) == 7


def test_a_stored_document_gives_the_definition_back() -> None:
    definition = parse_flow(with_node(retry={"attempts": 2}))
    stored = json.loads(json.dumps(definition.document))

    assert FlowDefinition.from_document(stored) == definition
    assert FlowDefinition.from_document(stored).version == definition.version


def test_a_definition_shares_nothing_with_what_it_was_made_from() -> None:
    document = with_node(retry={"on": ["A"]})
    definition = parse_flow(document)
    document["nodes"][0]["retry"]["on"].append("B")

    assert compile_flow(definition).steps[next(iter(compile_flow(definition).steps))].retry.on == ("A",)


def test_yaml_means_what_json_means() -> None:
    retry = "    retry: {on: [TimeoutError], attempts: 2}\n"
    text = f"{HELLO}{retry}output: {{a: 2026-01-01, b: yes, c: 010, d: 1e3, e: ~}}\n"
    document = parse_flow(text).document

    assert document["nodes"][0]["retry"] == {"attempts": 2, "on": ["TimeoutError"]}
    assert document["output"] == {"a": "2026-01-01", "b": "yes", "c": 10, "d": 1000.0, "e": None}


def test_anchors_may_be_used_for_what_repeats() -> None:
    text = """
    heliograph: 1
    id: twice
    nodes:
      - {id: a, kind: template, template: x, retry: &retry {attempts: 3}}
      - {id: b, kind: template, template: x, retry: *retry}
    """

    assert [step.retry.attempts for step in compile_flow(parse_flow(text)).steps.values()] == [3, 3]


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]

    assert "at most, aliases followed" in refusal("\n".join(lines))


def test_an_alias_of_itself_is_refused() -> None:
    assert f"nested {DEPTH_MAX} levels deep at most" in refusal("a: &a [*a]")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (HELLO + "id: again\n", "line 8: the key 'id' stands twice"),
        ('{"id": "a", "id": "b"}', "the key 'id' stands twice"),
        ("a: [", "line 2, column 1"),
        ("- a", "a definition must be an object"),
        ("", "a definition must be an object"),
        ("1: a", "line 1: a key must be a string"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: !!set {x: null}", "set is not a JSON value"),
        ("a: {<<: {b: 1}, c: &c 99999999999999999999}", "a.c: an integer must fit in 64 bits"),
        ('{"a": NaN}', "a: a number must be finite"),
        ('{"a": "\\ud800"}', "a: a text must be valid Unicode"),
        ("a: 1\x00", "characters are not allowed"),
        ("[" * 100_000, "nest"),
        ('{"a": ' + "[" * 100_000, "nest"),
        ("a: " + "x" * TEXT_BYTES_MAX, f"{TEXT_BYTES_MAX} bytes at most"),
        (b"a: \xff", "not UTF-8 at byte 3"),
        ({"a": object()}, "a: object is not a JSON value"),
        ({"a": [{1: 2}]}, "a[0]: a key must be a string"),
    ],
)
def test_what_is_no_definition_is_refused(text: str | bytes | Mapping[str, Any], rule: str) -> None:
    assert rule in refusal(text)


def test_a_broken_part_is_kept_for_the_compiler_to_report() -> None:
    definition = parse_flow({"id": 7, "nodes": [5, {"id": "a", "kind": "nope"}]})

    assert definition.id == ""
    assert definition.document["nodes"] == [5, {"id": "a", "kind": "nope"}]


def test_name_and_description_have_their_defaults() -> None:
    plain = parse_flow(with_node())
    named = parse_flow(with_node() | {"name": "Hello", "description": "Greets", "inputs": {"type": "object"}})

    assert (plain.name, plain.description, plain.inputs) == ("hello", "", None)
    assert (named.name, named.description, named.inputs) == ("Hello", "Greets", {"type": "object"})
