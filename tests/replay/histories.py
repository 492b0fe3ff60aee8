"""Stored histories as files: one line an event, with the columns of the log as it stands in the store."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from projections.store import ReadStore
from runtime.event_log import Recorded
from runtime.ids import Position

FOLDER = Path(__file__).parent


def load(name: str) -> list[Recorded]:
    """The events of ``name``.jsonl, in order of position."""
    lines = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [_recorded(json.loads(line)) for line in lines]


def save(name: str, history: Iterable[Recorded]) -> None:
    """Write a new file; a released one is never written again."""
    path = FOLDER / f"{name}.jsonl"
    with path.open("x", encoding="utf-8") as file:
        for one in history:
            fields = {
                "position": one.position,
                "id": one.originator_id,
                "version": one.originator_version,
                "topic": one.topic,
                "state": one.data.decode(),
            }
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def restore(store: ReadStore, history: Sequence[Recorded]) -> None:
    """Put the stored bytes into an empty log, as a restored back-up would."""
    with store.transaction() as transaction:
        transaction.executemany(
            "INSERT INTO stored_events (notification_id, originator_id, originator_version, topic, state)"
            " VALUES (?, ?, ?, ?, ?)",
            [
                (one.position, one.originator_id, one.originator_version, one.topic, one.data)
                for one in history
            ],
        )


def _recorded(fields: dict[str, object]) -> Recorded:
    return Recorded(
        Position(int(str(fields["position"]))),
        str(fields["id"]),
        int(str(fields["version"])),
        str(fields["topic"]),
        str(fields["state"]).encode(),
    )
