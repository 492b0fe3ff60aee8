"""Large values in Ray's object store, beside the blob store: who reads one next need not fetch it again.

    worker:  made or read a value --keeps its bytes--> tells so in its reply
    host:    asks for them (``hand_over``): the answer goes to Ray's store, the host keeps its reference
             (a task gives them unasked, as items after its answer)
    worker:  gets the references along with the calls that mention the values, and maps the bytes

The bytes never pass through the host, nor through an execution's mailbox. The host owns the objects, so they
outlive the worker that made them; they end with the host, or when newer ones need the room. Whatever is
missing, too late or not what its name says is read from the blob store, which has every value.

What is put there is bytes alone, and nothing else is taken: an object that Ray would unpickle is refused
unread. Ray has no public way to look at an object before it is opened, so this leans on the call behind
``ray.get``; a release where that is another reads from the blob store.
"""

import asyncio
import io
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, cast

from ray.exceptions import RayError

from actors.step_call import HeldValue
from runtime.events import BlobRef
from runtime.values import MARKER

VALUE_BYTES_MIN = 256 * 1024
"""Smaller values are read from the blob store: Ray would keep them in the host's own memory."""

GET_SECONDS_MAX = 10.0
"""How long an object may take to arrive from another node."""

ITEMS_SECONDS_MAX = 5.0
"""How long a task may take to put what it holds into Ray's object store."""

_RAW = b"RAW"
_MARKER = re.compile(rb'"%b":\{"sha256":"([0-9a-f]{64})"' % re.escape(MARKER).encode())
"""A marker as ``runtime.values`` writes it; one that was written otherwise is read from the blob store."""


class ObjectCache:
    """The host's references, ``bytes_max`` together; those used longest ago go first. On the host's loop."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._known: OrderedDict[str, tuple[int, Any]] = OrderedDict()

    def mentioned(self, calls: bytes) -> dict[str, Any]:
        """References of the values that encoded calls mention, by hash."""
        found: dict[str, Any] = {}
        if self._known:
            for name in {match[1].decode() for match in _MARKER.finditer(calls)}:
                if name in self._known:
                    self._known.move_to_end(name)
                    found[name] = self._known[name][1]
        return found

    def take(self, held: Iterable[HeldValue], worker: Any) -> None:
        """Have ``worker`` hand over what it holds."""
        for value in held:
            if value.size <= self._bytes_max:
                ask = worker.hand_over.options(concurrency_group="control")
                self._note(value, ask.remote(value.sha256))

    async def take_items(self, held: Iterable[HeldValue], items: Any) -> None:
        """Have what a task gives as its next items, which stay where they are."""
        try:
            async with asyncio.timeout(ITEMS_SECONDS_MAX):
                for value in held:
                    self._note(value, await anext(items))
        except (RayError, StopAsyncIteration, TimeoutError):
            return  # the process died, or is slow: the blob store has them

    def _note(self, value: HeldValue, ref: Any) -> None:
        self._forget(value.sha256)
        self._known[value.sha256] = (value.size, ref)
        self._bytes += value.size
        while self._bytes > self._bytes_max:
            self._forget(next(iter(self._known)))

    def clear(self) -> None:
        """Let go of every object."""
        self._known.clear()
        self._bytes = 0

    def _forget(self, name: str) -> None:
        size, _ = self._known.pop(name, (0, None))
        self._bytes -= size


class HeldValues:
    """The worker's side, a ``large_values.ValueCache``.

    Keeps what its functions made or read until it is handed over or newer values need the room;
    ``bytes_max`` 0: nothing.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._untold: list[HeldValue] = []
        self._objects: Mapping[str, Any] = {}

    def begin(self, objects: Mapping[str, Any]) -> None:
        """A batch of calls: the host's references of the values they mention."""
        self._objects = objects

    def end(self) -> tuple[HeldValue, ...]:
        """The batch is done: what is held since the last one, for the host to ask for."""
        self._objects = {}
        with self._lock:
            untold = tuple(value for value in self._untold if value.sha256 in self._held)
            self._untold = []
        return untold

    def hand_over(self, name: str) -> bytes:
        """The bytes, which are held no longer; empty when they were given up."""
        with self._lock:
            return self._held.pop(name, b"")

    def find(self, ref: BlobRef) -> memoryview | None:
        with self._lock:
            held = self._held.get(ref.sha256)
        if held is not None:
            return memoryview(held)
        reference = self._objects.get(ref.sha256)
        data = None if reference is None else _raw_bytes(reference)
        if data is None or data.nbytes != ref.size or sha256(data).hexdigest() != ref.sha256:
            return None
        return data

    def copy(self) -> "_Copy | None":
        return _Copy(self) if self._bytes_max else None

    def keep(self, ref: BlobRef, data: bytes) -> None:
        if not VALUE_BYTES_MIN <= len(data) <= self._bytes_max:
            return
        with self._lock:
            self._held.pop(ref.sha256, None)
            self._held[ref.sha256] = data
            self._untold.append(HeldValue(sha256=ref.sha256, size=len(data)))
            while sum(map(len, self._held.values())) > self._bytes_max:
                self._held.popitem(last=False)

    @property
    def bytes_max(self) -> int:
        return self._bytes_max


class _Copy:
    """A value while it is written or read; given up at the bound."""

    def __init__(self, values: HeldValues) -> None:
        self._values = values
        self._data: io.BytesIO | None = io.BytesIO()

    def write(self, data: bytes, /) -> None:
        if self._data is not None:
            self._data.write(data)
            if self._data.tell() > self._values.bytes_max:
                self._data = None

    def keep(self, ref: BlobRef, /) -> None:
        if self._data is not None:
            self._values.keep(ref, self._data.getvalue())
            self._data = None


def _raw_bytes(reference: Any) -> memoryview | None:
    """The bytes of an object, where they lie; None when it is gone, late, or anything but bytes."""
    try:
        from ray._private.worker import global_worker

        worker = cast("Any", global_worker)
        ((data, metadata, *_),) = worker.core_worker.get_objects([reference], int(GET_SECONDS_MAX * 1_000))
    except (RayError, ImportError, AttributeError, TypeError, ValueError):
        return None
    return None if data is None or metadata != _RAW else memoryview(data).toreadonly()
