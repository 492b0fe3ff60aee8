"""What nodes have against what a step needs: who could hold it, and what is said when nobody can."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from runtime.errors import InvalidGraph
from runtime.flow import parse_flow
from runtime.graph import compile_flow
from runtime.placement import MIB, NodeOffer, Resources, fits, is_met, missing

SMALL = NodeOffer(total={"CPU": 2, "memory": 1024 * MIB}, free={"CPU": 1, "memory": 1024 * MIB})
BIG = NodeOffer(
    total={"CPU": 8, "GPU": 2, "tape": 1},
    free={"CPU": 8, "GPU": 0.5, "tape": 1},
    labels={"ray.io/accelerator-type": "H100", "zone": "a"},
)


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        (Resources(gpus=0.5), ()),
        (Resources(cpus=8, gpus=2, custom={"tape": 1}), ()),
        (Resources(gpus=4), ("4 GPU: the largest node has 2 GPU",)),
        (Resources(custom={"robot": 1}), ("1 robot: no node has any",)),
        (Resources(memory_mb=2048), ("2,048 MiB of memory: the largest node has 1,024 MiB of memory",)),
        (
            Resources(gpus=1, memory_mb=512),
            ("1 GPU and 512 MiB of memory on one node: no node has all of it",),
        ),
        (Resources(labels={"zone": "b"}), ("a node labelled zone=b: there is none",)),
        (
            Resources(gpus=4, labels={"zone": "in(a, b)"}),
            ("4 GPU: the largest node of those labelled zone=in(a, b) has 2 GPU",),
        ),
        (Resources(gpus=1, labels={"zone": "!a"}), ("1 GPU: no node of those labelled zone=!a has any",)),
    ],
)
def test_what_is_missing_is_said_in_numbers(resources: Resources, said: tuple[str, ...]) -> None:
    assert missing(resources, [SMALL, BIG]) == said


def test_a_fall_back_that_some_node_meets_is_enough() -> None:
    wanted = {"ray.io/accelerator-type": "B200"}
    alone = Resources(gpus=1, labels=wanted)
    either = Resources(gpus=1, labels=wanted, label_fallbacks=({"ray.io/accelerator-type": "H100"},))
    assert missing(alone, [SMALL, BIG])
    assert missing(either, [SMALL, BIG]) == ()


def test_without_any_node_a_node_is_missing() -> None:
    assert missing(Resources(), []) == ("a node: none is alive",)


def test_busy_is_told_from_never() -> None:
    whole = Resources(gpus=1)
    assert missing(whole, [BIG]) == ()
    assert not fits(whole, [BIG])
    assert fits(Resources(gpus=0.5), [BIG])


@pytest.mark.parametrize(
    ("wanted", "has", "met"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("!a", "b", True),
        ("!a", None, True),
        ("a", None, False),
        ("in(a, b)", "b", True),
        ("!in(a,b)", "b", False),
        ("!in(a,b)", "c", True),
    ],
)
def test_labels_are_selected_as_ray_does(wanted: str, has: str | None, met: bool) -> None:
    assert is_met({"zone": wanted}, {} if has is None else {"zone": has}) is met


def problems_of(resources: dict[str, Any]) -> set[tuple[str, str, str]]:
    node = {"id": "a", "kind": "python", "function": "m:f", "resources": resources}
    with pytest.raises(InvalidGraph) as refused:
        compile_flow(parse_flow({"heliograph": 1, "id": "f", "nodes": [node]}))
    return set(refused.value.problems)


def test_a_flow_is_refused_for_amounts_that_ray_can_not_give() -> None:
    assert problems_of({"gpus": 1.5, "cpus": 0.00001, "custom": {"GPU": 1}}) == {
        ("a", "resources.gpus", "must be whole above 1, not 1.5"),
        ("a", "resources.cpus", "has more than four decimals, and Ray counts no finer"),
        ("a", "resources.custom.GPU", "'GPU' is no custom resource: use cpus, gpus or memory_mb"),
    }


def test_a_flow_is_refused_for_labels_that_are_none() -> None:
    fields = {field for _, field, _ in problems_of({"labels": {"zone": "a b"}})}
    assert fields == {"resources.labels[...]"}
    assert problems_of({"label_fallbacks": [{"zone": "a"}]}) == {
        ("a", "resources.label_fallbacks", "there is nothing to fall back from: labels is empty")
    }


def test_labels_and_fall_backs_reach_the_plan() -> None:
    resources = Resources(gpus=0.25, labels={"zone": "a"}, label_fallbacks=({"zone": "!b"},))
    node = {"id": "a", "kind": "python", "function": "m:f", "resources": msgspec.to_builtins(resources)}
    plan = compile_flow(parse_flow({"heliograph": 1, "id": "f", "nodes": [node]}))
    (step,) = plan.steps.values()
    assert step.resources == resources
