"""What a flow says about its queue, and what the store knows of one. Data only.

A queue is named by tenant, flow and key. ``concurrency`` executions of it may be open at a time, each in a
slot of its own, which it holds from its start to its end, also while it waits or is paused; ``rate`` bounds
how many start in any window of that length.
"""

from typing import Annotated, Literal, NamedTuple, Protocol

import msgspec

from runtime.events import Json
from runtime.ids import SECOND, FlowId, Micros, TenantId

CONCURRENCY_MAX = 10_000
RATE_MAX = 10_000
"""Starts of one window: as many times are kept for each queue in use."""

PRIORITY_MAX = 100
KEY_CHARS_MAX = 200

WHOLE_FLOW = "*"
"""The key of a queue that has no template for one: all of the flow's executions share it."""

_UNITS = {"second": 1, "minute": 60, "hour": 3_600, "day": 86_400}

Priority = Annotated[int, msgspec.Meta(ge=-PRIORITY_MAX, le=PRIORITY_MAX)]


class QueueFields(msgspec.Struct, frozen=True, kw_only=True):
    """As a definition has it. ``key`` and a text in ``priority`` are templates over ``inputs``.

    A larger ``priority`` starts first; 0 is the usual one.
    """

    key: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    concurrency: Annotated[int, msgspec.Meta(ge=1, le=CONCURRENCY_MAX)] | None = None
    rate: Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]*/(second|minute|hour|day)$")] | None = None
    priority: Priority | str = 0


class Rate(msgspec.Struct, frozen=True):
    """``amount`` starts in any ``period`` (microseconds)."""

    amount: int
    period: Micros

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """``100/minute``, as the pattern of ``QueueFields.rate`` allows it."""
        amount, _, unit = text.partition("/")
        return cls(int(amount), Micros(_UNITS[unit] * SECOND))

    def __str__(self) -> str:
        unit = next(name for name, seconds in _UNITS.items() if seconds * SECOND == self.period)
        return f"{self.amount}/{unit}"


class _Text(Protocol):
    def __call__(self, scope: dict[str, Json], /) -> str: ...


class QueueRule(msgspec.Struct, frozen=True, kw_only=True):
    """A plan's queue. Without ``concurrency`` and ``rate`` nothing is limited, and executions have no key."""

    key: _Text | None = None
    concurrency: int | None = None
    rate: Rate | None = None
    priority: int = 0
    priority_text: _Text | None = None

    @property
    def is_keyed(self) -> bool:
        return self.concurrency is not None or self.rate is not None


class QueueId(NamedTuple):
    tenant: TenantId
    flow_id: FlowId
    key: str


class Holder(NamedTuple):
    """An open execution that has begun; ``slot`` is None when it began without a bound on concurrency."""

    execution_id: str
    slot: int | None


class QueueUse(NamedTuple):
    """What the store says of one queue. ``starts``: the latest ones asked for, in order of time.

    ``waiting``: the first few in order of their turn that wait with other hosts than the one that asks.
    """

    holders: tuple[Holder, ...] = ()
    starts: tuple[tuple[str, Micros], ...] = ()
    waiting: tuple["Turn", ...] = ()


class Turn(NamedTuple):
    """Sorts as executions start: children, whose parents hold a place already, before others."""

    begins: Literal[0, 1]
    """0 for a child."""
    rank: int
    """The priority, negated."""
    created_at: int
    execution_id: str
