"""Guardrails without a model: what they say of texts and requests, and of themselves."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.agent_spec import Guardrail
from runtime.guardrails import faults, missing_fields, schema_violation, text_violation


def rule(**fields: Any) -> Guardrail:
    return Guardrail(name="g", **fields)


@pytest.mark.parametrize(
    ("given", "text", "reason"),
    [
        (rule(rule="pattern", pattern="b+"), "abc", "prompt matches forbidden pattern 'b+'."),
        (rule(rule="pattern", pattern="b+"), "acd", ""),
        (rule(rule="pattern", pattern="(?i)B"), "abc", "prompt matches forbidden pattern '(?i)B'."),
        (
            rule(rule="pattern", pattern="b", must_match=True),
            "acd",
            "prompt does not match required pattern 'b'.",
        ),
        (rule(rule="pattern", pattern="b", must_match=True), "abc", ""),
        (rule(rule="pattern", pattern="b", message="No b."), "abc", "No b."),
        (rule(rule="length", max_chars=3), "abcd", "prompt is too long (4 chars, maximum 3)."),
        (rule(rule="length", max_chars=3), "abc", ""),
        (rule(rule="length", min_chars=3), "ab", "prompt is too short (2 chars, minimum 3)."),
        (rule(rule="json_schema", schema={"type": "object"}), "{}", ""),
        (rule(rule="json_schema", schema={}), "{", "prompt is not valid JSON."),
        (rule(rule="model", instructions="be kind"), "rude", ""),
        (rule(rule="required_input", fields=("a",)), "x", ""),
    ],
)
def test_a_text_is_told_what_it_breaks(given: Guardrail, text: str, reason: str) -> None:
    assert text_violation(given, text, "prompt") == reason


def test_a_pattern_that_never_ends_counts_as_broken() -> None:
    given = rule(rule="pattern", pattern="(a|aa)+(?=c)d")
    assert "could not be checked" in text_violation(given, "a" * 60 + "b", "prompt")


def test_a_value_is_told_where_it_breaks_a_schema_and_not_what_it_holds() -> None:
    schema = {"type": "object", "properties": {"a": {"items": {"type": "integer"}}}}
    reason = schema_violation(rule(rule="json_schema", schema=schema), {"a": ["hidden"]}, "request")
    assert reason.startswith("request validation failed at a/0: ")
    assert "hidden" not in reason


def test_required_inputs_that_are_missing_are_named() -> None:
    given = rule(rule="required_input", fields=("city", "days", "zero"))
    assert missing_fields(given, {"city": "", "zero": 0}) == ("city", "days")
    assert missing_fields(given, None) == ("city", "days", "zero")
    assert missing_fields(rule(rule="required_input"), None) == ("request",)
    assert missing_fields(rule(rule="length"), None) == ()


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (rule(rule="pattern", pattern="(["), "is not a regular expression"),
        (rule(rule="json_schema", schema={"type": 5}), "is not a JSON Schema"),
        (rule(rule="json_schema", schema={"$ref": "https://example.com/"}), "is not a JSON Schema"),
        (rule(rule="pattern", pattern="a"), ""),
        (rule(rule="model"), ""),
    ],
)
def test_a_rule_that_cannot_be_used_says_so(given: Guardrail, fault: str) -> None:
    assert faults(given) == fault
