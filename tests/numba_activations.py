"""int8 activations in the layout that kernels write and read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from mistral_portable_numba.compiler.isa import Isa
from mistral_portable_numba.layouts import (
    FEW_TILED,
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
        memories = blank_codes(tokens, columns)
        for first, codes, scales, *sums in _groups(memories, tokens, columns, isa):
            for t in range(min(tokens - first, scales.shape[1])):
                fours = self.codes[first + t].reshape(-1, 4)
                for half in range(-(-columns // 64)):
                    some = fours[16 * half : 16 * half + 16]
                    codes[half // 2, half % 2, : len(some), t] = some
                scales[:, t] = self.scales[first + t]
                for view, step in zip(sums, (32, 16), strict=True):
                    self._put_sums(view, step, first + t, t, isa.words)
        return memories

    def _put_sums(self, view: NDArray[Any], step: int, token: int, t: int, words: bool) -> None:
        totals = self.sums(step)[token].reshape(-1, 32 // step)
        view["sum"][:, :, t] = totals
        if words:
            halves = self.codes[token].astype(np.int16).reshape(-1, 32 // step, step // 4, 2, 2).sum(axis=(2, 4))
            view["start"][:, :, t] = -START_ZEROS[step] * halves
        else:
            view["start"][:, :, t] = -START_ZEROS[step] * totals
        if step == 16:
            view["pairs"][:, t] = totals
        else:  # a pair lies where 64 columns begin
            view["pairs"][::2, t, 0] = totals[::2, 0]
            view["pairs"][: len(totals) // 2 * 2 : 2, t, 1] = totals[1::2, 0]

    def sums(self, step: int) -> NDArray[np.int64]:
        """The sums of each `step` columns."""
        tokens, columns = self.codes.shape
        return np.asarray(self.codes.astype(np.int64).reshape(tokens, columns // step, step).sum(axis=-1))

    @staticmethod
    def read(memories: Memories, tokens: int, columns: int, isa: Isa) -> "Codes":
        """Read the codes and scales that a kernel wrote; `laid_out` then gives all that it should have written."""
        if not tokens:
            return Codes(np.zeros((0, columns), np.int8), np.zeros((0, -(-columns // 128)), np.float32))
        groups = list(_groups(memories, tokens, columns, isa))
        codes = np.concatenate([codes.transpose(3, 0, 1, 2, 4).reshape(codes.shape[3], -1) for _, codes, *_ in groups])
        scales = np.concatenate([scales.T for _, _, scales, *_ in groups])
        return Codes(codes[:tokens, :columns].copy(), scales[:tokens].copy())


def blank_codes(tokens: int, columns: int) -> Memories:
    """Memories full of NaN."""
    return [np.full((round_up(tokens, TOKEN_GROUP), size), 0xFF, np.uint8) for size in activation_bytes(columns)]


def _groups(memories: Memories, tokens: int, columns: int, isa: Isa) -> Iterator[tuple[Any, ...]]:
    """Views of each group: its first token, codes [blocks, 2, 16, n, 4], scales [blocks, n], and two arrays of sums."""
    size, tiled, blocks = (
        token_group(tokens, isa.tokens, isa.tiles),
        isa.tiles and tokens > FEW_TILED,
        -(-columns // 128),
    )
    for first in range(0, tokens, size):
        n = min(size, tokens - first) if tiled else size
        codes, *sums = (memory[first : first + n].reshape(-1) for memory in memories)
        views = [
            part[: columns // 32 * kind.itemsize].view(kind)
            for part, kind in zip(sums, (activation_sums(n, step, isa.words) for step in (32, 16)), strict=True)
        ]
        if tiled:  # codes are [64 columns, n, 16, 4], scales behind all of them
            halves = codes[: 128 * n * blocks].view(np.int8).reshape(blocks, 2, n, 16, 4)
            scales = codes[128 * n * blocks : 132 * n * blocks].view(np.float32).reshape(blocks, n)
            yield first, halves.transpose(0, 1, 3, 2, 4), scales, *views
        else:
            kind = activation_block(n)
            both = codes[: blocks * kind.itemsize].view(kind)
            yield first, both["codes"].reshape(blocks, 2, 16, n, 4), both["scale"], *views
