"""Sources of items: what files give, what is refused, and that reading never holds a file."""

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import fsspec
import msgspec
import pyarrow.parquet
import pytest

from actors import item_sources, optional_libraries, record_formats
from actors.egress import EgressRefused
from actors.item_sources import SourceAccess, SourceFault, open_source
from runtime import datasets, values
from runtime.blob_store import BlobStore
from runtime.datasets import Part
from runtime.events import FileDescriptor
from runtime.plan import MapSource

pa: Any = pyarrow
pq: Any = pyarrow.parquet

MIB = 1024 * 1024


@pytest.fixture
def access(tmp_path: Path) -> SourceAccess:
    root = tmp_path / "root"
    root.mkdir()
    return SourceAccess(blobs=BlobStore(str(tmp_path / "blobs")), files_root=root.resolve())


def _write(access: SourceAccess, name: str, content: bytes | str) -> str:
    assert access.files_root is not None
    path = access.files_root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def _write_parquet(access: SourceAccess, name: str, table: Any, rows: int = 100) -> str:
    assert access.files_root is not None
    pq.write_table(table, access.files_root / name, row_group_size=rows)
    return name


def _all(source: MapSource | str, access: SourceAccess, skip: int = 0) -> list[Any]:
    given = MapSource(uri=source) if isinstance(source, str) else source
    items: list[Any] = []
    with closing(open_source(given, access)) as stream:
        stream.skip(skip)
        while taken := stream.read(3, MIB):
            items += [msgspec.json.decode(item) for item in taken]
    return items


# --- formats ------------------------------------------------------------------------------------------


def test_json_lines_give_every_line_that_is_not_empty(access: SourceAccess) -> None:
    name = _write(access, "in.jsonl", '\ufeff{"a": 1}\r\n\n[2]\n"drei"\nnull')
    assert _all(name, access) == [{"a": 1}, [2], "drei", None]


def test_a_line_that_is_no_json_is_named(access: SourceAccess) -> None:
    name = _write(access, "in.jsonl", b'{"a": 1}\n\n{"a": \n')
    with pytest.raises(SourceFault, match=r"in\.jsonl, line 3: not a JSON value"):
        _all(name, access)
    name = _write(access, "latin.jsonl", '"ä"\n'.encode("latin-1"))
    with pytest.raises(SourceFault, match=r"latin\.jsonl, line 1: not a JSON value"):
        _all(name, access)


def test_a_line_above_the_bound_is_named(access: SourceAccess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_formats, "LINE_BYTES_MAX", 100)
    name = _write(access, "in.jsonl", "1\n" + '"' + "x" * 200 + '"\n')
    with pytest.raises(SourceFault, match=r"in\.jsonl, line 2: longer than 100 bytes"):
        _all(name, access)


def test_csv_gives_objects_of_texts(access: SourceAccess) -> None:
    name = _write(access, "in.csv", '\ufeffid,name\r\n1,"a ""b"",\nc"\r\n\r\n2,\r\n')
    assert _all(name, access) == [{"id": "1", "name": 'a "b",\nc'}, {"id": "2", "name": ""}]
    assert _all(_write(access, "in.tsv", "a\tb\n1\t2,3\n"), access) == [{"a": "1", "b": "2,3"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"in\.csv: no header row"),
        (b"a,,c\n", r"in\.csv, line 1: the header row must name every column"),
        (b"a,b,a\n", r"in\.csv, line 1: the header row names 'a' twice"),
        (b"a,b\n1,2\n\n3\n", r"in\.csv, line 4: 1 fields where the header has 2"),
        (b'a\n"1"2\n', r"in\.csv, line 2: "),
        (b"a\n\xff\n", r"in\.csv, line 2: not UTF-8"),
    ],
)
def test_a_fault_of_a_csv_file_names_its_line(access: SourceAccess, content: bytes, message: str) -> None:
    with pytest.raises(SourceFault, match=message):
        _all(_write(access, "in.csv", content), access)


def test_a_json_array_keeps_every_digit(access: SourceAccess) -> None:
    name = _write(access, "in.json", b' \n [1, 123456789012345678901, 0.1, {"a": [null, true]}, "\\u00fc"] ')
    with closing(open_source(MapSource(uri=name), access)) as stream:
        lines = [bytes(item).decode() for item in stream.read(10, MIB)]
    assert lines == ["1", "123456789012345678901", "0.1", '{"a": [null, true]}', '"\\u00fc"']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}', "the file is not a JSON array"),
        (b"[1, 2", "the file ends inside the array"),
        (b"[1, tru]", "element 2: not a JSON value"),
    ],
)
def test_a_fault_of_a_json_array_names_its_element(
    access: SourceAccess, content: bytes, message: str
) -> None:
    with pytest.raises(SourceFault, match=f"in.json[:,] {message}"):
        _all(_write(access, "in.json", content), access)


def test_an_element_above_the_bound_is_refused_before_it_is_whole(
    access: SourceAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_formats, "LINE_BYTES_MAX", 200_000)
    name = _write(access, "in.json", '[1,"' + "x" * 1_000_000)
    with pytest.raises(SourceFault, match="element 2 has more than 200000 bytes"):
        _all(name, access)


def test_parquet_gives_rows_and_skips_row_groups(access: SourceAccess) -> None:
    table = pa.table({"id": list(range(1_000)), "name": [f"n{n}" for n in range(1_000)]})
    name = _write_parquet(access, "in.parquet", table)
    items = _all(name, access)
    assert (len(items), items[0], items[-1]) == (1_000, {"id": 0, "name": "n0"}, {"id": 999, "name": "n999"})
    assert _all(name, access, skip=950) == items[950:]
    with closing(open_source(MapSource(uri=name), access)) as stream:
        assert stream.total == 1_000


def test_what_is_no_parquet_is_named(access: SourceAccess) -> None:
    with pytest.raises(SourceFault, match=r"in\.parquet: not a Parquet file"):
        _all(_write(access, "in.parquet", b"PAR1 but not really"), access)


def test_parquet_without_its_library_says_what_to_install(
    access: SourceAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = _write(access, "in.parquet", b"")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(optional_libraries.NotInstalled, match=r"install heliograph\[parquet\]"):
        _all(name, access)


def test_gzipped_text_is_read_as_it_comes(access: SourceAccess) -> None:
    whole = gzip.compress(b'{"a":1}\n{"a":2}\n')
    assert _all(_write(access, "in.jsonl.gz", whole), access) == [{"a": 1}, {"a": 2}]
    assert _all(MapSource(uri=_write(access, "in.log.gz", whole), format="jsonl"), access) == [
        {"a": 1},
        {"a": 2},
    ]
    with pytest.raises(SourceFault, match="not a whole gzip file"):
        _all(_write(access, "cut.jsonl.gz", whole[:-9]), access)


def test_the_format_given_goes_before_the_name(access: SourceAccess) -> None:
    name = _write(access, "in.txt", "1\n2\n")
    assert _all(MapSource(uri=name, format="jsonl"), access) == [1, 2]
    with pytest.raises(SourceFault, match=r"in\.txt: the name does not tell the format"):
        _all(name, access)


# --- streams ------------------------------------------------------------------------------------------


def test_a_read_ends_at_the_count_or_the_bytes(access: SourceAccess) -> None:
    name = _write(access, "in.jsonl", "".join(f'"{n:08}"\n' for n in range(10)))
    with closing(open_source(MapSource(uri=name), access)) as stream:
        assert len(stream.read(3, MIB)) == 3
        assert len(stream.read(10, 25)) == 3  # the item that reaches the bound still comes along
        stream.skip(2)
        assert [bytes(item) for item in stream.read(10, MIB)] == [b'"00000008"', b'"00000009"']
        assert stream.read(1, MIB) == []


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv"])
def test_lines_are_counted_only_where_each_is_an_item(access: SourceAccess, name: str) -> None:
    header = "" if name == "in.jsonl" else "a\n"

    def total(lines: str) -> int | None:
        _write(access, name, header + lines)
        with closing(open_source(MapSource(uri=name), access)) as stream:
            return stream.total

    assert total("1\n2\n3") == 3
    assert total("1\n2\n3\n") == 3
    assert total("1\n\n2\n") is None
    assert total('"a"\n') == (1 if name == "in.jsonl" else None)


def test_shards_share_out_every_item_once(access: SourceAccess) -> None:
    name = _write(access, "in.jsonl", "".join(f"{n}\n" for n in range(11)))
    shards = [MapSource(uri=name, shard=(index, 3)) for index in range(3)]
    assert [_all(shard, access) for shard in shards] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8]]
    assert _all(shards[1], access, skip=2) == [7, 10]
    opened = [open_source(shard, access) for shard in shards]
    assert [stream.total for stream in opened] == [4, 4, 3]
    assert len({stream.fingerprint for stream in opened}) == 3


def test_a_changed_file_has_another_fingerprint_and_is_not_read_on(access: SourceAccess) -> None:
    name = _write(access, "in.jsonl", "1\n2\n")
    before = open_source(MapSource(uri=name), access)
    assert open_source(MapSource(uri=name), access).fingerprint == before.fingerprint
    _write(access, "in.jsonl", "1\n2\n3\n")
    assert open_source(MapSource(uri=name), access).fingerprint != before.fingerprint
    with pytest.raises(SourceFault, match=r"in\.jsonl changed since it was first looked at"):
        before.read(1, MIB)


def test_a_stream_that_failed_does_not_look_like_one_at_its_end(access: SourceAccess) -> None:
    name = _write(access, "in.jsonl", "1\n2\nnul\n")
    with closing(open_source(MapSource(uri=name), access)) as stream:
        with pytest.raises(SourceFault, match="line 3"):
            stream.read(10, MIB)
        for _ in range(2):
            with pytest.raises(SourceFault, match="open the source again"):
                stream.read(10, MIB)


def test_a_closed_stream_is_at_its_end(access: SourceAccess) -> None:
    stream = open_source(MapSource(uri=_write(access, "in.jsonl", "1\n2\n")), access)
    stream.read(1, MIB)
    stream.close()
    stream.close()
    assert stream.read(1, MIB) == []


# --- patterns -----------------------------------------------------------------------------------------


def test_files_of_records_follow_each_other_by_name(access: SourceAccess) -> None:
    _write(access, "day/2.jsonl", "3\n4\n")
    _write(access, "day/1.csv", "a\n1\n2\n")
    _write_parquet(access, "day/3.parquet", pa.table({"a": [5]}))
    _write(access, "day/.hidden.jsonl", "0\n")
    assert _all("day/*", access) == [{"a": "1"}, {"a": "2"}, 3, 4, {"a": 5}]
    assert _all("**/*", access, skip=3) == [4, {"a": 5}]


def test_other_files_are_items_themselves(access: SourceAccess) -> None:
    _write(access, "texts/b.txt", "bb")
    _write(access, "texts/deep/a.txt", "a")
    expected = [{"uri": "texts/b.txt", "size": 2}, {"uri": "texts/deep/a.txt", "size": 1}]
    assert _all("texts/**/*.txt", access) == expected
    with closing(open_source(MapSource(uri="texts/**/*.txt"), access)) as stream:
        assert stream.total == 2


def test_a_mixed_pattern_an_empty_one_and_a_folder_are_refused(access: SourceAccess) -> None:
    _write(access, "mixed/a.jsonl", "1\n")
    _write(access, "mixed/readme.txt", "")
    with pytest.raises(SourceFault, match=r"files of records \(mixed/a\.jsonl\) and others"):
        _all("mixed/*", access)
    with pytest.raises(FileNotFoundError, match="no file matches"):
        _all("mixed/*.csv", access)
    with pytest.raises(SourceFault, match=r"is a folder: write mixed/\* for"):
        _all("mixed", access)


# --- what nobody allowed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri", ["../out.jsonl", "/etc/hostname", "a/../../out.jsonl", "../*.jsonl", "/etc/*"]
)
def test_nothing_outside_of_the_files_root_is_read(access: SourceAccess, tmp_path: Path, uri: str) -> None:
    (tmp_path / "out.jsonl").write_text("1\n")
    with pytest.raises(PermissionError):
        _all(uri, access)


def test_a_link_out_of_the_files_root_is_not_followed(access: SourceAccess, tmp_path: Path) -> None:
    assert access.files_root is not None
    (tmp_path / "out.jsonl").write_text("1\n")
    (access.files_root / "link.jsonl").symlink_to(tmp_path / "out.jsonl")
    for uri in ("link.jsonl", "*.jsonl"):
        with pytest.raises(PermissionError, match="outside of the files root"):
            _all(uri, access)


def test_without_a_files_root_no_file_is_read(access: SourceAccess) -> None:
    with pytest.raises(PermissionError, match="HELIOGRAPH_FILES_ROOT"):
        _all("in.jsonl", msgspec.structs.replace(access, files_root=None))


def test_other_storages_are_read_below_an_allowed_prefix_only(access: SourceAccess) -> None:
    memory: Any = cast("Any", fsspec).filesystem("memory")
    memory.pipe("/good/a.jsonl", b"1\n2\n")
    memory.pipe("/good/b.jsonl", b"3\n")
    memory.pipe("/goodbye/c.jsonl", b"4\n")
    allowed = msgspec.structs.replace(access, sources_allow=("memory://good", "file:///"))
    assert _all("memory://good/a.jsonl", allowed) == [1, 2]
    assert _all("memory://good/*.jsonl", allowed) == [1, 2, 3]
    refused = ["memory://goodbye/c.jsonl", "memory://good/../goodbye/c.jsonl", "file:///etc/hostname"]
    for uri in [*refused, "simplecache::memory://good/a.jsonl"]:
        with pytest.raises(PermissionError, match="HELIOGRAPH_SOURCES_ALLOW"):
            _all(uri, allowed)
    with pytest.raises(PermissionError):
        _all("memory://good/a.jsonl", access)


def test_an_artifact_of_the_execution_is_read_and_no_other(access: SourceAccess) -> None:
    ref = access.blobs.put_bytes(b"a\n1\n", "text/csv")
    file = FileDescriptor(
        file_id="f1",
        name="in",
        content_type="text/csv",
        size=ref.size,
        sha256=ref.sha256,
        uri="artifact://e/f1",
    )
    given = msgspec.structs.replace(access, files=(file,))
    assert _all("artifact://e/f1", given) == [{"a": "1"}]
    with pytest.raises(FileNotFoundError, match="not a file of this execution"):
        _all("artifact://e/f2", given)


# --- values -------------------------------------------------------------------------------------------


def test_another_maps_results_are_a_source(access: SourceAccess) -> None:
    refs = [datasets.write_lines(access.blobs, [b"%d" % n for n in part]) for part in ((0, 1), (2, 3, 4))]
    parts = [Part(first=0, items=2, ref=refs[0]), Part(first=2, items=3, ref=refs[1])]
    dataset = datasets.dataset_value(datasets.write_dataset(access.blobs, parts))
    assert _all(MapSource(dataset=dataset), access) == [0, 1, 2, 3, 4]
    assert _all(MapSource(dataset=dataset), access, skip=3) == [3, 4]
    with closing(open_source(MapSource(dataset=dataset, shard=(1, 2)), access)) as stream:
        assert (stream.total, len(stream.read(9, MIB))) == (2, 2)


def test_a_stored_value_with_items_is_a_source(access: SourceAccess) -> None:
    array = values.marker(access.blobs.put_bytes(b'[{"a":1}, 2]', "application/json"))
    assert _all(MapSource(dataset=array), access) == [{"a": 1}, 2]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, pa.schema([("a", pa.int64())])) as writer:
        writer.write_table(pa.table({"a": list(range(1_000))}))
    table = values.marker(access.blobs.put_bytes(sink.getvalue().to_pybytes(), values.ARROW_STREAM))
    assert _all(MapSource(dataset=table), access, skip=998) == [{"a": 998}, {"a": 999}]
    picture = values.marker(access.blobs.put_bytes(b"...", "image/png"))
    with pytest.raises(SourceFault, match="a value of type image/png has no items"):
        _all(MapSource(dataset=picture), access)
    with pytest.raises(SourceFault, match="the source gives no items"):
        _all(MapSource(dataset={"items": [1]}), access)


# --- web servers ----------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    """Serves ``content``; cuts the connection after ``cut`` bytes while ``cuts`` last."""

    content = b""
    etag = '"1"'
    cut = 0
    cuts = 0
    ranges: list[str]


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = cast("_Server", self.server)
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/in.jsonl")
            self.end_headers()
            return
        start = 0
        wanted = self.headers.get("Range")
        if wanted:
            server.ranges.append(wanted)
        if wanted and self.headers.get("If-Range") == server.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header(
                "Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            )
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        # Before the headers are sent: whoever has them may tell this server to cut what comes later.
        if server.cuts and len(body) > server.cut:
            server.cuts -= 1
            body = body[: server.cut]
        self.end_headers()
        try:
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # whoever asked wanted the head only

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's name
        """Nothing: the tests' output is theirs."""


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.ranges = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def _url(server: _Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{path}"


def test_a_file_of_a_web_server_is_read_through_the_egress_rule(
    access: SourceAccess, server: _Server
) -> None:
    server.content = b"1\n2\n3\n"
    allowed = msgspec.structs.replace(access, egress_allow="127.0.0.1")
    assert _all(_url(server, "in.jsonl?token=x"), allowed) == [1, 2, 3]
    with pytest.raises(EgressRefused):
        _all(_url(server, "in.jsonl"), access)
    with pytest.raises(SourceFault, match="answered 302: redirects are not followed"):
        _all(_url(server, "moved.jsonl"), allowed)


def test_reading_goes_on_where_a_connection_broke(
    access: SourceAccess, server: _Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.http_file.RETRY_SECONDS", 0.0)
    server.content = b"".join(b"%d\n" % n for n in range(100_000))
    stream = open_source(
        MapSource(uri=_url(server, "in.jsonl")), msgspec.structs.replace(access, egress_allow="127.0.0.1")
    )
    server.cut, server.cuts = 200_000, 2
    with closing(stream):
        items = [item for _ in range(200) for item in stream.read(1_000, MIB)]
    assert [int(bytes(item)) for item in items] == list(range(100_000))
    assert server.ranges == ["bytes=200000-", "bytes=400000-"]


def test_a_file_that_changes_on_the_server_is_not_read_on(access: SourceAccess, server: _Server) -> None:
    allowed = msgspec.structs.replace(access, egress_allow="127.0.0.1")
    server.content = b"1\n"
    with closing(open_source(MapSource(uri=_url(server, "in.jsonl")), allowed)) as stream:
        server.etag = '"2"'
        with pytest.raises(SourceFault, match="changed"):
            stream.read(1, MIB)
        assert open_source(MapSource(uri=_url(server, "in.jsonl")), allowed).fingerprint != stream.fingerprint


def test_parquet_of_a_web_server_is_read(access: SourceAccess, server: _Server, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "x.parquet")
    server.content = (tmp_path / "x.parquet").read_bytes()
    allowed = msgspec.structs.replace(access, egress_allow="127.0.0.1")
    assert _all(_url(server, "x.parquet"), allowed) == [{"a": 1}, {"a": 2}]
    assert _all(_url(server, "x.parquet"), allowed, skip=1) == [{"a": 2}]


# --- memory -------------------------------------------------------------------------------------------

_READ_ALL = """
import resource, sys
from pathlib import Path
from actors.item_sources import SourceAccess, open_source
from runtime.blob_store import BlobStore
from runtime.plan import MapSource

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

access = SourceAccess(blobs=BlobStore(sys.argv[1] + "/blobs"), files_root=Path(sys.argv[1]).resolve())
for name in sys.argv[2:]:
    stream = open_source(MapSource(uri=name), access)
    read = len(stream.read(1000, 1 << 20))
    before = peak_mib()
    while items := stream.read(1000, 1 << 20):
        read += len(items)
    stream.close()
    print(name, read, round(peak_mib() - before, 1))
"""


@pytest.mark.slow
def test_memory_stays_flat_while_a_file_much_larger_is_read(access: SourceAccess) -> None:
    assert access.files_root is not None
    root = access.files_root
    text = "x" * 950
    lines = "".join(f'{{"id":{n},"text":"{text}"}}\n' for n in range(1_000)).encode()
    (root / "in.jsonl").write_bytes(lines * 30)
    (root / "in.json").write_bytes(b"[" + b",".join(lines.splitlines() * 30) + b"]")
    (root / "in.csv").write_bytes(
        b"id,text\n" + b"".join(b"%d,%b\n" % (n, text.encode()) for n in range(30_000))
    )
    table = pa.table({"id": list(range(30_000)), "text": [f"{n}{text}" for n in range(30_000)]})
    _write_parquet(access, "in.parquet", table, rows=30_000)
    names = ["in.jsonl", "in.csv", "in.json", "in.parquet"]
    ran = subprocess.run(
        [sys.executable, "-c", _READ_ALL, str(root), *names],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(item_sources.__file__).parents[1],
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    for line in ran.stdout.splitlines():
        name, read, growth = line.split()
        assert int(read) == 30_000, name
        assert (root / name).stat().st_size > 20 * MIB or name == "in.parquet"
        assert float(growth) < 8, f"{name}: {growth} MiB more while 28 MiB were read"
