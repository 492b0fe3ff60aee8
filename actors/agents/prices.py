"""What models hold and cost: the table shipped with the package, and the operator's rows over it."""

from importlib.resources import files
from pathlib import Path

import msgspec
import yaml
from pydantic_ai.usage import RequestUsage

from runtime.commands import Usage

CONTEXT_TOKENS_ASSUMED = 128_000
"""Of a model without a row."""

_MILLION = 1_000_000


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """US dollars per million tokens. ``cache_read`` and ``cache_write`` None: as ``input``."""

    context_tokens: int = CONTEXT_TOKENS_ASSUMED
    input: float | None = None
    output: float | None = None
    cache_read: float | None = None
    cache_write: float | None = None


class PriceTable:
    def __init__(self, rows: dict[str, Row]) -> None:
        self._rows = rows

    def row(self, model: str) -> Row | None:
        """The model's, by its name: the longest one it begins with, the provider left out if need be."""
        for name in (model, model.rpartition(":")[2], model.rpartition("/")[2]):
            for length in range(len(name), 0, -1):
                found = self._rows.get(name[:length])
                if found is not None and (length == len(name) or name[length] in "-.:@_"):
                    return found
        return None

    def context_tokens(self, model: str) -> int:
        row = self.row(model)
        return CONTEXT_TOKENS_ASSUMED if row is None else row.context_tokens

    def usage(self, model: str, used: RequestUsage) -> Usage:
        """What one call took; its cost is known when the model has prices and the tokens were told."""
        row = self.row(model)
        tokens = Usage(
            model=model,
            input_tokens=used.input_tokens,
            output_tokens=used.output_tokens,
            cache_read_tokens=used.cache_read_tokens,
            cache_write_tokens=used.cache_write_tokens,
        )
        if row is None or row.input is None or row.output is None or used.unmeasured_requests:
            return tokens
        # Providers count cached tokens among those of the input.
        fresh = max(0, used.input_tokens - used.cache_read_tokens - used.cache_write_tokens)
        cost = (
            fresh * row.input
            + used.cache_read_tokens * (row.input if row.cache_read is None else row.cache_read)
            + used.cache_write_tokens * (row.input if row.cache_write is None else row.cache_write)
            + used.output_tokens * row.output
        )
        return msgspec.structs.replace(tokens, cost=cost / _MILLION, cost_known=True)


def read_table(own_file: str = "") -> PriceTable:
    """The shipped table with the rows of ``own_file`` over it. Blocking.

    Raises: OSError; ValueError naming the file and the fault.
    """
    rows = _parse(files("actors.agents").joinpath("models.yaml").read_text(), "models.yaml")
    if own_file:
        rows |= _parse(Path(own_file).read_text(encoding="utf-8"), own_file)
    return PriceTable(rows)


def _parse(text: str, name: str) -> dict[str, Row]:
    try:
        return msgspec.convert(yaml.safe_load(text) or {}, dict[str, Row])
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise ValueError(f"{name}: {error}") from None
