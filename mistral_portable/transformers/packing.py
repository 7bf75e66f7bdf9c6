"""Packing: rows of a batch that hold several texts side by side, each of which runs as a row of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.config import MistralConfig
from mistral_portable.errors import InputError
from mistral_portable.transformers.batch import Batch
from mistral_portable.transformers.decoder import ATTENTIONS, Outputs

__all__ = ["Packing", "masked_texts", "restarted_texts"]

_HIDDEN = -6e4  # numbers up to here hide a key: float16's least is -65504
_ONLY = (
    "attention_mask of four axes: each token must see all tokens before it of its own text and window, and no others; "
    "continue one prompt in several ways with copies of its cache, copy.deepcopy(past_key_values)"
)


@dataclass(frozen=True)
class Packing:
    """The texts of a batch [B, T]. rows, columns: for each text its row, and the columns of its tokens.

    Example: position_ids [[0, 1, 2, 0, 1]] are two texts of row 0, in the columns 0, 1, 2 and 3, 4.
    """

    shape: tuple[int, int]
    rows: Sequence[int]
    columns: Sequence[NDArray[np.intp]]

    @property
    def is_packed(self) -> bool:
        """Whether a row holds several texts."""
        return len({*self.rows}) < len(self.rows)

    @property
    def mask(self) -> NDArray[np.int64]:
        """int64 [B, T]: 1 for tokens, 0 for padding."""
        mask = np.zeros(self.shape, np.int64)
        for row, columns in zip(self.rows, self.columns, strict=True):
            mask[row, columns] = 1
        return mask

    @property
    def width(self) -> int:
        """The tokens of the longest text."""
        return max(map(len, self.columns))

    def unpacked(self, batch: Batch) -> Batch:
        """The batch with a row for each text, its tokens in the first columns."""
        tokens, embeds = [], np.zeros((len(self.rows), self.width, 0), np.float32)
        if batch.embeds is not None:
            embeds = np.zeros((len(self.rows), self.width, batch.embeds.shape[2]), np.float32)
        for text, (row, columns) in enumerate(zip(self.rows, self.columns, strict=True)):
            places = np.searchsorted(batch.columns[row], columns)
            tokens.append([batch.tokens[row][place] for place in places])
            if batch.embeds is not None:
                embeds[text, : len(columns)] = batch.embeds[row, columns]
        first = [np.arange(len(columns)) for columns in self.columns]
        return Batch((len(self.rows), self.width), tokens, first, None if batch.embeds is None else embeds)

    def packed(self, outputs: Outputs) -> Outputs:
        """The outputs [texts, width, ...] of the texts at their places in the batch: [B, T, ...]."""
        return {name: self._packed(name, array) for name, array in outputs.items()}

    def _packed(self, name: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
        rows, length = self.shape
        if name.startswith(f"{ATTENTIONS}."):  # [texts, heads, queries, keys]
            whole = np.zeros((rows, array.shape[1], length, length), np.float32)
            for text, (row, columns) in enumerate(zip(self.rows, self.columns, strict=True)):
                size = len(columns)
                whole[row, :, columns[:, None], columns] = array[text, :, :size, :size].transpose(1, 2, 0)
            return whole
        out = np.zeros((rows, length, *array.shape[2:]), np.float32)
        for text, (row, columns) in enumerate(zip(self.rows, self.columns, strict=True)):
            out[row, columns] = array[text, : len(columns)]
        return out


def restarted_texts(position_ids: NDArray[Any], shape: tuple[int, int]) -> Packing | None:
    """The texts of rows whose positions begin anew at 0, by position_ids [B or 1, T]; None if none does.

    Source: transformers' `find_packed_sequence_indices`. Other gaps are left to `read_batch`, which refuses them.
    """
    if not shape[1] or position_ids.shape not in (shape, (1, shape[1])) or position_ids.dtype.kind not in "iu":
        return None
    positions = np.broadcast_to(position_ids, shape)
    begins = positions == 0
    begins[:, 0] = True
    steady = np.diff(positions.astype(np.int64), axis=1) == 1
    if begins[:, 1:].any() and (steady | begins[:, 1:]).all():
        return _texts(begins, np.ones(shape, np.bool_))
    return None


def masked_texts(
    mask: NDArray[Any], position_ids: NDArray[Any] | None, config: MistralConfig, shape: tuple[int, int]
) -> Packing:
    """The texts of a mask of four axes, [B or 1, 1, T, T]: bools, True for the keys that a query sees, or numbers that
    are added to its scores, 0 or less than -60000.

    A token that sees nothing is padding. Raises InputError for other masks than those of texts side by side, for
    position_ids that are not consecutive in a text and, with a query scale, do not begin at 0.
    """
    rows, length = shape
    if mask.shape not in ((rows, 1, length, length), (1, 1, length, length)):
        raise InputError(f"attention_mask has the shape {list(mask.shape)}: pass [{rows}, 1, {length}, {length}]")
    if mask.dtype.kind == "f":
        if not ((mask == 0) | (mask <= _HIDDEN)).all():
            raise InputError("attention_mask of four axes adds other numbers than 0 and the least: leave them out")
        mask = mask == 0
    elif mask.dtype.kind != "b":
        raise InputError(f"attention_mask of four axes is {mask.dtype}: pass bools, or floats that are added")
    seen = np.broadcast_to(mask[:, 0], (rows, length, length))
    kept = np.diagonal(seen, axis1=1, axis2=2)
    begins = np.zeros((rows, length), np.bool_)
    for row, own in enumerate(kept):
        tokens = np.flatnonzero(own)
        begins[row, tokens] = np.append(True, ~seen[row, tokens[1:], tokens[:-1]])[: len(tokens)]
    packing = _texts(begins, kept)
    for window in {*config.layer_windows}:
        if not np.array_equal(_seen_by(packing, window), seen):
            raise InputError(_ONLY)
    _require_positions(packing, position_ids, config)
    return packing


def _texts(begins: NDArray[np.bool_], kept: NDArray[np.bool_]) -> Packing:
    """The texts that begin where `begins` says, of the tokens that are `kept`; both bool [B, T]."""
    rows, columns = [], []
    for row, (first, own) in enumerate(zip(begins, kept, strict=True)):
        tokens = np.flatnonzero(own)
        for text in np.split(tokens, np.flatnonzero(first[tokens])[1:]) if len(tokens) else ():
            rows.append(row)
            columns.append(text)
    return Packing((len(begins), begins.shape[1]), rows, columns)


def _seen_by(packing: Packing, window: int | None) -> NDArray[np.bool_]:
    """The keys that each query sees, bool [B, T, T]."""
    rows, length = packing.shape
    seen = np.zeros((rows, length, length), np.bool_)
    for row, columns in zip(packing.rows, packing.columns, strict=True):
        size = len(columns)
        own = np.tri(size, dtype=np.bool_) & ~np.tri(size, k=-(window or size), dtype=np.bool_)
        seen[row, columns[:, None], columns] = own
    return seen


def _require_positions(packing: Packing, position_ids: NDArray[Any] | None, config: MistralConfig) -> None:
    """Raise InputError unless positions count on in each text, from 0 where a query's scale depends on them."""
    rows, length = packing.shape
    positions = np.arange(length)[None] if position_ids is None else position_ids
    if positions.shape not in ((rows, length), (1, length)):
        raise InputError(f"position_ids has the shape {list(positions.shape)}: pass [{rows}, {length}]")
    whole = np.broadcast_to(positions, (rows, length))
    for row, columns in zip(packing.rows, packing.columns, strict=True):
        own = whole[row, columns].astype(np.int64)
        if (np.diff(own) != 1).any() or (config.query_scale and own[0] != 0):
            raise InputError("position_ids must count on from token to token in each text, from 0")
