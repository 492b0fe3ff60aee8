"""Files below one folder, and nowhere else: listed, read and changed for a model. Blocking: use a thread."""

import fnmatch
import os
import tempfile
from pathlib import Path

from actors.agents.tools.bound_tool import ToolFailed
from runtime.events import Json

FILE_BYTES_MAX = 2 * 1024 * 1024
LISTED_MAX = 2_000
TEXT_CHARS_MAX = 200_000


class WorkingCopy:
    """``root``: resolved once; nothing outside of it is touched. All raise ToolFailed."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def inside(self, path: str) -> Path:
        """The place that ``path`` names below the root; never through a link, never in ``.git``."""
        if "\0" in path or path.startswith(("/", "~")):
            raise ToolFailed(f"{path[:200]!r}: the path must be relative to the repository's root")
        place = Path(os.path.normpath(self._root / path))
        if not place.is_relative_to(self._root):
            raise ToolFailed(f"{path[:200]}: lies outside of the repository")
        parts = place.relative_to(self._root).parts
        # Some file systems take .GIT, or .git with a trailing dot or space, for the same folder.
        if any(part.lower().rstrip(". ") in (".git", "git~1") for part in parts):
            raise ToolFailed(f"{path[:200]}: git's own files can't be used")
        try:
            if place.resolve() != place:
                raise ToolFailed(f"{path[:200]}: leads through a link")
        except (OSError, RuntimeError):
            raise ToolFailed(f"{path[:200]}: can't be used") from None
        return place

    def list_files(self, path: str, pattern: str) -> Json:
        """Paths relative to the root, sorted, at most ``LISTED_MAX``."""
        start = self.inside(path)
        if not start.is_dir():
            raise ToolFailed(f"{path[:200]}: no such folder")
        found: list[Json] = []
        for parent, folders, names in os.walk(start):
            folders[:] = sorted(folder for folder in folders if folder.lower() != ".git")
            for name in sorted(names):
                relative = str(Path(parent, name).relative_to(self._root))
                if pattern and not fnmatch.fnmatch(name, pattern) and not fnmatch.fnmatch(relative, pattern):
                    continue
                if len(found) == LISTED_MAX:
                    return {"files": found, "truncated": True}
                found.append(relative)
        return {"files": found}

    def read_file(self, path: str, first_line: int, lines: int) -> Json:
        """The lines as they are; ``first_line`` counts from 1."""
        every = self._text(path).splitlines(keepends=True)
        text = "".join(every[first_line - 1 : first_line - 1 + lines])
        answer: dict[str, Json] = {
            "path": path,
            "first_line": first_line,
            "total_lines": len(every),
            "text": text[:TEXT_CHARS_MAX],
        }
        return answer | {"truncated": True} if len(text) > TEXT_CHARS_MAX else answer

    def edit_file(self, path: str, old_text: str, new_text: str) -> Json:
        """Replace ``old_text``, found exactly once, or create the file when it is empty.

        A change that is there already is no failure: the same edit may be made twice.
        """
        place = self.inside(path)
        if place == self._root or place.is_dir():
            raise ToolFailed(f"{path[:200]}: is a folder")
        if not old_text:
            return self._create(place, path, new_text)
        text = self._text(path)
        count = text.count(old_text)
        if count > 1:
            raise ToolFailed(f"{path[:200]}: old_text is in it {count} times; give more of what is around it")
        if count == 0:
            if new_text and new_text in text:
                return f"{path}: the change is there already"
            raise ToolFailed(f"{path[:200]}: old_text is not in it; read the file again")
        self._write(place, text.replace(old_text, new_text))
        return f"{path}: changed"

    def _create(self, place: Path, path: str, text: str) -> Json:
        if place.exists():
            if self._text(path) == text:
                return f"{path}: the file is there already"
            raise ToolFailed(f"{path[:200]}: is there already; give the old_text to be replaced")
        self._write(place, text)
        return f"{path}: created"

    def _text(self, path: str) -> str:
        place = self.inside(path)
        try:
            if not place.is_file():
                raise ToolFailed(f"{path[:200]}: no such file")
            if place.stat().st_size > FILE_BYTES_MAX:
                raise ToolFailed(f"{path[:200]}: is larger than {FILE_BYTES_MAX} bytes")
            return place.read_bytes().decode()
        except UnicodeDecodeError:
            raise ToolFailed(f"{path[:200]}: is no text") from None
        except OSError as error:
            raise ToolFailed(f"{path[:200]}: {error.strerror}") from None

    def _write(self, place: Path, text: str) -> None:
        """Whole or not at all: a call that is given up must not leave half a file."""
        data = text.encode("utf-8", "replace")
        if len(data) > FILE_BYTES_MAX:
            raise ToolFailed(f"{place.name}: would be larger than {FILE_BYTES_MAX} bytes")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            mode = place.stat().st_mode & 0o777 if place.exists() else 0o644
            # Beside the copy, so that no listing and no diff ever shows it.
            descriptor, beside = tempfile.mkstemp(dir=self._root.parent)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.chmod(beside, mode)
            os.replace(beside, place)
        except OSError as error:
            raise ToolFailed(f"{place.name}: can't be written: {error.strerror}") from None
