"""Integers of a saved lane: made for JSON, and checked when they come back."""

from collections.abc import Mapping
from typing import NamedTuple

from mistral_portable.cache.spec import CacheSpec
from mistral_portable.cache.table import Table, span
from mistral_portable.errors import CacheError

__all__ = ["SavedIntegers", "to_integers", "to_lane"]

SavedIntegers = Mapping[str, int | str]
"""`model`, `length` and `high`; for each layer group i `page_size.i`, `begin.i` and `pages.i` (their number)."""


class _Saved(NamedTuple):
    """Values of a saved lane. spans: for each layer group its first page, and the number of pages."""

    length: int
    high: int
    spans: tuple[tuple[int, int], ...]


def to_integers(model: str, spec: CacheSpec, length: int, high: int, needed: tuple[Table, ...]) -> SavedIntegers:
    """Describe a lane of the model with this fingerprint, whose next query needs these pages."""
    values: dict[str, int | str] = {"model": model, "length": length, "high": high}
    for index, (group, table) in enumerate(zip(spec.groups, needed, strict=True)):
        values |= {f"page_size.{index}": group.page_size, f"begin.{index}": table.begin}
        values[f"pages.{index}"] = len(table.pages)
    return values


def to_lane(model: str, spec: CacheSpec, saved: SavedIntegers) -> _Saved:
    """Read the values of `to_integers`.

    Raises CacheError if they are another model's, or their sizes are not this spec's.
    """
    if saved.get("model", "") != model:
        raise CacheError("the saved lane is of other weights: load the model that it was saved with")

    def integer(name: str) -> int:
        value = saved.get(name)
        return value if isinstance(value, int) else -1

    length, high, spans = integer("length"), integer("high"), list[tuple[int, int]]()
    if not 0 <= length <= high <= spec.max_context:
        raise CacheError(f"saved lane {dict(saved)} does not fit max_context={spec.max_context}")
    for index, group in enumerate(spec.groups):
        size = integer(f"page_size.{index}")
        if size != group.page_size:
            remedy = "set max_context and max_chunk alike" if group.ring else "load it on the executor that saved it"
            raise CacheError(f"saved lane has pages of {size} slots, these have {group.page_size}: {remedy}")
        spans.append((integer(f"begin.{index}"), integer(f"pages.{index}")))
        if spans[-1] != span(group, length):
            raise CacheError(f"saved lane {dict(saved)} does not fit window={group.window}")
    return _Saved(length, high, tuple(spans))
