"""A wide map's results in a user's function: item after item, or as a table."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import msgspec

from actors.optional_libraries import pandas, pyarrow
from runtime.datasets import Dataset, ItemFailure, PartStore, iter_failures, iter_results

ROWS_AT_A_TIME = 10_000
"""Items that become one piece of a table."""


class DatasetReader:
    """Reads from the blob store while it is iterated; may be iterated any number of times.

    ``len()``: items, the failed ones included; ``failed``: how many have no result.
    """

    def __init__(self, dataset: Dataset, blobs: PartStore) -> None:
        self._dataset = dataset
        self._blobs = blobs
        self.failed = dataset.failed

    def __len__(self) -> int:
        return self._dataset.items

    def __iter__(self) -> Iterator[Any]:
        """Results in the order of items, None for a failed one. In memory is one block and one item.

        Raises: NotFound, Diverged, Unavailable of the storage.
        """
        return map(msgspec.json.decode, iter_results(self._blobs, self._dataset))

    def failures(self) -> Iterator[ItemFailure]:
        """What failed: index, error and item (encoded). Raises: as iterating."""
        return iter_failures(self._blobs, self._dataset)

    def to_arrow(self) -> Any:
        """All of it as a ``pyarrow.Table``, one row for each item, in memory as a whole.

        The fields of items that are objects are columns; other items stand in a column ``value``. A failed
        item is a row of nulls. Raises: NotInstalled; ValueError for columns whose values have no type in
        common; as iterating.
        """
        pa = pyarrow("tables")
        items = iter(self)
        pieces: list[Any] = []
        try:
            while rows := [_row(item) for item in islice(items, ROWS_AT_A_TIME)]:
                names = dict.fromkeys(name for row in rows for name in row)
                columns = {name: pa.array([row.get(name) for row in rows]) for name in names}
                # A table without columns would forget how many rows it has.
                pieces.append(pa.table(columns or {"value": pa.nulls(len(rows))}))
            return pa.concat_tables(pieces, promote_options="permissive") if pieces else pa.table({})
        except pa.ArrowException as error:
            raise ValueError(f"the items do not fit one table: {error}") from None

    def to_pandas(self) -> Any:
        """As ``to_arrow``, as a ``pandas.DataFrame``."""
        pandas("data frames")
        return self.to_arrow().to_pandas()


def _row(item: Any) -> dict[str, Any]:
    if item is None:
        return {}
    return cast("dict[str, Any]", item) if isinstance(item, dict) else {"value": item}
