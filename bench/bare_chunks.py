"""Chunks of items as plain Ray tasks, with nothing of ours around them: what a wide map is measured against.

`python -m bench.bare_chunks WORK`, a JSON object (``Work``); prints ``begin``, then what its chunks took, and
ends when its standard input does.
"""

from __future__ import annotations

import sys
import time
from typing import Any, cast

import msgspec

from actors.ray_settings import RaySettings, prepare_environment
from bench.steps import toil

IN_FLIGHT_MAX = 8


class Work(msgspec.Struct):
    """``ray``: options of ``ray.init``. ``sizes``: items of each chunk. ``rounds``: as ``steps.toil``."""

    ray: dict[str, Any]
    sizes: list[int]
    rounds: int
    warm_up: int


def chunk(items: list[int], rounds: int) -> list[int]:
    return [toil(item, rounds) for item in items]


def main() -> None:
    work = msgspec.json.decode(sys.argv[1].encode(), type=Work)
    prepare_environment(RaySettings())
    import ray

    ray.init(**work.ray)
    library = cast(Any, ray)  # which ships partial types only
    task = library.remote(num_cpus=1)(chunk)
    library.get([task.remote(list(range(work.warm_up)), work.rounds) for _ in range(IN_FLIGHT_MAX)])
    chunks: list[list[int]] = []
    first = 0
    for size in work.sizes:
        chunks.append(list(range(first, first + size)))
        first += size
    print("begin", flush=True)
    began = time.perf_counter()
    running: list[Any] = []
    done = 0
    for items in chunks:
        if len(running) == IN_FLIGHT_MAX:
            ended, running = library.wait(running, num_returns=1)
            done += len(library.get(ended[0]))
        running.append(task.remote(items, work.rounds))
    done += sum(len(results) for results in library.get(running))
    print(msgspec.json.encode({"seconds": time.perf_counter() - began, "items": done}).decode(), flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
