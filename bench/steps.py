"""The Python functions that nodes of the measured flows call."""

import hashlib


def pass_on(value: str) -> str:
    """As little work as a function can do."""
    return value


def toil(item: int, rounds: int) -> int:
    """A fixed amount of work for one CPU; it gives what it was given."""
    hashlib.pbkdf2_hmac("sha256", b"item", b"salt", rounds)
    return item
