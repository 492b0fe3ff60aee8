"""What travels between a gateway and a host, as msgpack bytes in batches.

One Ray call costs about a millisecond of CPU, so a call carries everything that waited while the one
before was in flight. Refusals are reply values, never exceptions: they cost nothing and can't stumble
over pickling.
"""

from typing import Any, Literal

import msgspec

from runtime import commands
from runtime.errors import (
    AlreadyExists,
    Conflict,
    DomainError,
    InvalidInput,
    InvalidTransition,
    NotFound,
    Overloaded,
    Unavailable,
)
from runtime.event_log import Recorded

ExternalCommand = commands.RequestCancel | commands.Signal | commands.Pause | commands.Resume
"""What may be sent to a running execution from outside."""


class Start(msgspec.Struct, frozen=True, tag=True):
    """Answered once ``Queued`` is durable. An id that exists already is answered like a new one."""

    command: commands.StartExecution


class Send(msgspec.Struct, frozen=True, tag=True):
    execution_id: str
    command: ExternalCommand


class Watch(msgspec.Struct, frozen=True, tag=True):
    """Put these executions on the feed of ``gateway_id`` until they end or ``Unwatch``."""

    gateway_id: str
    execution_ids: tuple[str, ...]


class Unwatch(msgspec.Struct, frozen=True, tag=True):
    gateway_id: str
    execution_ids: tuple[str, ...]


class Adopt(msgspec.Struct, frozen=True, tag=True):
    """Take over every open execution of ``owner``, a host that does not come back or is leaving.

    ``held``: what a leaving host still works on; it keeps these for now.
    """

    owner: str
    held: tuple[str, ...] = ()


Message = Start | Send | Watch | Unwatch | Adopt


class Reply(msgspec.Struct, frozen=True, tag=True):
    """Done and durable. ``previous_status`` is the status before the command."""

    previous_status: str = ""
    version: int = 0


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """``branch`` names the class of the error tree; ``args`` rebuild it."""

    branch: str
    args: tuple[Any, ...] = ()


Answer = Reply | Refusal


class Delta(msgspec.Struct, frozen=True, tag=True):
    """A piece of text a step is producing: ephemeral, never in the log.

    ``offset``: characters of the step's answer before it. What a new reader gets first may hold everything so
    far; a retried step begins at 0 again.
    """

    execution_id: str
    node_id: str
    step: str
    offset: int
    text: str


class FeedBatch(msgspec.Struct, frozen=True):
    """What happened to watched executions since the batch before, in order.

    ``lagged``: something was dropped at the bound; readers fall back to the log. ``incarnation`` names
    the host process: when it changes, all watches are gone. ``number``: its place in the feed, one more than
    that of the batch before; 0: nothing happened.
    """

    incarnation: str
    items: tuple[Recorded | Delta, ...] = ()
    lagged: bool = False
    number: int = 0


class HostStatus(msgspec.Struct, frozen=True):
    """How a host is. ``node``: Ray's id of the machine it is on, empty without Ray.

    ``state``: recovering until the open executions of a former life were taken over; draining: takes no new
    ones, and gives away what it has. ``busy``: share of one CPU its process used lately. ``running_max``: the
    executions it admits at once. ``unschedulable``: nodes of executions that no machine can hold.
    """

    incarnation: str
    state: Literal["recovering", "running", "draining"]
    in_memory: int
    queued: int
    admitted: int
    running_max: int = 0
    busy: float = 0.0
    node: str = ""
    unschedulable: int = 0


_REFUSALS: dict[str, type[DomainError]] = {
    cls.__name__: cls
    for cls in (AlreadyExists, Conflict, InvalidInput, InvalidTransition, NotFound, Overloaded, Unavailable)
}


def refusal_of(error: DomainError) -> Refusal:
    branch = type(error).__name__
    if branch not in _REFUSALS:
        return Refusal("Unavailable", (str(error),))
    return Refusal(branch, tuple(error.args))


def error_of(refusal: Refusal) -> DomainError:
    return _REFUSALS[refusal.branch](*refusal.args)


encode = msgspec.msgpack.Encoder().encode
decode_messages = msgspec.msgpack.Decoder(tuple[Message, ...]).decode
decode_answers = msgspec.msgpack.Decoder(tuple[Answer, ...]).decode
decode_feed = msgspec.msgpack.Decoder(FeedBatch).decode
decode_status = msgspec.msgpack.Decoder(HostStatus).decode
decode_ids = msgspec.msgpack.Decoder(tuple[str, ...]).decode
