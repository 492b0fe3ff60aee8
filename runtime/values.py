"""Values that are no JSON (tables, arrays, bytes, files): kept as blobs, told by a marker.

A marker is plain JSON, ``{"$blob": {"sha256", "size", "media_type"}}``. It stands in events, scopes,
expressions and APIs as any other value does; only a Python function that gets one as an argument receives
what it stands for. The media type says how it is stored, and never is that a pickle.
"""

import re
from typing import Annotated, Any, cast

import msgspec

from runtime.events import BlobRef, Json

MARKER = "$blob"

ARROW_STREAM = "application/vnd.apache.arrow.stream"
NUMPY_ARRAY = "application/x-npy"
BYTES = "application/octet-stream"

_MEDIA_TYPE = r"[A-Za-z0-9!#$&^_.+-]{1,100}/[A-Za-z0-9!#$&^_.+-]{1,100}(;[ -~]{0,100})?"


class _Told(msgspec.Struct, frozen=True):
    """What a marker says. Anybody may have written it, and a media type becomes a header of an answer."""

    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    size: Annotated[int, msgspec.Meta(ge=0)]
    media_type: Annotated[str, msgspec.Meta(pattern=rf"^{_MEDIA_TYPE}\Z")]


def is_media_type(text: str) -> bool:
    """Whether ``text`` may stand as a media type in a marker."""
    return re.fullmatch(_MEDIA_TYPE, text) is not None


def marker(ref: BlobRef) -> dict[str, Any]:
    """The JSON that stands for the stored value."""
    return {MARKER: {"sha256": ref.sha256, "size": ref.size, "media_type": ref.media_type}}


def value_ref(value: Json) -> BlobRef | None:
    """Where the value is that ``value`` stands for; None when it is no marker, or a faulty one."""
    if not isinstance(value, dict) or MARKER not in value or len(cast("dict[str, Any]", value)) != 1:
        return None
    told = cast("dict[str, Any]", value)
    try:
        found = msgspec.convert(told[MARKER], _Told)
    except msgspec.ValidationError:
        return None
    return BlobRef(sha256=found.sha256, size=found.size, media_type=found.media_type)
