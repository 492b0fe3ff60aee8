"""From a flow's queue field and an input to the key and the priority of one execution."""

from collections.abc import Callable

import msgspec
from jinja2.exceptions import TemplateError

from runtime.commands import StartExecution
from runtime.errors import InvalidInput
from runtime.events import Json
from runtime.expressions import is_expression
from runtime.flow_fields import Report
from runtime.plan import PLACEMENT, Plan
from runtime.queues import KEY_CHARS_MAX, PRIORITY_MAX, RATE_MAX, WHOLE_FLOW, QueueFields, QueueRule, Rate
from runtime.templates import TemplateSyntax, compile_template

_NAMES = frozenset({"inputs"})


def compile_queue(
    fields: QueueFields, placement: PLACEMENT, inputs: frozenset[str] | None, report: Report
) -> QueueRule:
    """The rule a plan carries; of no use when problems were reported. ``inputs``: the only ones there are."""
    rate = None if fields.rate is None else Rate.parse(fields.rate)
    if rate is not None and rate.amount > RATE_MAX:
        report("queue.rate", f"at most {RATE_MAX} starts of one window can be counted; take a shorter window")
    if rate is not None and placement == "dedicated":
        report("queue.rate", "can't be kept by dedicated placement, where each execution has its own host")
    rule = QueueRule(
        key=_template("queue.key", fields.key, inputs, report),
        concurrency=fields.concurrency,
        rate=rate,
        priority=fields.priority if isinstance(fields.priority, int) else 0,
        priority_text=_template(
            "queue.priority", fields.priority if isinstance(fields.priority, str) else None, inputs, report
        ),
    )
    if not rule.is_keyed and rule.key is not None:
        report("queue.key", "does nothing without concurrency or rate")
    elif not rule.is_keyed and rule.priority == 0 and rule.priority_text is None:
        report("queue", "needs concurrency, rate or priority")
    return rule


def _template(
    field: str, text: str | None, inputs: frozenset[str] | None, report: Report
) -> Callable[[dict[str, Json]], str] | None:
    if text is None:
        return None
    if is_expression(text):
        report(field, "is a template: write {{ inputs.name }} instead of ${inputs.name}")
        return None
    try:
        template = compile_template(text, _NAMES)
    except TemplateSyntax as error:
        report(field, str(error))
        return None
    for name in template.input_reads:
        if inputs is not None and name not in inputs:
            report(field, f"unknown input '{name}': the flow's inputs don't have it")
    return template.render


def placed(command: StartExecution, plan: Plan) -> StartExecution:
    """``command`` with its place in the flow's queue; as it is when it has one, or the flow has no queue.

    Call it while the input is at hand: one that was put aside can't be read here.
    Raises: InvalidInput when the input gives no key or no priority.
    """
    rule = plan.queue
    if rule is None or command.queue_key:
        return command
    if command.input_ref is not None:
        if rule.is_keyed:
            raise InvalidInput((("", "is too large to be read for the flow's queue"),))
        return command
    scope: dict[str, Json] = {"inputs": command.input}
    key = ""
    if rule.is_keyed:
        key = WHOLE_FLOW if rule.key is None else _rendered("queue.key", rule.key, scope)
        if not key or len(key) > KEY_CHARS_MAX or "\x00" in key:
            raise _unusable("queue.key", f"must have 1 to {KEY_CHARS_MAX} characters, none of them NUL")
    priority = command.priority or rule.priority
    if rule.priority_text is not None and not command.priority:
        priority = _whole_number(_rendered("queue.priority", rule.priority_text, scope))
    return msgspec.structs.replace(command, queue_key=key, priority=priority)


def _rendered(field: str, render: Callable[[dict[str, Json]], str], scope: dict[str, Json]) -> str:
    try:
        return render(scope).strip()
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise _unusable(field, str(error)) from None


def _whole_number(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = PRIORITY_MAX + 1
    if abs(number) > PRIORITY_MAX:
        raise _unusable("queue.priority", f"must give a whole number from -{PRIORITY_MAX} to {PRIORITY_MAX}")
    return number


def _unusable(field: str, rule: str) -> InvalidInput:
    return InvalidInput((("", f"the flow's {field} can't be made from it: {rule}"),))
