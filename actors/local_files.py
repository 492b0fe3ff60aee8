"""Files of this machine that nodes may read: those below the one folder an operator names."""

from pathlib import Path


def path_below(root: Path | None, uri: str) -> Path:
    """Where ``uri`` leads, links followed, given the resolved files root.

    Raises: PermissionError when there is no root, or when it leads out of it.
    """
    if root is None:
        raise PermissionError("reading files is off: set HELIOGRAPH_FILES_ROOT to allow a folder")
    path = (root / uri).resolve()
    if not path.is_relative_to(root):
        raise PermissionError(f"{uri} lies outside of the files root")
    return path
