"""The blob store, over a folder and over an object store without folders (fsspec's in memory)."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from runtime.blob_store import BlobStore
from runtime.errors import Diverged, NotFound, Unavailable
from runtime.events import BlobRef

HELLO = BlobRef(sha256=sha256(b"hello").hexdigest(), size=5, media_type="text/plain")


@pytest.fixture(params=["folder", "file-url", "object-store"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    match request.param:
        case "folder":
            yield str(tmp_path / "blobs")
        case "file-url":
            yield f"file://{tmp_path}/blobs"
        case _:
            root = f"/{uuid4().hex}"
            yield f"memory:/{root}"
            files = MemoryFileSystem()
            if files.exists(root):
                files.rm(root, recursive=True)


@pytest.fixture
def blobs(url: str) -> BlobStore:
    return BlobStore(url)


def test_what_was_put_is_got_back(blobs: BlobStore) -> None:
    for data in (b"", b"hello", bytes(range(256)) * 100):
        ref = blobs.put_bytes(data)
        assert ref == BlobRef(sha256=sha256(data).hexdigest(), size=len(data))
        assert blobs.get_bytes(ref) == data
        assert blobs.exists(ref)


def test_putting_the_same_twice_changes_nothing(blobs: BlobStore) -> None:
    assert blobs.put_bytes(b"hello", "text/plain") == blobs.put_bytes(b"hello", "text/plain") == HELLO
    assert blobs.get_bytes(HELLO) == b"hello"


def test_a_blob_can_be_written_and_read_in_pieces(blobs: BlobStore) -> None:
    pieces = [bytes([number]) * 1_000 for number in range(50)]
    with blobs.open_writer() as writer:
        for piece in pieces:
            writer.write(piece)
        ref = writer.commit("image/png")

    chunks = list(blobs.open_reader(ref, chunk_bytes=4_096))

    assert b"".join(chunks) == b"".join(pieces)
    assert max(map(len, chunks)) <= 4_096
    assert ref == BlobRef(sha256=sha256(b"".join(pieces)).hexdigest(), size=50_000, media_type="image/png")


def test_what_is_not_committed_never_appears(blobs: BlobStore) -> None:
    with blobs.open_writer() as writer:
        writer.write(b"hello")
    assert not blobs.exists(HELLO)
    writer.abort()
    assert not blobs.exists(HELLO)


def test_two_writers_of_the_same_content_agree(blobs: BlobStore) -> None:
    first, second = blobs.open_writer(), blobs.open_writer()
    first.write(b"hello")
    second.write(b"hel")
    second.write(b"lo")
    assert first.commit("text/plain") == second.commit("text/plain") == HELLO
    assert blobs.get_bytes(HELLO) == b"hello"


def test_a_blob_is_shared_by_all_who_open_the_store(url: str) -> None:
    assert BlobStore(url).get_bytes(BlobStore(url).put_bytes(b"hello")) == b"hello"


def test_a_blob_that_is_not_there_is_not_found(blobs: BlobStore) -> None:
    assert not blobs.exists(HELLO)
    with pytest.raises(NotFound):
        blobs.get_bytes(HELLO)
    blobs.delete(HELLO)


def test_a_deleted_blob_is_gone(blobs: BlobStore) -> None:
    blobs.put_bytes(b"hello")
    blobs.delete(HELLO)
    assert not blobs.exists(HELLO)


def test_a_blob_above_the_bound_is_not_taken_into_memory(blobs: BlobStore) -> None:
    ref = blobs.put_bytes(b"hello")
    with pytest.raises(ValueError, match="at most 4"):
        blobs.get_bytes(ref, limit=4)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "a" * 63 + "/"])
def test_a_reference_that_is_no_hash_reaches_no_file(blobs: BlobStore, name: str) -> None:
    with pytest.raises(NotFound):
        blobs.get_bytes(BlobRef(sha256=name, size=1))


@pytest.mark.parametrize("content", [b"hallo", b"hell", b"hello!"])
def test_changed_content_is_refused(tmp_path: Path, content: bytes) -> None:
    blobs = BlobStore(str(tmp_path))
    blobs.put_bytes(b"hello")
    name = HELLO.sha256
    place = tmp_path / name[:2] / name[2:4] / name
    assert place.read_bytes() == b"hello"
    place.write_bytes(content)

    with pytest.raises(Diverged, match="not what its name says"):
        blobs.get_bytes(HELLO)


def test_an_aborted_write_leaves_no_file(tmp_path: Path) -> None:
    with BlobStore(str(tmp_path)).open_writer() as writer:
        writer.write(b"hello")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_can_not_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable):
        BlobStore(str(tmp_path / "file" / "blobs")).put_bytes(b"hello")
