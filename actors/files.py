"""``File``: a file as a result or an argument of a user's function."""

import mimetypes
import os

from runtime.values import is_media_type


class File:
    """A file and what is in it. As a result its content is stored; as an argument it is a copy.

    ``media_type``: guessed from the name when empty. As an argument the file is gone when the function has
    ended. Raises: ValueError when the name doesn't tell what is in the file, or it is none.
    """

    # No dataclass: the JSON encoder would write one as an object of its fields.
    __slots__ = ("media_type", "path")

    def __init__(self, path: str | os.PathLike[str], media_type: str = "") -> None:
        self.path = os.fspath(path)
        self.media_type = media_type or mimetypes.guess_type(self.path)[0] or ""
        if not self.media_type:
            raise ValueError(f"{self.path}: the name does not tell what is in it; give its media_type")
        if not is_media_type(self.media_type):
            raise ValueError(f"{self.media_type!r:.200} is not a media type")

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"File({self.path!r}, {self.media_type!r})"
