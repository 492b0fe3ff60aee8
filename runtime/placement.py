"""What a step needs of a node, and what nodes have: the rules of both, and which needs nobody can meet. Pure.

Labels are selected as Ray does: ``value`` (is), ``!value`` (is not), ``in(a, b)``, ``!in(a, b)``. A node
without the label is none of the values. The first of ``labels`` and ``label_fallbacks`` that some node
meets is the one that counts.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import msgspec

MIB = 1024 * 1024
AMOUNT_MAX = 1_000_000
LABELS_MAX = 32
FALLBACKS_MAX = 8
MISSING_MAX = 10
"""Sentences about what is missing; more say nothing new."""

PARTS = 10_000
"""The smallest amount of a resource is one of so many parts: Ray counts no finer."""

RESERVED = ("CPU", "GPU", "memory", "object_store_memory")
"""Resources with fields of their own, or none of ours to give away."""

WHOLE_ABOVE_ONE = ("GPU", "TPU", "HPU", "NPU", "neuron_cores")
"""Devices: a step may have a part of one, or several whole ones."""

_NAME = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
LABEL_KEY = rf"^(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]{{0,251}}[a-zA-Z0-9])?/)?{_NAME}$"
LABEL_VALUE = rf"^!?(?:{_NAME}|in\({_NAME}(?:, ?{_NAME})*\))$"
CUSTOM_NAME = r"^[a-zA-Z0-9][a-zA-Z0-9_.:-]{0,99}$"

Amount = Annotated[float, msgspec.Meta(ge=0, le=AMOUNT_MAX)]
Selector = Annotated[
    Mapping[
        Annotated[str, msgspec.Meta(pattern=LABEL_KEY)],
        Annotated[str, msgspec.Meta(pattern=LABEL_VALUE, max_length=1_000)],
    ],
    msgspec.Meta(max_length=LABELS_MAX),
]


class Resources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What Ray must find room for. ``memory_mb`` in MiB. Declared resources make a step a Ray task.

    ``labels``: what the node must be; ``label_fallbacks``: what will do instead, the best first.
    """

    cpus: Amount = 0
    gpus: Amount = 0
    memory_mb: Annotated[int, msgspec.Meta(ge=0, le=AMOUNT_MAX * 1_000)] = 0
    custom: Annotated[
        Mapping[Annotated[str, msgspec.Meta(pattern=CUSTOM_NAME)], Amount],
        msgspec.Meta(max_length=LABELS_MAX),
    ] = {}
    labels: Selector = {}
    label_fallbacks: Annotated[tuple[Selector, ...], msgspec.Meta(max_length=FALLBACKS_MAX)] = ()

    @property
    def amounts(self) -> dict[str, float]:
        """By Ray's name of the resource; memory in bytes; those of zero left out."""
        all_of_them = {
            "CPU": self.cpus,
            "GPU": self.gpus,
            "memory": float(self.memory_mb * MIB),
            **self.custom,
        }
        return {name: amount for name, amount in all_of_them.items() if amount}

    @property
    def selectors(self) -> tuple[Mapping[str, str], ...]:
        """What a node may be, the best first."""
        return (self.labels, *self.label_fallbacks)


class NodeOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A living node: ``total`` by resource (memory in bytes), ``free`` of it now, and its labels."""

    total: Mapping[str, float]
    free: Mapping[str, float] = {}
    labels: Mapping[str, str] = {}


def problems(resources: Resources) -> list[tuple[str, str]]:
    """The rules that types can't say and ``resources`` breaks: field and rule."""
    found: list[tuple[str, str]] = []
    fields = {"cpus": ("CPU", resources.cpus), "gpus": ("GPU", resources.gpus)}
    fields |= {f"custom.{name}": (name, amount) for name, amount in resources.custom.items()}
    for field, (name, amount) in fields.items():
        if field.startswith("custom.") and name in RESERVED:
            found.append((field, f"'{name}' is no custom resource: use cpus, gpus or memory_mb"))
        if name in WHOLE_ABOVE_ONE and amount > 1 and amount != int(amount):
            found.append((field, f"must be whole above 1, not {amount:g}"))
        if abs(amount * PARTS - round(amount * PARTS)) > 1e-6:
            found.append((field, "has more than four decimals, and Ray counts no finer"))
    if resources.label_fallbacks and not resources.labels:
        found.append(("label_fallbacks", "there is nothing to fall back from: labels is empty"))
    return found


def is_met(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels is what ``selector`` asks for."""
    for key, wanted in selector.items():
        values = re.split(r", ?", wanted.removeprefix("!").removeprefix("in(").removesuffix(")"))
        if (labels.get(key) in values) == wanted.startswith("!"):
            return False
    return True


def fits(resources: Resources, nodes: Iterable[NodeOffer]) -> bool:
    """Whether one of the nodes has room for them now."""
    amounts = resources.amounts.items()
    return any(
        all(node.free.get(name, 0) >= amount for name, amount in amounts)
        and any(is_met(selector, node.labels) for selector in resources.selectors)
        for node in nodes
    )


def missing(resources: Resources, nodes: Sequence[NodeOffer]) -> tuple[str, ...]:
    """Why none of the nodes could ever hold them, in sentences; empty when one could, busy or not."""
    if not nodes:
        return ("a node: none is alive",)
    amounts = resources.amounts
    reasons: dict[str, None] = {}
    for selector in resources.selectors:
        matching = [node for node in nodes if is_met(selector, node.labels)]
        if any(_holds(amounts, node) for node in matching):
            return ()
        if not matching:
            reasons[_labels_missing(selector, nodes)] = None
        else:
            reasons |= dict.fromkeys(_amounts_missing(amounts, matching, selector))
    return tuple(reasons)[:MISSING_MAX]


def _holds(amounts: Mapping[str, float], node: NodeOffer) -> bool:
    return all(node.total.get(name, 0) >= amount for name, amount in amounts.items())


def _labels_missing(selector: Mapping[str, str], nodes: Sequence[NodeOffer]) -> str:
    alone = [
        f"{key}={wanted}"
        for key, wanted in sorted(selector.items())
        if not any(is_met({key: wanted}, node.labels) for node in nodes)
    ]
    if alone:
        return f"a node labelled {' and '.join(alone)}: there is none"
    together = " and ".join(f"{key}={wanted}" for key, wanted in sorted(selector.items()))
    return f"a node labelled {together}: none has all of them"


def _amounts_missing(
    amounts: Mapping[str, float], nodes: Sequence[NodeOffer], selector: Mapping[str, str]
) -> list[str]:
    among = (
        f" of those labelled {', '.join(f'{k}={v}' for k, v in sorted(selector.items()))}" if selector else ""
    )
    found: list[str] = []
    for name, amount in sorted(amounts.items()):
        largest = max(node.total.get(name, 0) for node in nodes)
        if largest < amount:
            has = (
                f"the largest node{among} has {_shown(name, largest)}"
                if largest
                else f"no node{among} has any"
            )
            found.append(f"{_shown(name, amount)}: {has}")
    if not found:
        whole = " and ".join(_shown(name, amount) for name, amount in sorted(amounts.items()))
        found.append(f"{whole} on one node: no node{among} has all of it")
    return found


def _shown(name: str, amount: float) -> str:
    return f"{amount / MIB:,.0f} MiB of memory" if name == "memory" else f"{amount:g} {name}"
