"""The abilities the ability contract's scenarios run."""

from __future__ import annotations

from typing import Any

from tests.contracts.live_server import flow

AWKWARD = 'first\n\ndata: x\nevent: y\n\n: "quoted" \\ \r\nid: 7\u2028ü'
"""What either framing could trip over: blank lines, colons, field names, separators."""

BULKY_CHARS = 60_000
WIDE = 40


def template(node_id: str, text: str, **fields: Any) -> dict[str, Any]:
    return {"id": node_id, "kind": "template", "template": text, **fields}


MY_ABILITY = flow(
    "my-ability",
    template("analyse", "Analysed: {{ inputs.inputData }}", name="Analyse"),
    template("phrase", "{{ nodes.analyse }}."),
    inputs={
        "type": "object",
        "required": ["inputData"],
        "properties": {"inputData": {"type": "string"}, "option2": {"type": "integer"}},
    },
    output={"output": "${nodes.phrase}"},
)

OTHER = flow("other-ability", template("only", "text"), output="${nodes.only}")

AWKWARD_ABILITY = flow("awkward", template("say", "{{ inputs.text }}"), output="${nodes.say}")

FAILING = flow("failing", template("fine", "ok"), template("bad", "{{ nodes.fine }}{{ 1 // 0 }}"))

LATE = flow("late-ability", {"id": "rest", "kind": "sleep", "seconds": 600}, timeout_seconds=0.5)

LONG = flow(
    "long",
    template("before", "begun"),
    {"id": "rest", "kind": "sleep", "seconds": 600, "needs": ["before"]},
)

SHORT_REST = flow(
    "short-rest",
    template("before", "begun"),
    {"id": "rest", "kind": "sleep", "seconds": 1.0, "needs": ["before"]},
    template("after", "{{ nodes.before }}, ended", needs=["rest"]),
    output={"said": "${nodes.after}"},
)

MANY = flow("many", *(template(f"n{number:02}", f"out {number}") for number in range(WIDE)))

BULKY = flow(
    "bulky-ability",
    template("big", f"{{{{ 'ü' * {BULKY_CHARS} }}}}"),
    template("small", "{{ nodes.big | length }}"),
    output={"text": "${nodes.big}"},
)

FILES = flow(
    "files",
    {
        "id": "read",
        "kind": "python",
        "function": "tests.contracts.ability.reading:read_files",
        "with": {"files": '${inputs."$files"}'},
    },
    output={"files": "${nodes.read}"},
)

HELD = flow(
    "held-ability",
    {
        "id": "hold",
        "kind": "python",
        "function": "tests.contracts.executions.held:wait_for_file",
        "with": {"path": "${inputs.path}"},
    },
)
"""Runs, and keeps its place, until a file appears."""

ALL = (
    MY_ABILITY,
    OTHER,
    AWKWARD_ABILITY,
    FAILING,
    LATE,
    LONG,
    SHORT_REST,
    MANY,
    BULKY,
    FILES,
)
