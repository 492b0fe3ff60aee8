"""The guardrails that are checked before a prompt is accepted (contract 3.6): those no model is asked for.

Rules about the prompt (patterns, lengths) look at ``prompt``, rules about the request (required fields, JSON
Schema) at ``request``. An input a rule needs and doesn't get is 400, a violation 422. Rules
about the output and those a model judges are the run's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.envelopes import Problem
from runtime.agent_spec import Guardrail
from runtime.guardrails import missing_fields, schema_violation, text_violation

_OF_PROMPT = frozenset({"pattern", "length"})
_OF_REQUEST = frozenset({"required_input", "json_schema"})


def check_input(rules: Sequence[Guardrail], prompt: str | None, request: Mapping[str, Any] | None) -> None:
    """Raises: Problem bad_value for a missing input, guardrail_violated."""
    early = [rule for rule in rules if _is_early(rule)]
    for rule in early:
        _check_presence(rule, prompt, request)
    for rule in early:
        if rule.rule in _OF_PROMPT:
            reason = text_violation(rule, prompt or "", "prompt")
        elif rule.rule == "json_schema":
            reason = schema_violation(rule, request, "request")
        else:
            continue
        if reason:
            raise Problem("guardrail_violated", f"Guardrail '{rule.name}': {reason}")


def _is_early(rule: Guardrail) -> bool:
    """Whether the rule is about the input, and needs no model."""
    return rule.stage != "output" and rule.rule in _OF_PROMPT | _OF_REQUEST


def _check_presence(rule: Guardrail, prompt: str | None, request: Mapping[str, Any] | None) -> None:
    if rule.rule in _OF_PROMPT and not prompt:
        raise Problem("bad_value", f"Guardrail '{rule.name}': a 'prompt' is required")
    if rule.rule == "json_schema" and request is None:
        raise Problem("bad_value", f"Guardrail '{rule.name}': a 'request' is required")
    missing = missing_fields(rule, request)
    if missing:
        named = ", ".join(f"'{name}'" for name in missing)
        raise Problem("bad_value", f"Guardrail '{rule.name}': the input lacks {named}")
