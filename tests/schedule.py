"""Which tests of a run share a process, and in which order they begin.

The tests of one server run in one process, one folder after the other, so that it is started once and ends
with the last of them: a server that idles beside the tests of others takes a twentieth of a core. What takes
long begins first, so that what is short can fill the processes evenly at the end.
"""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ONE_SERVER = (
    "tests/contracts/workflows/",
    "tests/contracts/external/",
    "tests/contracts/",
    "tests/cli/",
    "tests/actors/on_ray/",
)
"""Folders whose tests share a server or a Ray; the first that fits."""

LONG = ("tests/faults/", "tests/cluster/", *ONE_SERVER)


def in_order(items: list[pytest.Item]) -> None:
    """Sort them in place: those of one server together, what takes long first."""
    items.sort(key=lambda item: _place(item.nodeid))


def _place(nodeid: str) -> int:
    return next((place for place, folder in enumerate(LONG) if nodeid.startswith(folder)), len(LONG))


class Together(LoadScopeScheduling):
    """By server where tests have one, by file elsewhere."""

    def __init__(self, config: pytest.Config, log: Producer) -> None:
        config.option.loadscopereorder = False  # the order is `in_order`'s
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        shared = (folder for folder in ONE_SERVER if nodeid.startswith(folder))
        return next(shared, nodeid.split("::", 1)[0])
