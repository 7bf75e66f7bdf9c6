"""int8 activations in the layout that kernels write and read."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from mistral_portable_numba.layouts import (
    START_ZEROS,
    TOKEN_GROUP,
    activation_block,
    activation_bytes,
    activation_sums,
    round_up,
    token_group,
)
from numpy.typing import NDArray

__all__ = ["Codes", "blank_codes"]

Memories = list[NDArray[np.uint8]]
"""Memories of blocks, of sums over 32 columns and over 16: a row of bytes per token, in whole groups of tokens."""


@dataclass(frozen=True)
class Codes:
    """codes int8 [tokens, columns], scales float32 [tokens, columns / 128]."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]

    def laid_out(self, most: int) -> Memories:
        """The layout for an instruction set that takes `most` tokens at a time; padding is NaN."""
        tokens, columns = self.codes.shape
        memories = blank_codes(tokens, columns, most)
        blocks, *sums = _views(memories, tokens, columns, most)
        for token in range(tokens):
            group, t = divmod(token, token_group(tokens, most))
            fours = self.codes[token].reshape(-1, 4)
            for block in range(-(-columns // 128)):
                some = fours[32 * block : 32 * block + 32]
                blocks["codes"][group, block, : len(some), t] = some
                blocks["scale"][group, block, t] = self.scales[token, block]
            for view, step in zip(sums, (32, 16), strict=True):
                totals = self.sums(step)[token].reshape(-1, 32 // step)
                view["start"][group, :, :, t] = -START_ZEROS[step] * totals
                view["sum"][group, :, :, t] = totals
        return memories

    def sums(self, step: int) -> NDArray[np.int64]:
        """The sums of each `step` columns."""
        tokens, columns = self.codes.shape
        return np.asarray(self.codes.astype(np.int64).reshape(tokens, columns // step, step).sum(axis=-1))

    @staticmethod
    def read(memories: Memories, tokens: int, columns: int, most: int) -> "Codes":
        """Read the codes and scales that a kernel wrote; `laid_out` then gives all that it should have written."""
        blocks = _views(memories, tokens, columns, most)[0]
        codes = blocks["codes"].transpose(0, 3, 1, 2, 4).reshape(-1, 128 * blocks.shape[1])
        scales = blocks["scale"].transpose(0, 2, 1).reshape(-1, blocks.shape[1])
        return Codes(codes[:tokens, :columns].copy(), scales[:tokens].copy())


def blank_codes(tokens: int, columns: int, most: int) -> Memories:
    """Memories full of NaN."""
    return [np.full((round_up(tokens, TOKEN_GROUP), size), 0xFF, np.uint8) for size in activation_bytes(columns)]


def _views(memories: Memories, tokens: int, columns: int, most: int) -> list[NDArray[Any]]:
    """Views of the memories as structures, [groups, blocks or sub-blocks]."""
    group = token_group(tokens, most)
    kinds = (activation_block(group), activation_sums(group, 32), activation_sums(group, 16))
    views = []
    for memory, kind in zip(memories, kinds, strict=True):
        used = memory.reshape(-1)[: -(-tokens // group) * group * memory.shape[1]]
        views.append(used.view(kind).reshape(-1, group * memory.shape[1] // kind.itemsize))
    return views
