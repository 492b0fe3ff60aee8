"""Published flows that plans run."""

from __future__ import annotations

from tests.contracts.live_server import flow

_TEXT = {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}}

SHOUT = flow(
    "external-shout",
    {"id": "shout", "kind": "template", "template": "{{ inputs.text | upper }}"},
    inputs=_TEXT,
)
REST = flow("external-rest", {"id": "rest", "kind": "sleep", "seconds": 600})
BROKEN = flow("external-broken", {"id": "bad", "kind": "template", "template": "{{ 1 // 0 }}"})

ALL = (SHOUT, REST, BROKEN)
