"""Takes the values of secrets out of everything a tool says, before anybody else hears it.

A value is looked for as it is and in the forms in which programs pass it on: escaped in JSON, in a URL, in
base64 wherever it stands in what was encoded. A value of a few characters is left alone: taking every ``7``
out of every answer would hide nothing and spoil everything.
"""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote, quote_plus

from runtime.events import Json

STARS = "***"
VALUE_CHARS_MIN = 4


class Redactor:
    """The secrets that one run resolved. ``add`` each value as soon as it is known."""

    def __init__(self) -> None:
        self._forms: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def add(self, value: str) -> None:
        if len(value) < VALUE_CHARS_MIN:
            return
        self._forms |= _forms(value)
        # Longest first, so that no form is left half of a longer one.
        alternatives = sorted(self._forms, key=lambda form: (-len(form), form))
        self._pattern = re.compile("|".join(map(re.escape, alternatives)))

    def text(self, text: str) -> str:
        return text if self._pattern is None else self._pattern.sub(STARS, text)

    def value(self, value: Json) -> Json:
        """``value`` with every text in it, names of fields as well, without secrets."""
        return value if self._pattern is None else self._clean(value)

    def _clean(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            entries = cast("Mapping[str, Any]", value)
            return {self.text(str(key)): self._clean(inner) for key, inner in entries.items()}
        if isinstance(value, (list, tuple)):
            return [self._clean(inner) for inner in cast("list[Any]", value)]
        return value


def _forms(value: str) -> set[str]:
    forms = {value, quote(value, safe=""), quote(value), quote_plus(value)}
    forms |= {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    for alternative in (base64.b64encode, base64.urlsafe_b64encode):
        forms |= {_encoded(alternative, value.encode(), shift) for shift in range(3)}
    return {form for form in forms if len(form) >= VALUE_CHARS_MIN}


def _encoded(encode: Any, value: bytes, shift: int) -> str:
    """The characters of base64 that ``value`` alone decides when ``shift`` bytes (mod 3) stand before it."""
    # A character of base64 holds 6 bits: drop those at both ends that neighbours have a part in.
    text = cast(bytes, encode(b"\0" * shift + value)).decode().rstrip("=")
    first = (0, 2, 3)[shift]
    whole = (shift + len(value)) * 8 // 6
    return text[first:whole]
