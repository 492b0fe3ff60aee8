"""The event log alone: what one recorded event costs with its share of the summary row.

    python -m bench.log [--url sqlite:///path] [--streams 64] [--batches 40]

Prints JSON. One execution is nine events (queued, started, three nodes of two events, completed). ``whole``
appends each execution in one group; ``split`` in three, as a host under load does, so that its row is written
three times. CPU time is that of this process only.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

from runtime import events
from runtime.event_log import Append, Chain, EventLog, store_env
from runtime.events import Event
from runtime.evolution import begin, evolve
from runtime.ids import Position

EVENTS_EACH = 9
START = 1_700_000_000_000_000
CUTS = {"whole": (0, 9), "split": (0, 1, 5, 9)}


def history(stream: str) -> list[Event]:
    kinds: list[tuple[type[Event], dict[str, object]]] = [
        (
            events.Queued,
            {
                "tenant": "bench",
                "flow_id": "greeting",
                "flow_version": "0123456789abcdef",
                "source": "executions",
                "input": {"name": "World"},
                "total_nodes": 3,
                "owner": "host-1",
                "timeout_seconds": 3600.0,
            },
        ),
        (events.Started, {}),
    ]
    for node in ("greet", "shout", "sign"):
        kinds.append((events.NodeStarted, {"node_id": node, "where": "host-1"}))
        kinds.append((events.NodeCompleted, {"node_id": node, "output": {"text": "Hello World"}}))
    kinds.append((events.Completed, {"output": {"text": "Hello World, signed"}}))
    return [
        kind(originator_id=stream, originator_version=version, at=START + version, by="key_1", **fields)  # type: ignore[arg-type]
        for version, (kind, fields) in enumerate(kinds, 1)
    ]


def groups(batches: int, streams: int, cuts: tuple[int, ...]) -> list[list[Append]]:
    """Everything is made beforehand, so that only the log is measured."""
    made: list[list[Append]] = []
    for batch in range(batches):
        parts: list[list[Append]] = [[] for _ in cuts[1:]]
        for index in range(streams):
            stream = f"0190aaaa-bbbb-7ccc-8ddd-{batch * streams + index:012d}"
            told = history(stream)
            chain = Chain()
            state = begin(told[0])
            for part, (low, high) in enumerate(itertools.pairwise(cuts)):
                for event in told[max(low, 1) : high]:
                    state = evolve(state, event)
                parts[part].append(Append(stream, told[low:high], state, chain))
        made += parts
    return made


def measure(log: EventLog, batches: int, streams: int, cuts: tuple[int, ...]) -> dict[str, float]:
    made = groups(batches, streams, cuts)
    wall, cpu = time.perf_counter(), time.process_time()
    for group in made:
        for outcome in log.append(group):
            if not isinstance(outcome, tuple):
                raise outcome
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    total = batches * streams * EVENTS_EACH
    return {
        "events": total,
        "commits": len(made),
        "wall_us_per_event": round(wall / total * 1e6, 2),
        "cpu_us_per_event": round(cpu / total * 1e6, 2),
        "events_per_second": round(total / wall),
    }


def measure_reads(log: EventLog) -> dict[str, float]:
    streams = sorted({one.originator_id for one in log.feed(Position(0), 5_000)})
    wall = time.perf_counter()
    count = sum(len([one.event() for one in log.read(stream)]) for stream in streams)
    wall = time.perf_counter() - wall
    return {"streams": len(streams), "events": count, "us_per_stream": round(wall / len(streams) * 1e6, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--url", default="", help="store URL, new and empty; default: a temporary SQLite file"
    )
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--batches", type=int, default=40)
    options = parser.parse_args()
    found: dict[str, object] = {"streams_per_batch": options.streams}
    with tempfile.TemporaryDirectory() as folder:
        for name, cuts in CUTS.items():
            url = options.url or f"sqlite:///{Path(folder)}/{name}.db"
            if options.url and name == "split":
                continue  # one given store takes one run: ids would repeat
            log = EventLog.open(store_env(url))
            try:
                found[name] = measure(log, options.batches, options.streams, cuts)
                found["read"] = measure_reads(log)
            finally:
                log.close()
    json.dump(found, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
