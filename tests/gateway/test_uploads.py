"""Forms with files, read as they arrive (ability contract 3.1)."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.envelopes import Problem
from gateway.uploads import NAME_BYTES_MAX, Form, FormFault, FormRules, KeptFile, read_form, safe_names
from runtime.blob_store import BlobStore
from runtime.events import BlobRef

RULES = FormRules(
    texts={"params_json": 1_000, "callback_url": 100},
    files=frozenset({"files", "files[]"}),
    files_max=3,
    file_bytes_max=1_000,
    files_bytes_max=2_000,
)


class Shelf:
    """Keeps what is written, and who was kept and who was removed."""

    def __init__(self) -> None:
        self.writers: list[Writer] = []

    def open(self) -> "Writer":
        self.writers.append(Writer())
        return self.writers[-1]

    @property
    def left_open(self) -> int:
        return sum(writer.state == "open" for writer in self.writers)


class Writer:
    def __init__(self) -> None:
        self.data = b""
        self.state = "open"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def write(self, data: bytes) -> None:
        assert self.state == "open"
        self.data += data

    def commit(self, media_type: str) -> BlobRef:
        self.state = "kept"
        return BlobRef(sha256=self.sha256, size=len(self.data), media_type=media_type)

    def abort(self) -> None:
        assert self.state == "open"
        self.state = "removed"


Files = Sequence[tuple[str, tuple[str | None, bytes] | tuple[str | None, bytes, str]]]


def encode(files: Files) -> tuple[str, bytes]:
    request = httpx.Request("POST", "http://x/", files=list(files))
    return request.headers["content-type"], request.read()


def read(content_type: str, body: bytes, shelf: Shelf, step: int = 7, rules: FormRules = RULES) -> Form:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), step):
            yield body[start : start + step]

    return asyncio.run(read_form(content_type, chunks(), rules, shelf.open))


def keep(form: Form) -> tuple[KeptFile, ...]:
    return asyncio.run(form.keep())


@pytest.mark.parametrize("step", [1, 2, 13, 100_000])
def test_texts_and_files_arrive_whole_however_the_network_cuts_them(step: int) -> None:
    content = bytes(range(256)) * 3 + b"\r\n--not-the-boundary\r\n"
    files: Files = [
        ("params_json", (None, b'{"a": "b\r\n\r\nc"}')),
        ("files", ("a.bin", content, "application/x-a")),
        ("other", (None, b"read over")),
        ("other", ("o.txt", b"read over too")),
        ("files[]", ("b.txt", b"", "text/plain")),
    ]
    shelf = Shelf()
    form = read(*encode(files), shelf, step)
    assert form.texts == {"params_json": b'{"a": "b\r\n\r\nc"}'}
    kept = keep(form)
    assert [(each.name, each.content_type, each.blob.size) for each in kept] == [
        ("a.bin", "application/x-a", len(content)),
        ("b.txt", "text/plain", 0),
    ]
    assert shelf.writers[0].data == content
    assert kept[0].blob.sha256 == hashlib.sha256(content).hexdigest()
    assert [writer.state for writer in shelf.writers] == ["kept", "kept"]


def test_a_text_field_may_come_as_a_file_part() -> None:
    form = read(*encode([("params_json", ("p.json", b"{}", "application/json"))]), Shelf())
    assert form.texts == {"params_json": b"{}"}
    assert keep(form) == ()


def test_a_file_field_nobody_filled_in_is_no_file() -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename=""\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n\r\n--x--\r\n"
    )
    shelf = Shelf()
    form = read("multipart/form-data; boundary=x", body, shelf)
    assert keep(form) == ()
    assert [writer.state for writer in shelf.writers] == ["removed"]


@pytest.mark.parametrize(
    "files",
    [
        [("files", (f"{n}", b"x")) for n in range(4)],
        [("files", ("a", b"x" * 1_001))],
        [("files", (f"{n}", b"x" * 700)) for n in range(3)],
        [("files", ("a", b"x")), ("params_json", (None, b"x" * 1_001))],
    ],
    ids=["number", "one file", "all files", "text"],
)
def test_past_a_bound_the_form_is_refused_and_nothing_stays(files: Files) -> None:
    shelf = Shelf()
    with pytest.raises(Problem) as caught:
        read(*encode(files), shelf)
    assert caught.value.code == "body_too_large"
    assert shelf.writers
    assert {writer.state for writer in shelf.writers} == {"removed"}


def test_the_bounds_themselves_pass() -> None:
    files: Files = [
        ("params_json", (None, b"x" * 1_000)),
        ("files", ("a", b"x" * 1_000)),
        ("files", ("b", b"x" * 999)),
        ("files", ("c", b"x")),
    ]
    assert len(keep(read(*encode(files), Shelf()))) == 3


def test_a_refusal_comes_before_the_rest_of_the_body_is_read() -> None:
    content_type, body = encode([("files", ("a", b"x" * 100_000))])
    taken = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal taken
        for start in range(0, len(body), 500):
            taken += 1
            yield body[start : start + 500]

    with pytest.raises(Problem):
        asyncio.run(read_form(content_type, chunks(), RULES, Shelf().open))
    assert taken < 10


def test_a_client_that_goes_away_leaves_nothing() -> None:
    content_type, body = encode([("files", ("a", b"x" * 900))])
    shelf = Shelf()

    async def chunks() -> AsyncIterator[bytes]:
        yield body[:600]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        asyncio.run(read_form(content_type, chunks(), RULES, shelf.open))
    assert [writer.state for writer in shelf.writers] == ["removed"]


def test_discard_removes_what_was_staged_and_spares_what_was_kept() -> None:
    shelf = Shelf()
    form = read(*encode([("files", ("a", b"x"))]), shelf)
    keep(form)
    asyncio.run(form.discard())
    assert [writer.state for writer in shelf.writers] == ["kept"]
    form = read(*encode([("files", ("a", b"x"))]), shelf)
    asyncio.run(form.discard())
    assert [writer.state for writer in shelf.writers] == ["kept", "removed"]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x--\r\n"),
        ("multipart/form-data; boundary=" + "x" * 300, b""),
        ("multipart/form-data; boundary=x", b"no boundary here"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb'),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\nb\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 20 + b"\r\n\r\n--x--\r\n"),
        ("application/x-www-form-urlencoded", b"&".join([b"a=b"] * 300)),
    ],
)
def test_a_broken_form_is_a_fault(content_type: str, body: bytes) -> None:
    with pytest.raises(FormFault):
        read(content_type, body, Shelf())


def test_too_many_parts_are_a_fault_and_nothing_stays() -> None:
    shelf = Shelf()
    with pytest.raises(FormFault, match="more than 200 parts"):
        read(*encode([("files", ("a", b"x")), *((f"f{n}", (None, b"")) for n in range(201))]), shelf, 50)
    assert shelf.left_open == 0


def test_an_urlencoded_form_has_texts_only() -> None:
    form = read(
        "application/x-www-form-urlencoded; charset=utf-8", b"params_json=%7B%22a%22%3A+1%7D&z=1", Shelf()
    )
    assert form.texts == {"params_json": b'{"a": 1}'}
    assert keep(form) == ()
    with pytest.raises(Problem):
        read("application/x-www-form-urlencoded", b"callback_url=" + b"x" * 101, Shelf())


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "text/plain", "multipart/mixed; boundary=x"]
)
def test_another_media_type_is_unsupported(content_type: str) -> None:
    with pytest.raises(Problem) as caught:
        read(content_type, b"{}", Shelf())
    assert caught.value.code == "unsupported_media_type"


def test_a_text_that_is_not_utf8_is_a_fault() -> None:
    form = read(*encode([("callback_url", (None, b"\xff"))]), Shelf())
    with pytest.raises(FormFault, match="callback_url is not UTF-8"):
        form.text("callback_url")


def test_stored_names_are_safe_and_distinct() -> None:
    names = [
        "../../etc/passwd",
        "a b.txt",
        "a b.txt",
        "a b.txt",
        "C:\\x\\y.doc",
        "",
        "..",
        "\x00\x1f",
        "日本.txt",
        ".env",
    ]
    assert safe_names(names) == [
        "passwd",
        "a b.txt",
        "a b-2.txt",
        "a b-3.txt",
        "y.doc",
        "file-6",
        "file-7",
        "file-8",
        "日本.txt",
        ".env",
    ]


@given(st.lists(st.text(max_size=300), max_size=12))
def test_any_names_give_safe_distinct_ones(names: list[str]) -> None:
    safe = safe_names(names)
    assert len(safe) == len(names) == len(set(safe))
    for name in safe:
        assert 0 < len(name.encode()) <= NAME_BYTES_MAX
        assert "/" not in name
        assert "\\" not in name
        assert name.isprintable() or " " in name or any(ord(c) > 127 for c in name)
        assert name.strip(".")


def test_long_names_stay_distinct_within_the_bound() -> None:
    names = safe_names(["ü" * 150 + ".txt"] * 12)
    assert len(set(names)) == 12
    assert all(len(name.encode()) <= NAME_BYTES_MAX for name in names)


def test_files_land_in_the_blob_store_and_leave_nothing_unfinished(tmp_path: Path) -> None:
    content_type, body = encode([("files", ("a.bin", b"x" * 900)), ("files", ("b.bin", b"y"))])

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    async def receive(*, keeps: bool) -> tuple[KeptFile, ...]:
        form = await read_form(content_type, chunks(), RULES, store.open_writer)
        assert [each.writer.sha256 for each in form.staged] == [
            hashlib.sha256(b"x" * 900).hexdigest(),
            hashlib.sha256(b"y").hexdigest(),
        ]
        kept = await form.keep() if keeps else ()
        await form.discard()
        return kept

    store = BlobStore(str(tmp_path))
    asyncio.run(receive(keeps=False))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    kept = asyncio.run(receive(keeps=True))
    assert [store.get_bytes(each.blob) for each in kept] == [b"x" * 900, b"y"]
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2
