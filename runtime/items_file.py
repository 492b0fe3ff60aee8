"""The items of a wide map that came with the execution, as a file of its, in place of the map's own source.

So a flow can be run again over only some items. The file's id names the map.
"""

from collections.abc import Iterable

from runtime.events import FileDescriptor
from runtime.ids import NodeId
from runtime.plan import MapSource


def items_file_id(node_id: NodeId | str) -> str:
    """No uploaded file gets such an id."""
    return f"items.{node_id}"


def given_items(files: Iterable[FileDescriptor], node_id: NodeId) -> MapSource | None:
    """The source that stands for the map's own; None when none was given."""
    wanted = items_file_id(node_id)
    uri = next((file.uri for file in files if file.file_id == wanted), None)
    return None if uri is None else MapSource(uri=uri, format="jsonl")
