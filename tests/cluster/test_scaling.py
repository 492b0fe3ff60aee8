"""How many hosts, on which nodes, and who takes over: decisions without a cluster, a clock or Ray."""

from __future__ import annotations

from collections import Counter

from actors.adoption import RESTART_SECONDS, SILENT_SECONDS, Sight, is_lost
from actors.cluster_nodes import PROBE_SECONDS
from actors.host_link import SILENCE_GRACE_SECONDS, SILENCE_SECONDS
from actors.scaling import (
    IN_SECONDS,
    OUT_SECONDS,
    Bounds,
    Decision,
    Load,
    Trend,
    decide,
    heir_of,
    new_names,
    nodes_for,
)
from actors.supervision import INSPECT_SECONDS
from runtime.ids import HostName

BOUNDS = Bounds(1, 4)


def hosts(count: int, **load: float) -> list[Load]:
    fields = {"places": 10, **load}
    return [
        Load(
            name=HostName(f"host-{number}"),
            node=f"n{number % 2}",
            busy=fields.get("busy", 0.0),
            queued=int(fields.get("queued", 0)),
            admitted=int(fields.get("admitted", 0)),
            places=int(fields["places"]),
        )
        for number in range(count)
    ]


def steady(loads: list[Load], seconds: float, bounds: Bounds = BOUNDS) -> list[Decision]:
    """What is decided, second by second, while the load stays as it is."""
    trend, decisions = Trend(), list[Decision]()
    for second in range(int(seconds) + 1):
        decisions.append(decide(loads, bounds, trend, 100.0 + second))
        trend = decisions[-1].trend
    return decisions


def test_missing_hosts_are_made_at_once() -> None:
    assert decide([], Bounds(2, 4), Trend(), 0).add == 2
    assert decide(hosts(1), Bounds(3, 4), Trend(), 0).add == 2


def test_a_load_that_lasts_adds_one_host_and_a_moment_of_it_none() -> None:
    for load in ({"queued": 1}, {"busy": 0.9}):
        added = [decision.add for decision in steady(hosts(2, **load), OUT_SECONDS)]
        assert added == [0] * int(OUT_SECONDS) + [1]
    trend = decide(hosts(2, busy=0.9), BOUNDS, Trend(), 0).trend
    trend = decide(hosts(2, busy=0.5), BOUNDS, trend, OUT_SECONDS / 2).trend
    assert decide(hosts(2, busy=0.9), BOUNDS, trend, OUT_SECONDS).add == 0


def test_a_new_host_is_given_time_before_the_next() -> None:
    late = steady(hosts(2, busy=0.9), OUT_SECONDS)[-1]
    assert decide(hosts(3, busy=0.9), BOUNDS, late.trend, 200.0).add == 0


def test_no_load_ends_hosts_one_by_one_down_to_the_least() -> None:
    decisions = steady(hosts(3), IN_SECONDS)
    assert [decision.drain for decision in decisions[:-1]] == [None] * int(IN_SECONDS)
    assert decisions[-1].drain == "host-2"  # from the node that has two
    assert all(decision.drain is None for decision in steady(hosts(1), 2 * IN_SECONDS))
    assert all(decision.drain is None for decision in steady(hosts(2), 2 * IN_SECONDS, Bounds(2, 4)))


def test_the_bounds_hold_whatever_the_load() -> None:
    assert all(decision.add == 0 for decision in steady(hosts(4, busy=1.0, queued=9), 3 * OUT_SECONDS))
    assert decide(hosts(5, busy=1.0), BOUNDS, Trend(), 0).drain is not None


def test_no_load_calls_for_both_one_more_and_one_fewer() -> None:
    """Whatever ends a host would not, on those that are left, call for a new one."""
    for count in (2, 3, 4):
        for percent in range(0, 101, 5):
            for admitted in range(11):
                before = hosts(count, busy=percent / 100, admitted=admitted)
                if steady(before, IN_SECONDS)[-1].drain is None:
                    continue
                share = count / (count - 1)
                after = hosts(count - 1, busy=percent / 100 * share, admitted=int(admitted * share))
                assert all(decision.add == 0 for decision in steady(after, OUT_SECONDS))
                assert admitted * share <= 10


def test_hosts_that_are_full_but_keep_up_stay() -> None:
    decisions = steady(hosts(2, admitted=9, busy=0.1), 2 * IN_SECONDS)
    assert all(decision.add == 0 and decision.drain is None for decision in decisions)


def test_new_hosts_take_the_first_free_names() -> None:
    assert new_names([], 2) == ["host-0", "host-1"]
    assert new_names(["host-0", "host-2", "execution-1"], 3) == ["host-1", "host-3", "host-4"]


def test_hosts_spread_by_what_nodes_have_and_leave_a_node_without_cpus_alone() -> None:
    cpus = {"head": 0.0, "big": 4.0, "small": 2.0}
    placed: list[str] = []
    for _ in range(6):
        placed.append(nodes_for(cpus, placed)[0])
    assert Counter(placed) == {"big": 4, "small": 2}
    assert nodes_for(cpus, ["big"]) == ["small", "big"]
    assert nodes_for({"head": 0.0}, []) == ["head"]
    assert nodes_for({}, []) == []


def test_everybody_chooses_the_same_heir_and_owners_have_different_ones() -> None:
    living = [HostName(f"host-{number}") for number in range(4)]
    owners = [f"host-{number}" for number in range(10, 40)]
    chosen = [heir_of(owner, living) for owner in owners]
    assert chosen == [heir_of(owner, reversed(living)) for owner in owners]
    assert set(chosen) == set(living)
    left = living[:3]
    assert all(heir_of(o, left) == heir for o, heir in zip(owners, chosen, strict=True) if heir in left)
    assert heir_of("host-9", []) is None


def test_a_host_is_lost_with_its_node_or_its_silence_but_not_while_ray_starts_it_again() -> None:
    assert is_lost(None)
    assert not is_lost(Sight())
    assert is_lost(Sight(trouble="broken", node_is_gone=True))
    assert is_lost(Sight(trouble="silent", seconds=SILENT_SECONDS))
    assert not is_lost(Sight(trouble="silent", seconds=SILENT_SECONDS - 0.1))
    assert not is_lost(Sight(trouble="silent", seconds=SILENT_SECONDS, is_new=True))
    assert not is_lost(Sight(trouble="broken", seconds=SILENT_SECONDS))
    assert is_lost(Sight(trouble="broken", seconds=RESTART_SECONDS))
    assert not is_lost(Sight(trouble="broken", seconds=RESTART_SECONDS, is_dedicated=True))


def test_a_host_that_falls_silent_is_lost_within_ten_seconds() -> None:
    inspection = INSPECT_SECONDS + PROBE_SECONDS
    assert SILENCE_SECONDS + SILENCE_GRACE_SECONDS + SILENT_SECONDS + inspection < 10.0
