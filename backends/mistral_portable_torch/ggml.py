"""ggml blocks taken apart and unpacked with torch's operations, on any device, to the same bits as by `gguf.quants`.

Source of the layouts: ggml `ggml-common.h`, `dequantize_row_*` in `ggml-quants.c`. The function of a type takes uint8
[..., bytes per block] and returns its Parts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LAYOUTS", "SLICE", "Layout", "Parts", "in_slices", "level_table"]

SLICE = 2**24
"""Weights that are unpacked at a time: they go through float32, several times, in memory."""

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class Parts(NamedTuple):
    """The numbers in blocks, of which weights are made: scale * (code - offset) - minimum, or scale * levels[code].

    codes: uint8 [..., columns]. scales, minima: [..., groups], one for each group of columns; either float16, or small
    integers, to be multiplied by d and dmin, float16 [..., 1].
    """

    codes: Tensor
    scales: Tensor
    minima: Tensor | None = None
    d: Tensor | None = None
    dmin: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """A type. columns and bytes of a block. parts: uint8 [..., bytes] -> Parts.

    bits: of a code in each of the planes that Triton's kernels read (`planes.py`). offset: of codes. levels: the
    numbers that codes stand for, if these are no numbers themselves.
    """

    columns: int
    bytes: int
    parts: Callable[[Tensor], Parts]
    bits: tuple[int, ...]
    offset: int = 0
    levels: tuple[float, ...] = ()

    def rows(self, blocks: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 [..., O, bytes per row] -> [..., O, I] in `dtype`."""
        if blocks.ndim > 2:
            return self._unpacked(blocks).to(dtype)
        columns = blocks.shape[1] // self.bytes * self.columns
        return in_slices(lambda some: self._unpacked(blocks[some]), (len(blocks), columns), dtype, blocks.device)

    def _unpacked(self, blocks: Tensor) -> Tensor:
        return self.weights(self.parts(blocks.unflatten(-1, (-1, self.bytes)))).flatten(-2)

    def weights(self, parts: Parts) -> Tensor:
        """float32 [..., columns]"""
        weights = _at(self.levels, parts.codes) if self.levels else parts.codes.float()
        if self.offset:
            weights -= self.offset
        groups = weights.unflatten(-1, (parts.scales.shape[-1], -1))
        groups *= _products(parts.scales, parts.d)[..., None]
        if parts.minima is not None:
            groups -= _products(parts.minima, parts.dmin)[..., None]
        return weights


def in_slices(
    weights: Callable[[slice], Tensor], shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Make a matrix of float32 `weights` of some of its rows, SLICE weights at a time."""
    rows, columns = shape
    together = max(1, SLICE // columns)
    if rows <= together:
        return weights(slice(None)).to(dtype)
    out = torch.empty(shape, dtype=dtype, device=device)
    for begin in range(0, rows, together):
        some = slice(begin, begin + together)
        out[some] = weights(some)
    return out


def _products(numbers: Tensor, factor: Tensor | None) -> Tensor:
    return numbers.float() if factor is None else factor.float() * numbers.float()


def _half(blocks: Tensor, begin: int) -> Tensor:
    """The float16 number from byte `begin` on, [..., 1]."""
    return blocks[..., begin : begin + 2].contiguous().view(torch.float16)


def _shifted(packed: Tensor, shifts: range, bits: int) -> Tensor:
    """uint8 [..., n] -> [..., len(shifts) * n]: `bits` bits of every byte at the first shift, then at the next."""
    steps = torch.arange(shifts.start, shifts.stop, shifts.step, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None, :] >> steps[:, None]) & (2**bits - 1)).flatten(-2)


def _nibbles(packed: Tensor) -> Tensor:
    """The low nibbles of all bytes, then the high ones."""
    return _shifted(packed, range(0, 8, 4), 4)


def _fifth_bits(packed: Tensor) -> Tensor:
    """uint8 [..., 4] -> [..., 32]: the bits of a 32-bit word, each as 16 or 0."""
    steps = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[..., None] >> steps) & 1).flatten(-2) << 4


def _q4_0(blocks: Tensor) -> Parts:
    return Parts(_nibbles(blocks[..., 2:]), _half(blocks, 0))


def _q4_1(blocks: Tensor) -> Parts:
    return Parts(_nibbles(blocks[..., 4:]), _half(blocks, 0), -_half(blocks, 2))


def _q5_0(blocks: Tensor) -> Parts:
    return Parts(_nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6]), _half(blocks, 0))


def _q5_1(blocks: Tensor) -> Parts:
    return Parts(_nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8]), _half(blocks, 0), -_half(blocks, 2))


def _q8_0(blocks: Tensor) -> Parts:
    """Codes are int8: with the sign bit turned they are those of an offset of 128."""
    return Parts(blocks[..., 2:] ^ 128, _half(blocks, 0))


def _q2_k(blocks: Tensor) -> Parts:
    """16 bytes of scales and minima, 4 bits each; 64 of codes; d, dmin."""
    codes = _shifted(blocks[..., 16:80].unflatten(-1, (2, 32)), range(0, 8, 2), 2).flatten(-2)
    return Parts(codes, blocks[..., :16] & 15, blocks[..., :16] >> 4, _half(blocks, 80), _half(blocks, 82))


def _q3_k(blocks: Tensor) -> Parts:
    """32 bytes of third bits; 64 of codes; 12 of scales, 6 bits each with an offset of 32; d."""
    low = _shifted(blocks[..., 96:104], range(0, 8, 4), 4)
    high = _shifted(blocks[..., 104:108], range(0, 8, 2), 2)
    scales = (low | (high << 4)).view(torch.int8) - 32
    codes = _shifted(blocks[..., 32:96].unflatten(-1, (2, 32)), range(0, 8, 2), 2).flatten(-2)
    third = _shifted(blocks[..., :32], range(8), 1)
    return Parts(codes | (third << 2), scales, d=_half(blocks, 108))


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d, dmin, and 12 bytes of 6-bit numbers -> 8 scales and 8 minima, uint8 [..., 8]; d and dmin."""
    a, b, c = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = torch.cat([a & 63, (c & 15) | ((a >> 6) << 4)], -1)
    minima = torch.cat([b & 63, (c >> 4) | ((b >> 6) << 4)], -1)
    return scales, minima, _half(blocks, 0), _half(blocks, 2)


def _k_nibbles(packed: Tensor) -> Tensor:
    """uint8 [..., 128] -> [..., 256]: for every 32 bytes their low nibbles, then their high ones."""
    return _nibbles(packed.unflatten(-1, (4, 32))).flatten(-2)


def _q4_k(blocks: Tensor) -> Parts:
    return Parts(_k_nibbles(blocks[..., 16:]), *_k_scales(blocks))


def _q5_k(blocks: Tensor) -> Parts:
    fifth = _shifted(blocks[..., 16:48], range(8), 1) << 4
    return Parts(_k_nibbles(blocks[..., 48:]) | fifth, *_k_scales(blocks))


def _q6_k(blocks: Tensor) -> Parts:
    """128 bytes of low 4 bits, 64 of upper 2 bits, 16 int8 scales, d."""
    low = _nibbles(blocks[..., :128].unflatten(-1, (2, 64))).flatten(-2)
    high = _shifted(blocks[..., 128:192].unflatten(-1, (2, 32)), range(0, 8, 2), 2).flatten(-2)
    return Parts(low | (high << 4), blocks[..., 192:208].contiguous().view(torch.int8), d=_half(blocks, 208))


@cache
def level_table(levels: tuple[float, ...], device: torch.device) -> Tensor:
    """The levels as float32, cached per device: copies from the host cannot be recorded into CUDA graphs."""
    return torch.tensor(levels, dtype=torch.float32, device=device)


def _at(levels: tuple[float, ...], codes: Tensor) -> Tensor:
    return level_table(levels, codes.device).index_select(0, codes.flatten().int()).view(codes.shape)


def _iq4_nl(blocks: Tensor) -> Parts:
    return Parts(_nibbles(blocks[..., 2:]), _half(blocks, 0))


def _iq4_xs(blocks: Tensor) -> Parts:
    """d, 8 x 2 upper bits of scales, 8 x 4 lower bits of them, 8 groups of 16 bytes."""
    pairs = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)
    high = ((blocks[..., 2:4, None] >> pairs) & 3).flatten(-2)
    low = torch.stack([blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4], -1).flatten(-2)
    scales = (low | (high << 4)).view(torch.int8) - 32
    return Parts(_nibbles(blocks[..., 8:].unflatten(-1, (8, 16))).flatten(-2), scales, d=_half(blocks, 0))


LAYOUTS = {
    "q4_0": Layout(32, 18, _q4_0, (4,), 8),
    "q4_1": Layout(32, 20, _q4_1, (4,)),
    "q5_0": Layout(32, 22, _q5_0, (4, 1), 16),
    "q5_1": Layout(32, 24, _q5_1, (4, 1)),
    "q8_0": Layout(32, 34, _q8_0, (4, 4), 128),
    "iq4_nl": Layout(32, 18, _iq4_nl, (4,), levels=_IQ4),
    "q2_k": Layout(256, 84, _q2_k, (2,)),
    "q3_k": Layout(256, 110, _q3_k, (2, 1), 4),
    "q4_k": Layout(256, 144, _q4_k, (4,)),
    "q5_k": Layout(256, 176, _q5_k, (4, 1)),
    "q6_k": Layout(256, 210, _q6_k, (4, 2), 32),
    "iq4_xs": Layout(256, 136, _iq4_xs, (4,), levels=_IQ4),
}
"""By ggml type."""
