"""Data sets over the real blob store: what is written comes back in order, and lies are noticed."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from runtime import datasets
from runtime.blob_store import BlobStore
from runtime.datasets import Dataset, ItemFailure, Part
from runtime.errors import Diverged
from runtime.events import BlobRef, StepError


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path / "blobs"))


class CountingStore:
    """Knows which blobs were opened."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self.opened: list[str] = []

    def open_writer(self) -> datasets.PartWriter:
        return self._blobs.open_writer()

    def open_reader(self, ref: BlobRef) -> Iterator[bytes]:
        self.opened.append(ref.sha256)
        return self._blobs.open_reader(ref)


def _lines(*values: object) -> list[bytes]:
    return [msgspec.json.encode(value) for value in values]


def _three_parts(blobs: BlobStore) -> Dataset:
    failure = ItemFailure(
        index=2, error=StepError(type="ValueError", message="no"), item=msgspec.Raw(b'{"x":2}')
    )
    parts = [
        Part(first=0, items=2, ref=datasets.write_lines(blobs, _lines("a\nb", {"ü": 1}))),
        Part(first=2, items=1, failed=1, errors=datasets.write_failures(blobs, [failure])),
        Part(first=3, items=3, ref=datasets.write_lines(blobs, _lines(1, None, []))),
    ]
    return datasets.write_dataset(blobs, parts)


def test_results_come_back_in_order_with_null_for_failed_ones(blobs: BlobStore) -> None:
    dataset = _three_parts(blobs)
    results = [msgspec.json.decode(line) for line in datasets.iter_results(blobs, dataset)]
    assert results == ["a\nb", {"ü": 1}, None, 1, None, []]
    assert (dataset.items, dataset.failed) == (6, 1)


def test_a_data_set_survives_as_plain_json(blobs: BlobStore) -> None:
    dataset = _three_parts(blobs)
    value = msgspec.json.decode(msgspec.json.encode(datasets.dataset_value(dataset)))
    assert datasets.is_dataset(value)
    assert datasets.parse_dataset(value) == dataset
    assert not datasets.is_dataset({"dataset": "of a user"})


def test_what_is_no_data_set_is_refused_with_the_field() -> None:
    with pytest.raises(ValueError, match=r"\$\.items"):
        datasets.parse_dataset({"dataset": 1, "items": -1, "parts": {"sha256": "", "size": 0}})


def test_skipped_parts_are_not_read(blobs: BlobStore) -> None:
    dataset = _three_parts(blobs)
    counting = CountingStore(blobs)
    assert list(datasets.iter_results(counting, dataset, skip=4)) == [b"null", b"[]"]
    assert len(counting.opened) == 2  # the list of parts, and the last part


def test_failures_are_listed_with_their_items(blobs: BlobStore) -> None:
    failures = list(datasets.iter_failures(blobs, _three_parts(blobs)))
    assert [(failure.index, failure.error.type) for failure in failures] == [(2, "ValueError")]
    assert bytes(failures[0].item) == b'{"x":2}'


@pytest.mark.parametrize("first", [1, 3])
def test_parts_with_a_gap_or_an_overlap_are_refused(blobs: BlobStore, first: int) -> None:
    with pytest.raises(ValueError, match="item 2 is due"):
        datasets.write_dataset(blobs, [Part(first=0, items=2), Part(first=first, items=1)])


@pytest.mark.parametrize("told", [1, 3])
def test_a_part_with_another_number_of_lines_is_noticed(blobs: BlobStore, told: int) -> None:
    ref = datasets.write_lines(blobs, _lines(1, 2))
    dataset = datasets.write_dataset(blobs, [Part(first=0, items=told, ref=ref)])
    with pytest.raises(Diverged, match=f"not the {told} results"):
        list(datasets.iter_results(blobs, dataset))


def test_an_overlong_item_is_neither_written_nor_read(
    blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="line 2: longer than 8 bytes"):
        list(datasets.split_lines([b"12345678\n1234", b"56789\n"], "a.jsonl", line_bytes_max=8))
    monkeypatch.setattr(datasets, "LINE_BYTES_MAX", 8)
    with pytest.raises(ValueError, match="has 9 bytes"):
        datasets.write_lines(blobs, [b"123456789"])


def test_lines_are_the_same_however_the_stream_is_cut() -> None:
    text = b"one\r\ntwo\n\n\nthree\r\nfour"
    for size in range(1, len(text) + 1):
        blocks = [text[at : at + size] for at in range(0, len(text), size)]
        assert list(datasets.split_lines(blocks, "x")) == [b"one", b"two", b"three", b"four"]
