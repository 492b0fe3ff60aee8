"""verify, export and projections: over stores of the test's own, tampered with, and over a server's."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway.catalogue import Catalogue
from projections.store import ReadStore
from runtime.administration import Cause
from runtime.event_log import EventLog, store_env
from runtime.ids import Micros
from tests.cli.command import Served, heliograph
from tests.sandbox import Sandbox


def _document(text: str) -> dict[str, object]:
    return {"heliograph": 1, "id": "told", "nodes": [{"id": "a", "kind": "template", "template": text}]}


@pytest.fixture
def store(sandbox: Sandbox) -> Iterator[Path]:
    """A data directory whose log holds three publications of one flow."""
    folder = sandbox.root / "cli-store"
    folder.mkdir()
    log = EventLog.open(store_env(f"sqlite:///{folder / 'heliograph.db'}"))
    try:
        for number, text in enumerate(("one", "two", "three"), start=1):
            catalogue = Catalogue(log, ReadStore.over(log))
            asyncio.run(catalogue.publish("default", _document(text), Cause(at=Micros(number))))
    finally:
        log.close()
    yield folder
    shutil.rmtree(folder)


def _tamper(store: Path, statement: str) -> None:
    with closing(sqlite3.connect(store / "heliograph.db")) as database, database:
        assert database.execute(statement).rowcount == 1


def test_an_untouched_log_keeps_every_promise(store: Path) -> None:
    ended = heliograph(store, "verify", "--json")
    assert ended.code == 0, ended
    report = ended.json()
    assert (report["ok"], report["events"], report["streams"]) == (True, 3, 1)
    by_file = heliograph(store, "verify", str(store / "heliograph.db"))
    assert by_file.code == 0
    assert "keeps every promise" in by_file.err


def test_a_changed_event_breaks_the_chain(store: Path) -> None:
    _tamper(
        store,
        "UPDATE stored_events SET state = CAST(replace(CAST(state AS TEXT), 'two', 'TWO') AS BLOB)"
        " WHERE originator_version = 2",
    )
    ended = heliograph(store, "verify")
    assert ended.code == 1
    assert "chain: flow:default:told version 3" in ended.err
    assert "Traceback" not in ended.err
    assert heliograph(store, "verify", "--json").json()["ok"] is False


def test_a_missing_event_is_found(store: Path) -> None:
    _tamper(store, "DELETE FROM stored_events WHERE originator_version = 2")
    ended = heliograph(store, "verify")
    assert ended.code == 1
    assert "versions: flow:default:told version 3" in ended.err


def test_an_export_can_be_verified_anywhere(store: Path, folder: Path) -> None:
    file = folder / "log.jsonl"
    assert heliograph(store, "export", str(file)).code == 0
    assert len(file.read_text().splitlines()) == 3
    assert heliograph(folder, "verify", str(file), "--json").json()["events"] == 3
    by_pipe = heliograph(folder, "verify", "-", stdin=file.read_text())
    assert by_pipe.code == 0
    file.write_text(file.read_text().replace("two", "TWO"))
    assert "chain: flow:default:told version 3" in heliograph(folder, "verify", str(file)).err


def test_a_parquet_export_can_be_verified_and_goes_on(store: Path, folder: Path) -> None:
    target = str(folder / "parquet")
    first, again = (heliograph(store, "export", "--parquet", target) for _ in range(2))
    assert (first.code, again.code) == (0, 0), (first, again)
    assert "3 new events" in first.err
    assert "nothing new" in again.err
    assert heliograph(folder, "verify", target, "--json").json()["events"] == 3
    assert heliograph(store, "export", "--parquet", str(folder)).code == 1
    assert heliograph(store, "export", "--parquet", target, "--execution", "e").code == 2


def test_a_file_that_is_no_export_is_named_by_line(folder: Path) -> None:
    file = folder / "other.jsonl"
    file.write_text("hello\n")
    ended = heliograph(folder, "verify", str(file))
    assert ended.code == 1
    assert f"error: {file}: line 1 is no exported event" in ended.err
    assert heliograph(folder, "verify", str(folder / "nowhere")).code == 2


def test_a_journal_is_held_against_the_log(store: Path) -> None:
    journal = store / "journal.jsonl"
    journal.write_text('{"type": "accepted", "execution_id": "lost"}\n')
    ended = heliograph(store, "verify", "--journal", str(journal))
    assert ended.code == 1
    assert "accepted: lost" in ended.err
    journal.write_text("{}\n")
    assert heliograph(store, "verify", "--journal", str(journal)).code == 2


def test_commands_on_a_store_that_is_not_there_create_none(folder: Path) -> None:
    for command in (("verify",), ("projections", "check"), ("projections", "rebuild"), ("export", "-")):
        ended = heliograph(folder, *command)
        assert ended.code == 1
        assert ended.err.startswith("error: there is no store at ")
    assert list(folder.iterdir()) == []


def test_read_models_are_checked_and_mended(store: Path) -> None:
    assert heliograph(store, "projections", "check", "--json").json()["ok"] is True
    _tamper(store, "UPDATE flows SET version = 'forged'")
    broken = heliograph(store, "projections", "check")
    assert broken.code == 1
    assert "flows default, told: 'forged' is stored" in broken.err
    assert "projections rebuild" in broken.err
    [difference] = heliograph(store, "projections", "check", "--json").json()["differences"]
    assert (difference["table"], difference["key"]) == ("flows", ["default", "told"])
    assert heliograph(store, "projections", "rebuild", "inline").code == 0
    assert heliograph(store, "projections", "check").code == 0


def test_an_unknown_read_model_is_a_mistake(store: Path) -> None:
    ended = heliograph(store, "projections", "rebuild", "nothing")
    assert ended.code == 2
    assert "inline" in ended.err


def test_the_log_of_a_running_server_is_checked_and_rebuilt_while_it_serves(served: Served) -> None:
    execution_id = json.loads(served.ok("run", "hello", "-i", "name=Ada", "--json", "-q").out)["execution_id"]
    assert served.ok("verify", "--json").json()["ok"] is True
    assert served.ok("projections", "check", "--json").json()["ok"] is True
    served.ok("projections", "rebuild")
    assert served.ok("projections", "check", "--json").json()["ok"] is True
    exported = served.ok("export", "-", "--execution", execution_id).out
    assert served.run("verify", "-", "--json", stdin=exported).json()["executions"] == {"completed": 1}
    assert served.run("export", "-", "--execution", "nobody").code == 1
