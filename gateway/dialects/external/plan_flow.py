"""A task's plan as an ordinary flow: one node for each step, in order, then the words of the result.

A step's input may hold ``${inputs.input}`` and ``${nodes.step_1}``, alone or within a longer text; an
assistant's instruction only such plain paths. The flow's nodes:

    step_1 -> step_2 -> ... -> result        (no ``result`` when the last step is the assistant's)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec

from gateway.dialects.external.wire import Step
from runtime.expressions import escape

ASSISTANT, ANSWER = "assistant", "answer"
"""The MCP that is always there: a model answers an instruction."""

FLOWS = "flows"
"""The MCP of the tenant's own published flows; an action is a flow's id."""

RESULT_NODE = "result"

STEPS_MAX = 20

INPUTS: Mapping[str, Any] = {
    "type": "object",
    "required": ["input"],
    "properties": {"input": {"type": "string"}, "parameters": {"type": "object"}},
}

_EXPRESSION = re.compile(r"\$\{([^{}]*)\}")
_STEP_OUTPUT = re.compile(r"\bnodes\.step_(\d+)\b")
_PATH = re.compile(r"\s*(?:inputs|nodes|execution)(?:\.[A-Za-z_]\w*|\[\d+\])+\s*")
_JINJA = re.compile(r"\{[{%#]")

RESULT_PROMPT = (
    "The task:\n{{ inputs.input }}\n\n"
    "Its steps were carried out, with these results:\n"
    "{% for each in [RESULTS] %}\n"
    "Step {{ loop.index }}, {{ each[0] }}:\n{{ each[1] if each[1] is string else each[1] | tojson }}\n"
    "{% endfor %}\n"
    "Give the task's result to the person who set it: complete, from these results alone, without telling of "
    "steps or tools."
)
ANSWER_PROMPT = (
    "{% set results = [RESULTS] %}"
    "The task this is a part of:\n{{ inputs.input }}\n\n"
    "{% for each in results %}"
    "Result of step {{ loop.index }}, {{ each[0] }}:\n"
    "{{ each[1] if each[1] is string else each[1] | tojson }}\n\n"
    "{% endfor %}"
)


class PlanFault(ValueError):
    """The plan can't be a flow: pairs of place and rule, fit to be told to the model that made it."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{where}: {rule}" for where, rule in problems))
        self.problems = tuple(problems)


def flow_document(
    flow_id: str, name: str, steps: Sequence[Step], servers: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The definition of the flow that carries the steps out. ``servers``: tool specification by MCP name.

    Raises: PlanFault.
    """
    problems = list(_problems(steps, servers))
    if problems:
        raise PlanFault(problems)
    nodes = [_node(step, steps[: step.step - 1], servers) for step in steps]
    final = final_node(steps)
    if final == RESULT_NODE:
        prompt = RESULT_PROMPT.replace("RESULTS", _results(steps))
        nodes.append({"id": final, "name": "Result", "kind": "chat_model", "prompt": prompt})
    return {
        "heliograph": 1,
        "id": flow_id,
        "name": name,
        "inputs": dict(INPUTS),
        "nodes": nodes,
        "output": f"${{nodes.{final}}}",
    }


def node_id(step: int) -> str:
    return f"step_{step}"


def step_of(node: str) -> int | None:
    """The step that a node carries out; None for the result's."""
    return int(node[5:]) if node.startswith("step_") and node[5:].isdigit() else None


def final_node(steps: Sequence[Step]) -> str:
    """The node whose answer is the task's result."""
    return node_id(steps[-1].step) if steps[-1].mcp == ASSISTANT else RESULT_NODE


def planned_steps(document: Mapping[str, Any]) -> list[Step]:
    """The steps that a flow made by `flow_document` carries out, inputs as they stand in its nodes."""
    steps: list[Step] = []
    for node in cast("list[dict[str, Any]]", document["nodes"]):
        number = step_of(node["id"])
        if number is None:
            continue
        match node["kind"]:
            case "tool":
                step = Step(number, node["tool"]["name"], node["name"], node.get("arguments") or {})
            case "flow":
                step = Step(number, FLOWS, node["flow"], node.get("input") or {})
            case _:
                step = Step(number, ASSISTANT, ANSWER, {})
        steps.append(step)
    return steps


# --- what a plan must keep ------------------------------------------------------------------------------


def _problems(steps: Sequence[Step], servers: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    if not 1 <= len(steps) <= STEPS_MAX:
        yield "steps", f"must be 1 to {STEPS_MAX}"
    for step in steps:
        where = f"step {step.step}"
        if step.mcp == ASSISTANT:
            instruction = instruction_of(step)
            if step.action != ANSWER:
                yield where, f"the action of '{ASSISTANT}' is '{ANSWER}'"
            if not instruction:
                yield where, f"the input of '{ASSISTANT}' is {{'instruction': a text}}"
            for found in _EXPRESSION.findall(instruction):
                if _PATH.fullmatch(found) is None:
                    yield where, f"an instruction may only mention plain paths, not '{found}'"
        elif step.mcp != FLOWS and step.mcp not in servers:
            yield where, f"there is no mcp '{step.mcp}'"
        if not step.action:
            yield where, "the action is missing"
        if not isinstance(step.input, dict):
            yield where, "the input must be an object"
        for later in _later_steps(step):
            yield where, f"step {later} has no result yet"


def _later_steps(step: Step) -> list[int]:
    text = msgspec.json.encode(step.input).decode()
    mentioned = {int(number) for found in _EXPRESSION.findall(text) for number in _STEP_OUTPUT.findall(found)}
    return sorted(number for number in mentioned if not 1 <= number < step.step)


def instruction_of(step: Step) -> str:
    given: Any = step.input
    text = cast("dict[str, Any]", given).get("instruction") if isinstance(given, dict) else None
    return text.strip() if isinstance(text, str) else ""


# --- nodes ----------------------------------------------------------------------------------------------


def _node(step: Step, before: Sequence[Step], servers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    node: dict[str, Any] = {"id": node_id(step.step), "name": f"{step.mcp}: {step.action}"[:200]}
    if before:
        node["needs"] = [node_id(before[-1].step)]
    if step.mcp == ASSISTANT:
        context = ANSWER_PROMPT.replace("RESULTS", _results(before))
        return {**node, "kind": "chat_model", "prompt": context + _template(instruction_of(step))}
    given = _value(step.input)
    if step.mcp == FLOWS:
        return {**node, "kind": "flow", "flow": step.action, "input": given}
    return {
        **node,
        "kind": "tool",
        "tool": escape(cast("Any", servers[step.mcp])),
        "name": step.action,
        "arguments": given,
    }


def _results(steps: Sequence[Step]) -> str:
    """The outputs of steps, as the items of a list in a template."""
    return ", ".join(
        f"({_quoted(f'{step.mcp}: {step.action}')}, nodes.{node_id(step.step)})" for step in steps
    )


def _template(text: str) -> str:
    """A text with ``${path}`` in it as a template that shows the paths' values."""
    parts: list[str] = []
    at = 0
    for found in _EXPRESSION.finditer(text):
        path = found[1].strip()
        parts.append(_plain(text[at : found.start()]))
        parts.append(f"{{{{ {path} if {path} is string else {path} | tojson }}}}")
        at = found.end()
    return "".join((*parts, _plain(text[at:])))


def _plain(text: str) -> str:
    return f"{{{{ {_quoted(text)} }}}}" if _JINJA.search(text) else text


def _quoted(text: str) -> str:
    """The text as a string of a template; JSON's escapes are among those of Jinja's strings."""
    return msgspec.json.encode(text).decode().replace("{", "\\u007b").replace("}", "\\u007d")


def _value(value: Any) -> Any:
    """A step's input as a value of a flow: ``${...}`` within a longer text becomes one whole expression."""
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value)
        return {key: _value(item) for key, item in pairs.items()}
    if isinstance(value, list):
        return [_value(item) for item in cast("list[Any]", value)]
    if not isinstance(value, str):
        return value
    found = list(_EXPRESSION.finditer(value))
    if not found:
        return escape(value)
    if found[0].span() == (0, len(value)):
        return value
    parts: list[str] = []
    at = 0
    for each in found:
        parts.append(_raw(value[at : each.start()]))
        parts.append(f"to_string({each[1].strip()})")
        at = each.end()
    parts.append(_raw(value[at:]))
    return f"${{join('', [{', '.join(part for part in parts if part)}])}}"


def _raw(text: str) -> str:
    """The text as a JMESPath literal, which is JSON between backticks."""
    if not text:
        return ""
    return "`" + msgspec.json.encode(text).decode().replace("`", "\\u0060") + "`"
