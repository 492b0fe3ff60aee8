"""Pauses counted instead of waited for."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest


def counted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of every sleep of this thread from now on. Other threads, as those of the servers of other
    tests, sleep as ever."""
    made: list[float] = []
    here, rest, rest_in_loop = threading.get_ident(), time.sleep, asyncio.sleep

    def pause(seconds: float) -> None:
        if threading.get_ident() == here:
            made.append(seconds)
        else:
            rest(seconds)

    async def pause_in_loop(seconds: float) -> None:
        is_here = threading.get_ident() == here
        if is_here:
            made.append(seconds)
        await rest_in_loop(0 if is_here else seconds)

    monkeypatch.setattr("time.sleep", pause)
    monkeypatch.setattr("asyncio.sleep", pause_in_loop)
    return made
