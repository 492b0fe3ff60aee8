"""A JSON array of any length, cut into its elements as it streams by.

Only the brackets, commas and strings are looked at here; each element is then checked by msgspec. The
streaming parsers there are (ijson) keep the path of every open bracket as a text, and a few hundred
kilobytes of brackets then take gigabytes; here nesting costs a number.
"""

import re
from collections.abc import Iterable, Iterator

import msgspec

_check = msgspec.json.Decoder(msgspec.Raw).decode

# What needs no look: strings as a whole, and all between them but brackets (and commas, between elements).
# Possessive, so that nothing backtracks. A string whose end has not arrived yet stops it at its quote.
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
_INSIDE = re.compile(rb'(?:[^"\[\]{}]++|' + _STRING + rb")*+", re.DOTALL)
_BETWEEN = re.compile(rb'(?:[^"\[\]{},]++|' + _STRING + rb")*+", re.DOTALL)
_QUOTE, _COMMA, _OPEN, _CLOSE, _END = b'"'[0], b","[0], b"[{", b"]}", b"]"[0]

DEPTH_MAX = 1_000


class NotJson(ValueError):
    """A text is no JSON value, and why."""


class NotAnArray(ValueError):
    """The stream is no JSON array, ends too early, or has an element that is too long."""


def checked_json(text: bytes) -> bytes:
    """``text``, if it is one JSON value in UTF-8. Raises: NotJson."""
    try:
        _check(text)
        if not text.isascii():
            text.decode()
    except RecursionError:
        raise NotJson("nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotJson(f"not a JSON value ({error})") from None
    return text


def split_array(blocks: Iterable[bytes], element_bytes_max: int) -> Iterator[bytes]:
    """The texts between the array's commas, without the white space around them; not checked.

    In memory are one block and one element. Raises: NotAnArray.
    """
    rest = _after_bracket(blocks)
    held = b""  # from the start of the element on
    at = depth = elements = 0
    for block in rest:
        held += block
        start = 0
        while (at := _skip(held, at, depth)) < len(held) and held[at] != _QUOTE:
            mark = held[at]
            at += 1
            if mark in _OPEN:
                depth += 1
                if depth > DEPTH_MAX:
                    raise NotAnArray(f"element {elements + 1} is nested more than {DEPTH_MAX} deep")
            elif depth:
                depth -= mark in _CLOSE
            else:
                element = held[start : at - 1].strip()
                start = at
                if mark == _COMMA or element or elements:
                    elements += 1
                    yield element
                if mark == _END:
                    _expect_end(held[at:], rest)
                    return
                if mark != _COMMA:
                    raise NotAnArray("a brace closes the array")
        held = held[start:]
        at -= start
        if len(held) > element_bytes_max:
            raise NotAnArray(f"element {elements + 1} has more than {element_bytes_max} bytes")
    raise NotAnArray("the file ends inside the array")


def _skip(text: bytes, at: int, depth: int) -> int:
    found = (_INSIDE if depth else _BETWEEN).match(text, at)
    return at if found is None else found.end()


def _after_bracket(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The stream behind the array's opening bracket."""
    given = iter(blocks)
    for block in given:
        text = block.removeprefix(b"\xef\xbb\xbf").lstrip()
        if text.startswith(b"["):
            yield text[1:]
            yield from given
            return
        if text:
            break
    raise NotAnArray("the file is not a JSON array")


def _expect_end(text: bytes, rest: Iterable[bytes]) -> None:
    if text.strip() or any(block.strip() for block in rest):
        raise NotAnArray("something follows the array")
