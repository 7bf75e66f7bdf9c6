"""int8 activations in the layout that kernels write and read."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from mistral_portable_numba.compiler.isa import Isa
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

    def laid_out(self, isa: Isa) -> Memories:
        """The layout for an instruction set; padding is NaN."""
        tokens, columns = self.codes.shape
        memories, most = blank_codes(tokens, columns), isa.tokens
        blocks, *sums = _views(memories, tokens, columns, isa)
        for token in range(tokens):
            group, t = divmod(token, token_group(tokens, most))
            fours = self.codes[token].reshape(-1, 4)
            for block in range(-(-columns // 128)):
                some = fours[32 * block : 32 * block + 32]
                blocks["codes"][group, block, : len(some), t] = some
                blocks["scale"][group, block, t] = self.scales[token, block]
            for view, step in zip(sums, (32, 16), strict=True):
                totals = self.sums(step)[token].reshape(-1, 32 // step)
                view["sum"][group, :, :, t] = totals
                if not isa.words:
                    view["start"][group, :, :, t] = -START_ZEROS[step] * totals
                    continue
                halves = self.codes[token].astype(np.int16).reshape(-1, 32 // step, step // 4, 2, 2).sum(axis=(2, 4))
                view["start"][group, :, :, t] = -START_ZEROS[step] * halves
                if step == 16:
                    view["pairs"][group, :, t] = totals
                else:  # a pair lies where 64 columns begin
                    view["pairs"][group, ::2, t, 0] = totals[::2, 0]
                    view["pairs"][group, : len(totals) // 2 * 2 : 2, t, 1] = totals[1::2, 0]
        return memories

    def sums(self, step: int) -> NDArray[np.int64]:
        """The sums of each `step` columns."""
        tokens, columns = self.codes.shape
        return np.asarray(self.codes.astype(np.int64).reshape(tokens, columns // step, step).sum(axis=-1))

    @staticmethod
    def read(memories: Memories, tokens: int, columns: int, isa: Isa) -> "Codes":
        """Read the codes and scales that a kernel wrote; `laid_out` then gives all that it should have written."""
        blocks = _views(memories, tokens, columns, isa)[0]
        codes = blocks["codes"].transpose(0, 3, 1, 2, 4).reshape(-1, 128 * blocks.shape[1])
        scales = blocks["scale"].transpose(0, 2, 1).reshape(-1, blocks.shape[1])
        return Codes(codes[:tokens, :columns].copy(), scales[:tokens].copy())


def blank_codes(tokens: int, columns: int) -> Memories:
    """Memories full of NaN."""
    return [np.full((round_up(tokens, TOKEN_GROUP), size), 0xFF, np.uint8) for size in activation_bytes(columns)]


def _views(memories: Memories, tokens: int, columns: int, isa: Isa) -> list[NDArray[Any]]:
    """Views of the memories as structures, [groups, blocks or sub-blocks]."""
    group = token_group(tokens, isa.tokens)
    sums = (activation_sums(group, step, isa.words) for step in (32, 16))
    counts = (-(-columns // 128), columns // 32, columns // 32)
    views = []
    for memory, kind, count in zip(memories, (activation_block(group), *sums), counts, strict=True):
        groups = memory.reshape(-1)[: -(-tokens // group) * group * memory.shape[1]].reshape(
            -1, group * memory.shape[1]
        )
        views.append(groups[:, : count * kind.itemsize].view(kind))
    return views
