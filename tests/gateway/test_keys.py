"""API keys: what a look-up remembers, and for how long."""

import asyncio
import threading
from typing import Any

import pytest

from gateway.envelopes import Problem
from gateway.keys import FIRST_KEY, Keys
from projections.store import ReadStore
from runtime.administration import Cause, fold_key, revoke_key
from runtime.event_log import Append, Chain, EventLog, store_env
from runtime.ids import Micros, key_stream


class HeldStore:
    """A read store whose answers a test holds back after they were read."""

    def __init__(self, store: ReadStore) -> None:
        self._store = store
        self.read = threading.Event()
        self.release = threading.Event()
        self.release.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def query(self, *arguments: Any) -> Any:
        found = self._store.query(*arguments)
        self.read.set()
        self.release.wait(10)
        return found


def test_a_key_revoked_while_it_is_looked_up_is_not_remembered_as_good() -> None:
    log = EventLog.open(store_env("memory://"))
    store = HeldStore(ReadStore.over(log))
    keys = Keys(log, store)  # pyright: ignore[reportArgumentType] - a read store in all but its class
    made = keys.ensure_first(Micros(1))
    assert made is not None
    headers = {b"x-api-key": made.secret.encode()}

    async def story() -> None:
        store.read.clear()
        store.release.clear()
        looking = asyncio.create_task(keys.authenticate(headers))
        assert await asyncio.to_thread(store.read.wait, 10)
        _revoke(log)
        keys.forget()
        store.release.set()
        await looking  # it began before the revocation, and may pass
        with pytest.raises(Problem):
            await keys.authenticate(headers)

    asyncio.run(story())
    log.close()


def _revoke(log: EventLog) -> None:
    stream = key_stream(FIRST_KEY)
    recorded = log.read(stream)
    history = [one.event() for one in recorded]
    events = revoke_key(fold_key(history), Cause(at=Micros(2)))
    state = fold_key([*history, *events])
    [outcome] = log.append([Append(stream, events, state, Chain(recorded[-1].hash()))])
    assert isinstance(outcome, tuple)
