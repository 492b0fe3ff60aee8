"""What a person sees meanwhile, on standard error: standard output holds the JSON document alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable

from bench.report import Figure

_began = time.monotonic()


def say(text: str) -> None:
    sys.stderr.write(f"[{time.monotonic() - _began:6.1f} s] {text}\n")
    sys.stderr.flush()


def show(figures: Iterable[Figure]) -> None:
    for each in figures:
        spread = "" if each.least is None else f" ({each.least:g} to {each.most:g})"
        verdict = "" if each.met is None else f"; goal {each.goal:g}: {'met' if each.met else 'MISSED'}"
        say(f"{each.name}: {each.value:g} {each.unit}{spread}{verdict}")
