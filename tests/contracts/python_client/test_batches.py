"""Batches and maps through both clients, over real sockets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.client import Client, Conflict, Invalid, ItemFailed
from tests.contracts.python_client import authored


def numbers(count: int) -> list[dict[str, Any]]:
    return [{"number": number} for number in range(count)]


def test_a_map_gives_the_outputs_in_the_order_of_the_inputs(client: Client) -> None:
    outputs = list(client.map("py-chain", ({"who": f"{n}"} for n in range(30)), concurrency=8))
    assert outputs == [f"Hello {n}" for n in range(30)]


def test_a_failed_input_of_a_map_is_raised_or_kept_in_its_place(client: Client) -> None:
    outputs = list(client.map(authored.picking, numbers(9), on_error="keep"))
    assert [one["half"] for one in outputs[:7]] == [0, 0.5, 1, 1.5, 2, 2.5, 3]
    assert isinstance(outputs[7], ItemFailed)
    assert "seven is refused" in str(outputs[7])
    assert outputs[8]["number"] == 8
    with pytest.raises(ItemFailed, match="input 7"):
        list(client.map(authored.picking, numbers(9)))


def test_a_batch_shows_its_counts_failures_and_results(client: Client, tmp_path: Path) -> None:
    batch = client.batch(authored.picking, numbers(9), concurrency=4, name="nine")
    ended = batch.wait(60)
    assert (ended.status, ended.name) == ("completed", "nine")
    assert (ended.counts.total, ended.counts.completed, ended.counts.failed) == (9, 8, 1)
    [failed] = list(batch.failed_items())
    assert (failed.index, failed.input) == (7, {"number": 7})
    found = list(batch.results())
    assert [one.index for one in found] == list(range(9))
    assert [one.error is None for one in found] == [True] * 7 + [False, True]
    assert batch.arrow().column("number").to_pylist() == [0, 1, 2, 3, 4, 5, 6, None, 8]
    frame: Any = batch.pandas()
    assert frame["half"].sum() == 14.5
    file = batch.download(tmp_path / "out.jsonl")
    assert [json.loads(line)["index"] for line in file.read_text().splitlines()] == list(range(9))


def test_failed_inputs_are_run_again_alone(client: Client) -> None:
    batch = client.batch("py-broken", [{"zero": 1}, {"zero": 0}, {"zero": 1}])
    assert batch.wait(60).counts.failed == 1
    batch.retry_failed()
    again = batch.wait(60)
    assert (again.counts.completed, again.counts.failed) == (2, 1)
    with pytest.raises(Conflict):
        client.batch("py-chain", [{"who": "x"}]).retry_failed()


def test_a_batch_is_paused_resumed_and_cancelled(client: Client) -> None:
    batch = client.batch("py-waiting", [{} for _ in range(6)], concurrency=2)
    batch.pause()
    batch.resume()
    batch.cancel("enough")
    ended = batch.wait(60)
    assert ended.status == "cancelled"
    assert ended.counts.completed == 0
    with pytest.raises(Conflict, match="already cancelled"):
        batch.pause()


def test_the_same_key_gives_the_same_batch(client: Client) -> None:
    key = f"batch-{type(client).__name__}"
    inputs = [{"who": "a"}, {"who": "b"}]
    first = client.batch("py-chain", inputs, key=key)
    assert client.batch("py-chain", inputs, key=key).id == first.id
    states = list(first.events())
    assert states[-1].has_ended


def test_a_file_of_inputs_is_read_by_its_format(client: Client, tmp_path: Path) -> None:
    table = tmp_path / "people.csv"
    table.write_text("who\nAda\nGrace\n")
    batch = client.batch("py-chain", table)
    batch.wait(60)
    assert [one.output for one in batch.results()] == ["Hello Ada", "Hello Grace"]
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"who": "Ada"}\n{"who"\n')
    with pytest.raises(Invalid, match="line 2"):
        client.batch("py-chain", broken)


def test_a_data_frame_gives_one_input_a_row(client: Client) -> None:
    import pandas

    frame = pandas.DataFrame({"who": ["Ada", "Grace"]})
    assert list(client.map("py-chain", frame)) == ["Hello Ada", "Hello Grace"]


def test_what_is_no_input_is_told_before_anything_is_sent(client: Client) -> None:
    with pytest.raises(TypeError, match="each input must be an object"):
        client.batch("py-chain", [1, 2])
    with pytest.raises(TypeError, match="inputs must be a list"):
        client.batch("py-chain", {"who": "Ada"})


def test_the_failed_items_of_a_wide_map_are_listed_and_run_again(client: Client) -> None:
    execution = client.start("py-wide-broken", {"items": [1, 0, 2]})
    data: Any = execution.result()
    assert (len(data), data.failed) == (3, 1)
    [failed] = list(execution.failed_items())
    assert (failed.index, failed.input, failed.error.type) == (1, 0, "ZeroDivisionError")
    again: Any = execution.rerun_failed().result()
    assert (len(again), again.failed) == (1, 1)
