"""Functions that tests offer as tools."""

import asyncio


def multiply(left: int, right: int) -> int:
    """Multiply two numbers.

    Args:
        left: the first one
        right: the other one
    """
    return left * right


async def later(text: str) -> str:
    await asyncio.sleep(0)
    return f"{text} later"


def long_text(size: int) -> str:
    return "y" * size


def broken() -> str:
    raise RuntimeError("it is broken")
