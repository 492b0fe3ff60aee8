"""Order in a graph of names: a stable topological order, or its cycles."""

import heapq
from collections.abc import Mapping, Sequence


def in_order(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Every name after those it needs, else as given; names on or behind a cycle are left out."""
    place = {name: index for index, name in enumerate(needs)}
    names = list(needs)
    open_needs = {name: len(set(needs[name])) for name in names}
    dependents: dict[str, list[str]] = {name: [] for name in names}
    for name in names:
        for need in dict.fromkeys(needs[name]):
            dependents[need].append(name)
    due = [place[name] for name in names if not open_needs[name]]
    ordered: list[str] = []
    while due:
        name = names[heapq.heappop(due)]
        ordered.append(name)
        for dependent in dependents[name]:
            open_needs[dependent] -= 1
            if not open_needs[dependent]:
                heapq.heappush(due, place[dependent])
    return ordered


def cycles(needs: Mapping[str, Sequence[str]], *, at_most: int) -> list[list[str]]:
    """Cycles that share no name, each in running order; all of them if there are no more than ``at_most``."""
    left = {name: list(dict.fromkeys(needs[name])) for name in needs}
    found: list[list[str]] = []
    while len(found) < at_most:
        # Only names before a cycle can be ordered; what stays either lies on a cycle or behind one.
        ordered = set(in_order(left))
        left = {
            name: [need for need in left[name] if need not in ordered] for name in left if name not in ordered
        }
        if not left:
            break
        cycle = _one_cycle(left)
        found.append(cycle)
        gone = set(cycle)
        left = {name: [need for need in left[name] if need not in gone] for name in left if name not in gone}
    return found


def _one_cycle(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Every name has a need here, so walking from need to need must come back."""
    path: dict[str, int] = {}
    name = next(iter(needs))
    while name not in path:
        path[name] = len(path)
        name = needs[name][0]
    return list(path)[path[name] :][::-1]
