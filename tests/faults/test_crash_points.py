"""The promises to clients hold, at every point where a process can die between two effects.

One process holds gateway and host. It ends by itself, without any clean-up, at the point a test orders, is
started again, and clients go on as if nothing had happened. Afterwards nothing may be lost, doubled or
contradicted: the client's journal, the log and the read models are held against each other.
"""

from __future__ import annotations

from itertools import count

import pytest

from tests.contracts.ability.wire import Receiver
from tests.faults.crash_points import EXIT_CODE
from tests.faults.customers import Customer, serve_all
from tests.faults.flows import output_of
from tests.faults.journal import Journal, findings
from tests.faults.server import FaultyServer, Order

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.acceptance]

_round = count(1)


@pytest.fixture(scope="module")
def journal() -> Journal:
    """Of all rounds, because the log is one."""
    return Journal()


def play(server: FaultyServer, journal: Journal, receiver: Receiver, orders: list[Order]) -> None:
    """One round: four clients, a death at each order, and the checker."""
    number = next(_round)
    before = len(server.points.fired())
    exits = len(server.exits)
    names = [f"r{number}-{letter}" for letter in "abcd"]
    customers = [
        Customer(server, journal, names[0], "status"),
        Customer(server, journal, names[1], "contract"),
        Customer(server, journal, names[2], "log", receiver.url),
        Customer(server, journal, names[3], "status", receiver.url),
    ]
    with server.kept(orders):
        serve_all(customers)
        points = [point for point, _ in orders]
        server.until(lambda: len(server.exits) - exits >= len(orders), f"{points} were not all reached")
        server.settle(len(journal.with_callback))
    assert server.points.fired()[before:] == points
    assert server.exits[exits:] == [EXIT_CODE] * len(orders)
    assert {name: journal.outputs[name] for name in names} == {name: output_of(name) for name in names}
    with server.log() as log:
        assert findings(journal, log, receiver.wait_for(receiver.count)) == []


def deaths(*orders: tuple[str, int]) -> object:
    """One round's orders as a parameter named after them."""
    return pytest.param(list(orders), id=", ".join(f"{point}:{occurrence}" for point, occurrence in orders))


@pytest.mark.parametrize(
    "orders",
    [
        deaths(("append.execution.before", 1), ("append.execution.before", 5)),
        deaths(("append.execution.within", 2), ("append.execution.within", 8)),
        deaths(("append.execution.after", 1), ("append.execution.after", 6)),
    ],
)
def test_a_death_around_an_append_loses_nothing(
    local_server: FaultyServer, journal: Journal, receiver: Receiver, orders: list[Order]
) -> None:
    play(local_server, journal, receiver, orders)


@pytest.mark.parametrize(
    "orders",
    [
        deaths(("idempotency.before", 1), ("idempotency.after", 1)),
        deaths(("idempotency.before", 6), ("idempotency.after", 2)),
        deaths(("ack.before", 1), ("ack.after", 2)),
        deaths(("piece.before", 1), ("piece.after", 4)),
    ],
)
def test_a_death_around_an_answer_leaves_its_client_free_to_ask_again(
    local_server: FaultyServer, journal: Journal, receiver: Receiver, orders: list[Order]
) -> None:
    play(local_server, journal, receiver, orders)


@pytest.mark.parametrize(
    "orders",
    [
        deaths(("append.callback.before", 1), ("append.callback.within", 1), ("append.callback.after", 1)),
        deaths(("tracking.before", 1), ("tracking.after", 1)),
        deaths(("claim.before", 1), ("claim.after", 1)),
        deaths(("callback.before", 1), ("callback.after", 1)),
        deaths(("append.callback.before", 2), ("append.callback.after", 1)),
    ],
)
def test_a_death_around_a_callback_delivers_it_still(
    local_server: FaultyServer, journal: Journal, receiver: Receiver, orders: list[Order]
) -> None:
    play(local_server, journal, receiver, orders)


@pytest.mark.parametrize(
    "orders",
    [
        deaths(("projection.before", 1), ("projection.after", 1)),
    ],
)
def test_a_death_around_a_projection_commit_leaves_its_rows_as_the_log_says(
    local_server: FaultyServer, journal: Journal, receiver: Receiver, orders: list[Order]
) -> None:
    play(local_server, journal, receiver, orders)


@pytest.mark.parametrize(
    "orders",
    [
        deaths(
            ("append.execution.after", 7),
            ("append.execution.before", 1),
            ("append.execution.within", 1),
            ("append.execution.after", 1),
        ),
    ],
)
def test_deaths_while_recovering_from_a_death_lose_nothing(
    local_server: FaultyServer, journal: Journal, receiver: Receiver, orders: list[Order]
) -> None:
    play(local_server, journal, receiver, orders)
