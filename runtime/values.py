"""Values that are no JSON (tables, arrays, bytes, files): kept as blobs, told by a marker.

A marker is plain JSON, ``{"$blob": {"sha256", "size", "media_type"}}``. It stands in events, scopes,
expressions and APIs as any other value does; only a Python function that gets one as an argument receives
what it stands for. The media type says how it is stored, and never is that a pickle.
"""

from typing import Any, cast

import msgspec

from runtime.events import BlobRef, Json

MARKER = "$blob"

ARROW_STREAM = "application/vnd.apache.arrow.stream"
NUMPY_ARRAY = "application/x-npy"
BYTES = "application/octet-stream"


def marker(ref: BlobRef) -> dict[str, Any]:
    """The JSON that stands for the stored value."""
    return {MARKER: {"sha256": ref.sha256, "size": ref.size, "media_type": ref.media_type}}


def value_ref(value: Json) -> BlobRef | None:
    """Where the value is that ``value`` stands for; None when it is no marker."""
    if not isinstance(value, dict) or MARKER not in value or len(cast("dict[str, Any]", value)) != 1:
        return None
    told = cast("dict[str, Any]", value)
    try:
        return msgspec.convert(told[MARKER], BlobRef)
    except msgspec.ValidationError:
        return None
