"""Batch: a padded batch [B, T] as ragged rows of tokens and the columns that they come from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.config import MistralConfig
from mistral_portable.errors import InputError

__all__ = ["Batch", "read_batch"]


@dataclass(frozen=True)
class Batch:
    """A padded batch without its padding.

    shape: (B, T). tokens: for each row the ids that are not padding. columns: for each row their columns in 0 .. T - 1.
    embeds: float32 [B, T, hidden_size] in place of the tokens' embeddings; the ids are then 0.

    Example: ids [[0, 0, 7, 8], [5, 6, 7, 8]] with the mask [[0, 0, 1, 1], [1, 1, 1, 1]] are the tokens [7, 8] in the
    columns [2, 3], and [5, 6, 7, 8] in [0, 1, 2, 3].
    """

    shape: tuple[int, int]
    tokens: Sequence[Sequence[int]]
    columns: Sequence[NDArray[np.intp]]
    embeds: NDArray[np.float32] | None = None

    @property
    def kept(self) -> NDArray[np.bool_]:
        """bool [B, T]: False at padding."""
        kept = np.zeros(self.shape, np.bool_)
        for row, columns in zip(kept, self.columns, strict=True):
            row[columns] = True
        return kept

    def take(self, rows: Sequence[int]) -> "Batch":
        """A batch of these rows."""
        embeds = None if self.embeds is None else self.embeds[rows]
        tokens, columns = [self.tokens[row] for row in rows], [self.columns[row] for row in rows]
        return Batch((len(rows), self.shape[1]), tokens, columns, embeds)


def read_batch(
    inputs: NDArray[Any],
    attention_mask: NDArray[Any] | None,
    position_ids: NDArray[Any] | None,
    past: Sequence[NDArray[np.intp]],
    past_length: int,
    config: MistralConfig,
) -> Batch:
    """Check the inputs of a call and remove the padding.

    inputs: ids, integers [B, T], or floats [B, T, hidden_size] in place of their embeddings.
    attention_mask: 1 keep, 0 padding; [B, T], or [B, past_length + T], which must mask the past columns as they were.
    position_ids: [B, T] or [1, T]; those of tokens must be consecutive, after the row's past tokens, or by columns.
    past, past_length: the columns of a cache: for each row those that hold tokens, and how many there are.

    Raises InputError for other shapes and dtypes, ids outside the vocabulary, a mask with other values than 0 and 1 or
    another past, and positions with gaps.
    """
    embeds = _read_embeds(inputs, config.hidden_size) if inputs.ndim == 3 else None
    ids = np.zeros(inputs.shape[:2], np.int64) if embeds is not None else _read_ids(inputs, config.vocab_size)
    rows, length = ids.shape
    kept = np.ones((rows, length), np.bool_)
    if attention_mask is not None:
        if attention_mask.shape not in ((rows, past_length + length), (rows, length)):
            wanted = f"[{rows}, {past_length + length}]"
            raise InputError(f"attention_mask has the shape {list(attention_mask.shape)}: pass 0 and 1 as {wanted}")
        if attention_mask.dtype.kind not in "iubf" or not np.isin(attention_mask, (0, 1)).all():
            raise InputError("attention_mask holds other values than 0 and 1")
        kept = attention_mask[:, attention_mask.shape[1] - length :] != 0
        before = attention_mask[:, : attention_mask.shape[1] - length]
        if any(
            not np.array_equal(np.flatnonzero(row), some) for row, some in zip(before, past, strict=True) if row.size
        ):
            raise InputError("attention_mask: what is in past_key_values was masked otherwise; begin again")
    columns = [np.flatnonzero(row) for row in kept]
    if position_ids is not None:
        if position_ids.shape not in ((rows, length), (1, length)) or position_ids.dtype.kind not in "iu":
            raise InputError(
                f"position_ids is {position_ids.dtype} {list(position_ids.shape)}: pass [{rows}, {length}]"
            )
        _require_consecutive(np.broadcast_to(position_ids, (rows, length)), columns, past, past_length)
    tokens = [row[some].tolist() for row, some in zip(ids, columns, strict=True)]
    return Batch((rows, length), tokens, columns, embeds)


def _read_ids(ids: NDArray[Any], vocab_size: int) -> NDArray[Any]:
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or not ids.size:
        raise InputError(f"input_ids is {ids.dtype} {list(ids.shape)}: pass integers [batch, tokens]")
    if not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise InputError(f"input_ids: token id {wrong} is outside the vocabulary of {vocab_size}")
    return ids


def _read_embeds(embeds: NDArray[Any], hidden_size: int) -> NDArray[np.float32]:
    if embeds.dtype.kind != "f" or not embeds.size or embeds.shape[2] != hidden_size:
        wanted = f"floats [batch, tokens, {hidden_size}]"
        raise InputError(f"inputs_embeds is {embeds.dtype} {list(embeds.shape)}: pass {wanted}")
    return embeds.astype(np.float32)


def _require_consecutive(
    positions: NDArray[Any], columns: Sequence[NDArray[np.intp]], past: Sequence[NDArray[np.intp]], past_length: int
) -> None:
    """Raise InputError unless tokens are counted from the row's last token on, or by columns, padding included."""
    for row, some, before in zip(positions, columns, past, strict=True):
        found = row[some].astype(np.int64)
        begins = {len(before), past_length + int(some[0])} if len(some) else set()
        if np.any(np.diff(found) != 1) or (begins and int(found[0]) not in begins):
            raise InputError(
                "position_ids must count on from token to token in each row, as the cache does; leave them out"
            )
