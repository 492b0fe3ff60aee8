"""An agent's conversation survives every death, and no answered call is made a second time.

The model server counts: it is another process's business what the server under test remembers.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import count

import pytest

from tests.faults import victims
from tests.faults.agent_talks import TALK, TOOLS, begin, broken_promises, script, steps_of, until_ended
from tests.faults.crash_points import EXIT_CODE
from tests.faults.server import FaultyServer
from tests.model_server import ModelServer
from tests.model_server.fixture import model_server, running_model_server
from tests.sandbox import Sandbox

__all__ = ["model_server", "running_model_server"]

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.acceptance]

APPENDS_MAX = 40
"""More than one conversation makes."""

APPENDS_LEAST = 10
"""Beginning and end of five steps: fewer would mean that the orders were not reached."""

_number = count(1)


@contextmanager
def serving(sandbox: Sandbox, models: ModelServer, name: str, *, local: bool) -> Generator[FaultyServer]:
    server = FaultyServer(
        sandbox.root / name,
        local=local,
        impatient=not local,
        shutdown_seconds="1",
        hosts="1",
        model="scripted",
        model_url=models.url,
        model_key="sk-test",
    )
    server.start()
    server.publish(TALK)
    try:
        yield server
    finally:
        server.close()
        if not local:
            victims.kill_sessions(server.sessions)
        shutil.rmtree(server.folder)


@pytest.fixture(scope="module")
def local(sandbox: Sandbox, running_model_server: ModelServer) -> Iterator[FaultyServer]:
    """Gateway and host in one process that starts within a second or two."""
    with serving(sandbox, running_model_server, "talks", local=True) as server:
        yield server


@pytest.fixture(scope="module")
def on_ray(sandbox: Sandbox, running_model_server: ModelServer) -> Iterator[FaultyServer]:
    with serving(sandbox, running_model_server, "talks-ray", local=False) as server:
        yield server


@pytest.mark.timeout(600)
def test_a_death_at_any_append_of_a_conversation_pays_for_no_recorded_answer_again(
    local: FaultyServer, model_server: ModelServer
) -> None:
    """By turns before and after it: between two appends both are the same to the log."""
    model_server.play(script())
    deaths = 0
    for occurrence in range(1, APPENDS_MAX):
        point = f"append.execution.{('after', 'before')[occurrence % 2]}"
        fired = len(local.points.fired())
        with local.kept([(point, occurrence)]):
            talk = begin(local, f"talk-{next(_number)}")
            assert broken_promises(local, model_server, talk) == [], f"death at {point}, {occurrence}"
        if len(local.points.fired()) == fired:
            # The conversation made fewer appends than that: all of them have had their death.
            local.points.withdraw()
            break
        deaths += 1
    assert deaths >= APPENDS_LEAST
    assert set(local.exits) == {EXIT_CODE}


@pytest.mark.parametrize(("turn", "hang_after"), [(0, 1), (1, 0), (2, 1)])
def test_a_death_inside_a_model_call_asks_only_that_call_again(
    local: FaultyServer, model_server: ModelServer, turn: int, hang_after: int
) -> None:
    model_server.play(script(turn, hang_after=hang_after))
    with local.kept():
        talk = begin(local, f"talk-{next(_number)}")
        [hanging] = model_server.journal.until_hanging("gate")
        os.kill(local.process.pid, signal.SIGKILL)
        assert broken_promises(local, model_server, talk) == []
    calls = [each for each in model_server.journal.exchanges if each.turn == turn]
    assert [each.outcome for each in calls] == ["dropped", "answered"]
    assert {each.idempotency_key for each in calls} == {hanging.idempotency_key}
    assert steps_of(local, talk).repeated == {f"model-{turn + 1}": 1}
    assert len(model_server.journal.exchanges) == 4


def test_a_death_inside_a_tool_call_calls_it_again_with_the_same_key(
    local: FaultyServer, model_server: ModelServer
) -> None:
    model_server.play(script(tool=TOOLS[1]))
    with local.kept():
        talk = begin(local, f"talk-{next(_number)}")
        local.until(talk.notes.exists, "the tool was not called")
        os.kill(local.process.pid, signal.SIGKILL)
        local.until(lambda: len(talk.notes.read_text().splitlines()) == 2, "the tool was not called again")
        talk.notes.with_name("go").touch()
        assert broken_promises(local, model_server, talk) == []
    keys = [line.split(" ")[0] for line in talk.notes.read_text().splitlines()]
    assert keys[0] == keys[1] != keys[2]
    assert len(model_server.journal.exchanges) == 3


@pytest.mark.timeout(300)
def test_deaths_one_after_the_other_in_every_call_of_a_conversation_lose_nothing(
    local: FaultyServer, model_server: ModelServer
) -> None:
    model_server.play(script())
    orders = [("append.execution.after", number) for number in (3, 4, 4, 4)]
    with local.kept(orders):
        talk = begin(local, f"talk-{next(_number)}")
        assert broken_promises(local, model_server, talk) == []
    local.points.withdraw()


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.parametrize("turn", [0, 2])
def test_a_host_killed_inside_a_model_call_is_followed_by_one_that_goes_on(
    on_ray: FaultyServer, model_server: ModelServer, turn: int
) -> None:
    model_server.play(script(turn, hang_after=1))
    talk = begin(on_ray, f"talk-{next(_number)}")
    model_server.journal.until_hanging("gate")
    victims.kill(victims.wait_for(on_ray, victims.HOST))
    assert broken_promises(on_ray, model_server, talk) == []
    assert len(model_server.journal.exchanges) == 4


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_everything_killed_inside_a_model_call_goes_on_after_the_next_start(
    on_ray: FaultyServer, model_server: ModelServer
) -> None:
    model_server.play(script(1))
    talk = begin(on_ray, f"talk-{next(_number)}")
    model_server.journal.until_hanging("gate")
    on_ray.kill()
    on_ray.start()
    assert until_ended(on_ray, talk)["status"] == "COMPLETED"
    assert broken_promises(on_ray, model_server, talk) == []
    assert len(model_server.journal.exchanges) == 4
