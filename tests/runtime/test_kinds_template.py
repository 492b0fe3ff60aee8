"""Templates: what they give, what they mention, and the bounds of their sandbox."""

from typing import Any

import pytest
from jinja2.exceptions import SecurityError, UndefinedError

from runtime.expressions import MAP_NAMES, NAMES
from runtime.templates import (
    LOOP_ROUNDS_MAX,
    OUTPUT_CHARS_MAX,
    TEMPLATE_CHARS_MAX,
    TemplateSyntax,
    compile_template,
)

SCOPE: dict[str, Any] = {
    "inputs": {"who": "me", "items": [1, 2], "obj": {"keys": "mine"}, "tags": "<a>"},
    "nodes": {"a": "A", "skipped": None},
    "execution": {"id": "e"},
}


def rendered(text: str) -> str:
    return compile_template(text, NAMES).render(SCOPE)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain", "plain"),
        ("Hello {{ inputs.who }}", "Hello me"),
        ("{{ nodes.a }}{{ nodes['a'] }}", "AA"),
        ("{{ nodes.skipped }}", "None"),
        ("{{ inputs.items | join(',') }}", "1,2"),
        ("{{ inputs.obj.keys }}", "mine"),
        ("{{ inputs.obj.values() | list }}", "['mine']"),
        ("{% for i in inputs.items %}{{ loop.index }}:{{ i }} {% endfor %}", "1:1 2:2 "),
        ("{{ inputs.missing | default('-') }}", "-"),
        ("{{ inputs.obj | tojson }}", '{"keys": "mine"}'),
        ("{{ inputs.tags }}{{ inputs.tags | tojson }}", '<a>"<a>"'),
        ("a\n", "a\n"),
        ("{{ 2 ** 10 }} {{ 'ab' * 2 }} {{ inputs.items * 2 }}", "1024 abab [1, 2, 1, 2]"),
    ],
)
def test_a_template_gives_its_text(text: str, result: str) -> None:
    assert rendered(text) == result


def test_a_missing_name_fails_the_rendering() -> None:
    with pytest.raises(UndefinedError):
        rendered("{{ inputs.missing }}")


def test_what_a_template_mentions_is_known() -> None:
    template = compile_template(
        "{{ nodes.b }}{% if inputs['x'] %}{{ nodes['c'].d }}{% endif %}{{ inputs.y }}", NAMES
    )

    assert sorted(template.node_reads) == ["b", "c"]
    assert sorted(template.input_reads) == ["x", "y"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{{ nodes }}", "must be followed by the id of a node"),
        ("{{ nodes[inputs.which] }}", "must be followed by the id of a node"),
        ("{% for n in nodes %}{% endfor %}", "must be followed by the id of a node"),
        ("{{ item }}", "unknown name 'item'"),
        ("{{ lipsum() }}", "unknown name 'lipsum'"),
        ("{{ inputs.items | random }}", "No filter named 'random'"),
        ("{% set nodes = 1 %}", "'nodes' can't be assigned"),
        ("{% for inputs in [1] %}{% endfor %}", "'inputs' can't be assigned"),
        ("{% include 'x' %}", "'include' is not available"),
        ("{% extends 'x' %}", "'extends' is not available"),
        ("{% macro m() %}{% endmacro %}", "'macro' is not available"),
        ("{{ 1 }}" + "x" * TEMPLATE_CHARS_MAX, f"{TEMPLATE_CHARS_MAX} characters at most"),
        ("{{ 1 +", "end of template"),
        ("{{ " + "(" * 5000, "nested too deeply"),
    ],
)
def test_what_is_no_usable_template_is_refused(text: str, rule: str) -> None:
    with pytest.raises(TemplateSyntax) as caught:
        compile_template(text, NAMES)

    assert rule in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{{ inputs.who.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ range.__globals__ }}",
        "{{ inputs.items.append(3) }}",
        "{{ inputs.update({'a': 1}) }}",
        "{{ 'a' * 10000000000 }}",
        "{{ [1] * 10000000000 }}",
        "{{ 9 ** 99999999 }}",
        "{{ 9 ** 4000 ** 2 }}",
        "{{ range(10000000000) }}",
        f"{{% for i in range({LOOP_ROUNDS_MAX}) %}}{{% for j in range(9) %}}{{% endfor %}}{{% endfor %}}",
        "{% for i in range(99999) %}" + "x" * 100 + "{% endfor %}",
    ],
)
def test_what_could_harm_the_host_is_stopped(text: str) -> None:
    with pytest.raises((SecurityError, OverflowError)):
        rendered(text)


def test_the_output_may_be_as_long_as_the_bound() -> None:
    text = "{% for i in range(1024) %}" + "x" * (OUTPUT_CHARS_MAX // 1024) + "{% endfor %}"

    assert len(rendered(text)) == OUTPUT_CHARS_MAX


def test_loops_of_one_rendering_do_not_count_for_the_next() -> None:
    template = compile_template(f"{{% for i in range({LOOP_ROUNDS_MAX // 2 + 1}) %}}{{% endfor %}}", NAMES)

    assert [template.render(SCOPE), template.render(SCOPE)] == ["", ""]


def test_inside_a_map_there_are_item_and_index() -> None:
    assert (
        compile_template("{{ index }}{{ item.n }}", MAP_NAMES).render({"index": 3, "item": {"n": 4}}) == "34"
    )


def test_rendering_leaves_the_scope_as_it_was() -> None:
    before = {name: dict(part) for name, part in SCOPE.items()}
    rendered("{% set x = 1 %}{% for i in inputs.items %}{{ x }}{% endfor %}")

    assert before == SCOPE
