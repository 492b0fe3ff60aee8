"""Code that travels with a flow: packages of modules as zip files, and what they require. Pure.

A package is named by the SHA-256 of its bytes, and ``build_package`` makes the same bytes of the same files,
so code that didn't change keeps its name, and with it the flow its version.
"""

import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Annotated

import msgspec

PACKAGE_BYTES_MAX = 64 * 1024 * 1024
"""Of the zip file."""

UNPACKED_BYTES_MAX = 512 * 1024 * 1024
FILES_MAX = 10_000
NAME_CHARS_MAX = 255
REQUIREMENTS_MAX = 100
MEDIA_TYPE = "application/zip"

OURS = frozenset({"runtime", "actors", "projections", "gateway", "ray", "msgspec"})
"""Top-level modules that worker processes are made of: a package that replaced one would break them."""

SHA256 = r"^[0-9a-f]{64}$"
REQUIREMENT = (
    r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?"
    r"(?:\[[A-Za-z0-9._-]+(?:,[A-Za-z0-9._-]+)*\])?"
    r"==[A-Za-z0-9.!+_-]{1,100}$"
)
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MODULE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


class Code(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a flow's functions are made of. ``package``: SHA-256 of an uploaded zip file; empty: none.

    ``requirements``: distributions with their exact versions (``name==1.2``, ``name[extra]==1.2``), so that
    a flow's version means the same code for ever.
    """

    package: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?$")] = ""
    requirements: Annotated[
        tuple[Annotated[str, msgspec.Meta(pattern=REQUIREMENT, max_length=250)], ...],
        msgspec.Meta(max_length=REQUIREMENTS_MAX),
    ] = ()

    @property
    def environment(self) -> str:
        """A short name of this code and no other."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]


def code_problems(code: Code) -> list[tuple[str, str]]:
    """The rules that types can't say and ``code`` breaks: field and rule."""
    found: list[tuple[str, str]] = []
    if not code.package and not code.requirements:
        found.append(("", "needs a package, requirements, or both"))
    seen: set[str] = set()
    for index, requirement in enumerate(code.requirements):
        name = re.split(r"[\[=]", requirement, maxsplit=1)[0]
        plain = re.sub(r"[-_.]+", "-", name).lower()
        if plain in OURS:
            found.append((f"requirements[{index}]", f"'{name}' is a part of the workers: theirs is used"))
        if plain in seen:
            found.append((f"requirements[{index}]", f"'{name}' stands twice"))
        seen.add(plain)
    return found


def build_package(files: Mapping[str, bytes]) -> bytes:
    """The zip file of modules by their path, e.g. ``{"shop/__init__.py": b"...", "prices.py": b"..."}``.

    Shape: the same bytes for the same files, whatever their order, whenever and wherever it is made.
    Raises: ValueError naming what breaks a rule of packages (see ``check_package``).
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # else it says on which system it was made
            archive.writestr(entry, files[name])
    data = buffer.getvalue()
    check_package(data)
    return data


def check_package(data: bytes) -> tuple[str, ...]:
    """The top-level modules of a package, in order.

    Raises: ValueError naming the first rule that it breaks.
    """
    if len(data) > PACKAGE_BYTES_MAX:
        raise ValueError(f"the package has {len(data)} bytes, at most {PACKAGE_BYTES_MAX}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ValueError(f"the package is no zip file: {error}") from None
    files = [entry for entry in entries if not entry.is_dir()]
    if not files:
        raise ValueError("the package has no files")
    if len(entries) > FILES_MAX:
        raise ValueError(f"the package has {len(entries)} entries, at most {FILES_MAX}")
    unpacked = sum(entry.file_size for entry in files)
    if unpacked > UNPACKED_BYTES_MAX:
        raise ValueError(f"the package unpacks to {unpacked} bytes, at most {UNPACKED_BYTES_MAX}")
    seen: set[str] = set()
    for entry in entries:
        _check_entry(entry)
        if entry.filename in seen:
            raise ValueError(f"{entry.filename!r} is in the package twice")
        seen.add(entry.filename)
    return _modules(entry.filename for entry in files)


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    path = PurePosixPath(name)
    if not name.isprintable() or len(name) > NAME_CHARS_MAX or "\\" in name or ":" in name:
        raise ValueError(f"{name[:NAME_CHARS_MAX]!r} is no path of a package: plain names and / only")
    # The name as it is written, too: PurePosixPath drops a "." by itself.
    if path.is_absolute() or ".." in path.parts or name != str(path) + "/" * entry.is_dir():
        raise ValueError(f"{name!r} does not lie inside of the package")
    kind = (entry.external_attr >> 16) & 0o170000
    if kind not in (0, 0o100000, 0o040000):
        raise ValueError(f"{name!r} is neither a file nor a folder")
    if entry.flag_bits & 1:
        raise ValueError(f"{name!r} is encrypted")


def _modules(names: Iterable[str]) -> tuple[str, ...]:
    """Top-level modules; refused: those that would take the place of the workers' own."""
    found: dict[str, None] = {}
    for name in names:
        path = PurePosixPath(name)
        top = path.parts[0] if len(path.parts) > 1 else path.stem if path.suffix == ".py" else ""
        if top in OURS:
            raise ValueError(f"{name!r} would replace the workers' own module '{top}': give it another name")
        if _MODULE.match(top):
            found[top] = None
    if not found:
        raise ValueError(
            "the package has no module: no file like name.py, and no folder with a module's name"
        )
    return tuple(sorted(found))
