"""archive, and verify with an archive: over a store of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

import pytest

from gateway.cli.failures import CliFailure
from gateway.cli.log import rebuild as rebuild_command
from projections import rebuild
from projections.tracked import Moved
from runtime.event_log import EventLog, store_env
from tests.cli.command import heliograph
from tests.projections.writing import write_some
from tests.sandbox import Sandbox


@pytest.fixture
def store(sandbox: Sandbox) -> Iterator[Path]:
    """A data directory whose log holds five ended executions and an open one."""
    folder = sandbox.root / "cli-archive"
    folder.mkdir()
    log = EventLog.open(store_env(f"sqlite:///{folder / 'heliograph.db'}"))
    try:
        write_some(log, 0, 6)
    finally:
        log.close()
    yield folder
    rmtree(folder)


def test_old_executions_are_archived_and_verified_together_with_the_log(store: Path) -> None:
    target = str(store / "archive")
    counted = heliograph(store, "archive", "--to", target, "--older-than", "4w", "--dry-run", "--json")
    assert counted.json()["executions"] == 5, counted
    assert not Path(target).exists()
    done = heliograph(store, "archive", "--to", target, "--before", "2026-10-01", "--json")
    assert (done.code, done.json()["executions"], done.json()["parts"]) == (0, 5, 1), done
    again = heliograph(store, "archive", "--to", target, "--before", "2026-10-01")
    assert "nothing to archive" in again.err
    alone = heliograph(store, "verify", "--json").json()
    assert (alone["ok"], alone["executions"]) == (True, {"running": 1})
    together = heliograph(store, "verify", "--archive", target, "--json").json()
    assert together["ok"]
    assert together["executions"] == {"cancelled": 1, "completed": 3, "failed": 1, "running": 1}
    assert heliograph(store, "projections", "check").code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "HELIOGRAPH_RETENTION_SECONDS"),
        (("--older-than", "90"), "--older-than '90'"),
        (("--before", "soon"), "--before 'soon'"),
        (("--before", "2026-10-01", "--older-than", "90d"), "give one"),
    ],
)
def test_a_cutoff_that_says_nothing_is_a_mistake(store: Path, options: tuple[str, ...], said: str) -> None:
    ended = heliograph(store, "archive", "--to", str(store / "archive"), *options)
    assert ended.code == 2
    assert said in ended.err


def test_a_rebuild_that_an_archive_ended_says_so(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(*_: object) -> None:
        raise Moved("counters__rebuild")

    monkeypatch.setattr(rebuild, "rebuild", moved)
    with pytest.raises(CliFailure, match="an archive of this log ran meanwhile"):
        rebuild_command(["counters"], store=f"sqlite:///{store / 'heliograph.db'}")
