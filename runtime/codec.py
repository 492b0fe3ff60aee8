"""Events to stored JSON and back. Pure.

The stored form is one JSON object: ``"prev"`` first (hex SHA-256 of the event before it in the same
stream, empty for the first), then ``"class_version"`` when it isn't 1, then the event's own fields. The
hash covers the stored name and these very bytes, so a stored event is never re-encoded.

What a reader gets back is what JSON keeps: tuples inside ``Json`` fields become lists, NaN becomes null,
keys become text. Whoever puts a value into an event normalises it first.
"""

from collections.abc import Callable
from hashlib import sha256
from typing import Any, cast

import msgspec

from runtime.errors import Diverged
from runtime.events import EVENT_TYPES, UPCASTS, Event

_VERSION_WINDOW = 112
# Bytes in which ``"class_version":`` can stand: after ``{"prev":"<64 hex digits>",``. An unescaped quote
# this early can only belong to a key, and no key before it holds an object.
_VERSION_KEY = b'"class_version":'

_encode = msgspec.json.Encoder().encode


def encode(event: Event, prev: str) -> bytes:
    """The stored JSON of ``event`` behind the event whose hash is ``prev``.

    Raises: UnicodeEncodeError or TypeError for a value that JSON can't hold.
    """
    body = _encode(event)
    version = event.class_version
    if version == 1:
        return b'{"prev":"' + prev.encode() + b'",' + body[1:]
    return b'{"prev":"%b","class_version":%d,' % (prev.encode(), version) + body[1:]


def stored_hash(topic: str, data: bytes) -> str:
    """Hex SHA-256 of a stored event. No stored name holds a brace, so the two parts can't run together."""
    return sha256(topic.encode() + data).hexdigest()


def previous_hash(data: bytes) -> str:
    """The ``prev`` a stored event carries."""
    return msgspec.json.decode(data, type=_Link).prev


def decode(topic: str, data: bytes) -> Event:
    """The event, lifted to the class version of this code.

    Raises: Diverged for a stored name or class version this code doesn't know, and for a body that
    doesn't fit its class.
    """
    cls = EVENT_TYPES.get(topic)
    if cls is None:
        raise Diverged(f"the log holds an event named {topic!r}, which this release doesn't know")
    decoder = _DECODERS.get(cls) or _decoder(cls)
    try:
        if decoder.class_version == 1 and data.find(_VERSION_KEY, 0, _VERSION_WINDOW) < 0:
            return decoder.decode(data)
        return _lift(topic, decoder, data)
    except msgspec.DecodeError as error:  # ValidationError is one
        raise Diverged(f"a stored {topic} doesn't fit its class: {error}") from error


class _Link(msgspec.Struct):
    prev: str


class _Decoder(msgspec.Struct, frozen=True):
    cls: type[Event]
    class_version: int
    decode: Callable[[bytes], Event]


_DECODERS: dict[type[Event], _Decoder] = {}


def _decoder(cls: type[Event]) -> _Decoder:
    decoder = _Decoder(cls, cls.class_version, msgspec.json.Decoder(cls).decode)
    _DECODERS[cls] = decoder
    return decoder


def _lift(topic: str, decoder: _Decoder, data: bytes) -> Event:
    fields = cast("dict[str, Any]", msgspec.json.decode(data))
    version = fields.pop("class_version", 1)
    if version > decoder.class_version:
        raise Diverged(
            f"the log holds {topic} of class version {version};"
            f" this release reads up to {decoder.class_version}"
        )
    while version < decoder.class_version:
        upcast = UPCASTS.get((topic, version))
        if upcast is None:
            raise Diverged(f"{topic}: no step leads from class version {version} to {version + 1}")
        fields = upcast(fields)
        version += 1
    return msgspec.convert(fields, decoder.cls)
