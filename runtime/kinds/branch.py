"""``branch``: takes the first case whose condition holds; nodes named only in other cases are skipped.

The output is the name of the case taken, or its index when it has none, ``else``, or null.
"""

from typing import Annotated

import msgspec

from runtime.ids import NodeId
from runtime.kinds.kind import Binder, Kind
from runtime.plan import Act, Output, Scope


class Case(msgspec.Struct, frozen=True, kw_only=True):
    when: str
    then: tuple[str, ...]
    name: str = ""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    cases: Annotated[tuple[Case, ...], msgspec.Meta(min_length=1, max_length=100)]
    otherwise: tuple[str, ...] = msgspec.field(name="else", default=())


def bind(config: Config, binder: Binder) -> Act:
    conditions = [
        binder.condition(f"cases[{index}].when", case.when) for index, case in enumerate(config.cases)
    ]
    certain = False
    for index, (case, (_, always)) in enumerate(zip(config.cases, conditions, strict=True)):
        binder.decides(f"cases[{index}].then", case.then, possible=not certain and always is not False)
        certain = certain or always is True
    binder.decides("else", config.otherwise, possible=not certain)

    named = tuple(dict.fromkeys(node for case in config.cases for node in case.then))
    named = tuple(dict.fromkeys((*named, *config.otherwise)))

    def taking(value: str | int | None, chosen: tuple[str, ...]) -> Output:
        return Output(value, tuple(NodeId(node) for node in named if node not in chosen))

    # The outcomes are few and constant, so a decision costs its conditions only.
    outcomes = [
        (holds, taking(case.name or index, case.then))
        for index, (case, (holds, _)) in enumerate(zip(config.cases, conditions, strict=True))
    ]
    neither = taking("else" if config.otherwise else None, config.otherwise)

    def act(scope: Scope) -> Output:
        return next((outcome for holds, outcome in outcomes if holds(scope)), neither)

    return act


KIND = Kind(config=Config, bind=bind)
