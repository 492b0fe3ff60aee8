"""The summary row, as a pure function of the state."""

from typing import Any

import msgspec
import pytest

from projections.execution_summary import ExecutionRow, row
from runtime import events
from runtime.event_log import store_env
from runtime.events import BlobRef, FileDescriptor, StepError
from runtime.state import ExecutionState
from tests.conformance.histories import START, Story

REF = BlobRef(sha256="ab" * 32, size=70_000)


def row_of(story: Story) -> ExecutionRow:
    assert isinstance(story.state, ExecutionState)
    return ExecutionRow(*row(story.state, 42))


def test_the_row_of_a_queued_execution() -> None:
    story = Story(1)
    file = FileDescriptor(
        file_id="f1", name="a.txt", content_type="text/plain", size=3, sha256="cd" * 32, uri="artifact://x/f1"
    )
    story.tell(story.queued(timeout_seconds=2.0, debug=True, files=(file,), callback_url="https://e.org"))

    found = row_of(story)

    assert (found.status, found.progress, found.version, found.position) == ("queued", 0.0, 1, 42)
    assert (found.deadline_at, found.wake_at) == (START + 1 + 2_000_000,) * 2
    assert (found.debug, found.callback_url, found.by) == (1, "https://e.org", "key_1")
    assert msgspec.json.decode(found.input) == {"name": "Wörld", "n": [1, 2.5, None]}
    assert msgspec.json.decode(found.files, type=tuple[FileDescriptor, ...]) == (file,)
    assert (found.output, found.output_ref, found.error_type, found.failed_node) == (None, None, None, None)


def test_the_deadline_in_the_row_is_the_same_after_the_end() -> None:
    story = Story(1)
    story.tell(story.queued(timeout_seconds=2.0))
    before = row_of(story).deadline_at
    story.tell(story.next(events.Cancelled))
    assert row_of(story).deadline_at == before == START + 1 + 2_000_000


def test_the_row_of_a_running_execution_names_its_node() -> None:
    story = Story(1)
    story.begun()
    story.tell(story.next(events.NodeStarted, node_id="n0"))
    story.tell(story.next(events.NodeCompleted, node_id="n0", output=1))
    story.tell(story.next(events.NodeStarted, node_id="n1"))

    found = row_of(story)

    assert (found.status, found.current_node, found.completed_nodes, found.progress) == (
        "running",
        "n1",
        1,
        50.0,
    )
    assert found.started_at == START + 2


@pytest.mark.parametrize("output", [None, "text", {"a": [1, "ü"]}, False])
def test_the_row_of_a_completed_execution_holds_its_output(output: Any) -> None:
    story = Story(1)
    story.whole(output)

    found = row_of(story)

    assert (found.status, found.progress, found.wake_at) == ("completed", 100.0, None)
    assert found.output is not None
    assert msgspec.json.decode(found.output) == output
    assert found.ended_at == found.updated_at


def test_an_output_in_the_blob_store_is_a_reference() -> None:
    story = Story(1, nodes=1)
    story.begun()
    story.tell(story.next(events.NodeStarted, node_id="n0"))
    story.tell(story.next(events.NodeCompleted, node_id="n0", output_ref=REF))
    story.tell(story.next(events.Completed, output_ref=REF))

    found = row_of(story)

    assert found.output is None
    assert found.output_ref is not None
    assert msgspec.json.decode(found.output_ref, type=BlobRef) == REF


def test_the_row_of_a_failed_execution_says_why() -> None:
    story = Story(1, nodes=1)
    story.begun()
    error = StepError(type="ValueError", message="no \x00 here")
    story.tell(story.next(events.NodeStarted, node_id="n0"))
    story.tell(story.next(events.NodeFailed, node_id="n0", error=error))
    story.tell(story.next(events.Failed, node_id="n0", error=error))

    found = row_of(story)

    assert (found.status, found.error_type, found.failed_node) == ("failed", "ValueError", "n0")
    assert found.error_message == "no � here", "PostgreSQL's text can't hold NUL"
    assert found.output is None


@pytest.mark.parametrize(
    ("url", "module", "keys"),
    [
        ("sqlite:///data/log.db", "sqlite", {"SQLITE_DBNAME": "data/log.db"}),
        ("sqlite:////var/lib/log%20a.db", "sqlite", {"SQLITE_DBNAME": "/var/lib/log a.db"}),
        (
            "postgresql://u:p%40ss@db.example:5433/helio?schema=runs",
            "postgres",
            {
                "POSTGRES_HOST": "db.example",
                "POSTGRES_PORT": "5433",
                "POSTGRES_USER": "u",
                "POSTGRES_PASSWORD": "p@ss",
                "POSTGRES_DBNAME": "helio",
                "POSTGRES_SCHEMA": "runs",
            },
        ),
        (
            "postgresql://postgres:@/helio?host=/run/pg",
            "postgres",
            {"POSTGRES_HOST": "/run/pg", "POSTGRES_PORT": "5432", "POSTGRES_PASSWORD": ""},
        ),
    ],
)
def test_a_store_url_becomes_the_environment_of_the_library(
    url: str, module: str, keys: dict[str, str]
) -> None:
    env = store_env(url)
    assert env["PERSISTENCE_MODULE"] == f"projections.stores.{module}"
    assert env["ORIGINATOR_ID_TYPE"] == "text"
    assert keys.items() <= env.items()


def test_each_memory_store_is_a_new_one() -> None:
    assert store_env("memory://")["SQLITE_DBNAME"] != store_env("memory://")["SQLITE_DBNAME"]


@pytest.mark.parametrize(
    "url", ["", "sqlite://", "sqlite:///", "mysql://h/db", "postgresql://h", "/tmp/log.db"]
)
def test_another_store_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="not a store URL"):
        store_env(url)
