"""The in-memory twin: the SQLite store in memory mode, so every statement and constraint is the real one.

A second implementation of the recorder over dictionaries would need its own query language for the read
models, and would prove nothing about the one in use. What differs is what has to: nothing outlives the
process, and writing excludes reading (SQLite's shared cache locks whole tables).
"""

import threading
from weakref import WeakValueDictionary

from projections.stores import sqlite as file_store

_stores: WeakValueDictionary[str, file_store.Datastore] = WeakValueDictionary()
# Reentrant: making a store may set off the collector, which closes a forgotten one in this very thread.
_opening = threading.RLock()


class Datastore(file_store.Datastore):
    """Lives as long as somebody in this process has it open."""

    def __init__(self, db_name: str, *, lock_timeout: int | None = None) -> None:
        super().__init__(db_name, lock_timeout=lock_timeout)
        self.openers = 0

    def close(self) -> None:
        """The last opener's close drops the content."""
        with _opening:
            self.openers -= 1
            if self.openers <= 0:
                super().close()


class Factory(file_store.Factory):
    def _datastore(self) -> Datastore:
        """The store of this name, shared: two pools over one shared cache would block each other."""
        name = self.env.get(self.SQLITE_DBNAME) or ""
        with _opening:
            found = _stores.get(name)
            if not isinstance(found, Datastore) or found.pool.closed:
                found = Datastore(name)
                _stores[name] = found
            found.openers += 1
            return found
