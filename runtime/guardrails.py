"""What a guardrail says about a text or a request, as far as no model is asked. Pure.

A reason is worded for the caller and goes behind ``Guardrail '<name>': `` (workflows contract 3.6). Patterns
are matched by an engine that gives up after a bounded number of steps back: one that runs into the bound
counts as broken, since the text could not be cleared.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import jsonschema_rs
import msgspec

from runtime.agent_spec import Guardrail
from runtime.events import Json

_BACKTRACKS_MAX = 100_000
_CACHED_MAX = 1_024


def text_violation(rule: Guardrail, text: str, what: str) -> str:
    """Why ``text`` breaks a pattern, length or schema rule; empty when it doesn't, and for other rules.

    ``what``: how the text is called, e.g. prompt.
    """
    match rule.rule:
        case "length":
            return _length_violation(rule, len(text), what)
        case "pattern":
            return _pattern_violation(rule, text, what)
        case "json_schema":
            try:
                value: Json = msgspec.json.decode(text)
            except msgspec.DecodeError:
                return rule.message or f"{what} is not valid JSON."
            return schema_violation(rule, value, what)
        case _:
            return ""


def schema_violation(rule: Guardrail, value: Json, what: str) -> str:
    """Why ``value`` breaks the rule's JSON Schema; empty when it doesn't."""
    validator = _schema(msgspec.json.encode(rule.schema or {}))
    for error in validator.iter_errors(value):
        where = "/".join(map(str, error.instance_path))
        at = f" at {where}" if where else ""
        return rule.message or f"{what} validation failed{at}: {error.message}."
    return ""


def missing_fields(rule: Guardrail, request: Mapping[str, Json] | None) -> tuple[str, ...]:
    """What a ``required_input`` rule asks for and the request lacks: fields, or ``request`` itself."""
    if rule.rule != "required_input":
        return ()
    if request is None:
        return rule.fields or ("request",)
    return tuple(name for name in rule.fields if request.get(name) in (None, ""))


def faults(rule: Guardrail) -> str:
    """What is wrong with the rule itself, e.g. a pattern that is none; empty when it can be used."""
    try:
        if rule.rule == "pattern":
            _pattern(rule.pattern)
        elif rule.rule == "json_schema":
            _schema(msgspec.json.encode(rule.schema or {}))
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError):
        return "is not a regular expression" if rule.rule == "pattern" else "is not a JSON Schema"
    return ""


def _length_violation(rule: Guardrail, length: int, what: str) -> str:
    if length < rule.min_chars:
        return rule.message or f"{what} is too short ({length} chars, minimum {rule.min_chars})."
    if rule.max_chars is not None and length > rule.max_chars:
        return rule.message or f"{what} is too long ({length} chars, maximum {rule.max_chars})."
    return ""


def _pattern_violation(rule: Guardrail, text: str, what: str) -> str:
    found: bool | None = True
    for error in _pattern(rule.pattern).iter_errors(text):
        is_given_up = isinstance(error.kind, jsonschema_rs.ValidationErrorKind.BacktrackLimitExceeded)
        found = None if is_given_up else False
    if found is None:
        return rule.message or f"{what} could not be checked against pattern '{rule.pattern}'."
    if rule.must_match and not found:
        return rule.message or f"{what} does not match required pattern '{rule.pattern}'."
    if not rule.must_match and found:
        return rule.message or f"{what} matches forbidden pattern '{rule.pattern}'."
    return ""


@lru_cache(maxsize=_CACHED_MAX)
def _pattern(pattern: str) -> jsonschema_rs.Draft202012Validator:
    return _validator({"pattern": pattern})


@lru_cache(maxsize=_CACHED_MAX)
def _schema(text: bytes) -> jsonschema_rs.Draft202012Validator:
    return _validator(msgspec.json.decode(text))


def _validator(schema: Any) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        schema,
        retriever=_no_retrieval,
        mask="the value",
        pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS_MAX),
    )


def _no_retrieval(uri: str) -> Any:
    raise ValueError(f"a schema can't refer to another document ({uri})")
