"""ggml blocks unpacked with torch's operations, on any device, to the same bits as by `gguf.quants`.

Source of the layouts: ggml `ggml-common.h`, `dequantize_row_*` in `ggml-quants.c`. Every unpacking function takes uint8
[..., bytes per block] and returns float32 [..., columns per block].
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

__all__ = ["LAYOUTS", "SLICE", "Layout"]

SLICE = 2**24
"""Weights that are unpacked at a time: they go through float32, several times, in memory."""

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Layout:
    """columns and bytes of a block; unpack: uint8 [..., bytes] -> float32 [..., columns]."""

    columns: int
    bytes: int
    unpack: Callable[[Tensor], Tensor]

    def rows(self, blocks: Tensor, dtype: torch.dtype) -> Tensor:
        """uint8 [..., O, bytes per row] -> [..., O, I] in `dtype`."""
        columns = blocks.shape[-1] // self.bytes * self.columns
        if blocks.ndim == 2 and blocks.shape[0] * columns > SLICE:
            out = torch.empty(blocks.shape[0], columns, dtype=dtype, device=blocks.device)
            rows = max(1, SLICE // columns)
            for target, part in zip(out.split(rows), blocks.split(rows), strict=True):
                target.copy_(self.rows(part, dtype))
            return out
        return self.unpack(blocks.unflatten(-1, (-1, self.bytes))).flatten(-2).to(dtype)


def _halves(blocks: Tensor, begin: int, count: int = 1) -> Tensor:
    """`count` float16 numbers from byte `begin` on, as float32 [..., count]."""
    return blocks[..., begin : begin + 2 * count].contiguous().view(torch.float16).float()


def _signed(packed: Tensor) -> Tensor:
    return packed.contiguous().view(torch.int8).float()


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


def _grouped(codes: Tensor, scales: Tensor, minima: Tensor | None = None) -> Tensor:
    """codes [..., n * size], scales and minima [..., n] -> scale * code - minimum, with one of each per group."""
    groups = codes.float().unflatten(-1, (scales.shape[-1], -1)) * scales[..., None]
    return (groups if minima is None else groups - minima[..., None]).flatten(-2)


def _q4_0(blocks: Tensor) -> Tensor:
    return _halves(blocks, 0) * (_nibbles(blocks[..., 2:]).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _halves(blocks, 0) * _nibbles(blocks[..., 4:]).float() + _halves(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[..., 6:]) | _fifth_bits(blocks[..., 2:6])
    return _halves(blocks, 0) * (codes.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[..., 8:]) | _fifth_bits(blocks[..., 4:8])
    return _halves(blocks, 0) * codes.float() + _halves(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _signed(blocks[..., 2:]) * _halves(blocks, 0)


def _q2_k(blocks: Tensor) -> Tensor:
    """16 bytes of scales and minima, 4 bits each; 64 of codes; d, dmin."""
    scales = _halves(blocks, 80) * (blocks[..., :16] & 15).float()
    minima = _halves(blocks, 82) * (blocks[..., :16] >> 4).float()
    codes = _shifted(blocks[..., 16:80].unflatten(-1, (2, 32)), range(0, 8, 2), 2).flatten(-2)
    return _grouped(codes, scales, minima)


def _q3_k(blocks: Tensor) -> Tensor:
    """32 bytes of third bits, where a 0 subtracts 4; 64 of codes; 12 of scales; d."""
    low = _shifted(blocks[..., 96:104], range(0, 8, 4), 4)
    high = _shifted(blocks[..., 104:108], range(0, 8, 2), 2)
    scales = _halves(blocks, 108) * ((low | (high << 4)).float() - 32)
    codes = _shifted(blocks[..., 32:96].unflatten(-1, (2, 32)), range(0, 8, 2), 2).flatten(-2)
    third = _shifted(blocks[..., :32], range(8), 1)
    return _grouped(codes.float() - 4 * (1 - third.float()), scales)


def _k_scales(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """d, dmin, and 12 bytes of 6-bit numbers -> 8 scales and 8 minima, float32 [..., 8]."""
    a, b, c = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = torch.cat([a & 63, (c & 15) | ((a >> 6) << 4)], -1)
    minima = torch.cat([b & 63, (c >> 4) | ((b >> 6) << 4)], -1)
    return _halves(blocks, 0) * scales.float(), _halves(blocks, 2) * minima.float()


def _k_nibbles(packed: Tensor) -> Tensor:
    """uint8 [..., 128] -> [..., 256]: for every 32 bytes their low nibbles, then their high ones."""
    return _nibbles(packed.unflatten(-1, (4, 32))).flatten(-2)


def _q4_k(blocks: Tensor) -> Tensor:
    return _grouped(_k_nibbles(blocks[..., 16:]), *_k_scales(blocks))


def _q5_k(blocks: Tensor) -> Tensor:
    fifth = _shifted(blocks[..., 16:48], range(8), 1) << 4
    return _grouped(_k_nibbles(blocks[..., 48:]) | fifth, *_k_scales(blocks))


def _q6_k(blocks: Tensor) -> Tensor:
    """128 bytes of low 4 bits, 64 of upper 2 bits, 16 int8 scales, d."""
    low = _nibbles(blocks[..., :128].unflatten(-1, (2, 64))).flatten(-2)
    high = _shifted(blocks[..., 128:192].unflatten(-1, (2, 32)), range(0, 8, 2), 2).flatten(-2)
    scales = _halves(blocks, 208) * _signed(blocks[..., 192:208])
    return _grouped((low | (high << 4)).float() - 32, scales)


def _iq4_codes(packed: Tensor) -> Tensor:
    return _iq4_table(packed.device)[_nibbles(packed).int()]


@cache
def _iq4_table(device: torch.device) -> Tensor:
    """The 16 levels, cached per device: copies from the host cannot be recorded into CUDA graphs."""
    return torch.tensor(_IQ4, dtype=torch.float32, device=device)


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _halves(blocks, 0) * _iq4_codes(blocks[..., 2:])


def _iq4_xs(blocks: Tensor) -> Tensor:
    """d, 8 x 2 upper bits of scales, 8 x 4 lower bits of them, 8 groups of 16 bytes."""
    pairs = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device)
    high = ((blocks[..., 2:4, None] >> pairs) & 3).flatten(-2)
    low = torch.stack([blocks[..., 4:8] & 15, blocks[..., 4:8] >> 4], -1).flatten(-2)
    scales = _halves(blocks, 0) * ((low | (high << 4)).float() - 32)
    return _grouped(_iq4_codes(blocks[..., 8:].unflatten(-1, (8, 16))).flatten(-2), scales)


LAYOUTS = {
    "q4_0": Layout(32, 18, _q4_0),
    "q4_1": Layout(32, 20, _q4_1),
    "q5_0": Layout(32, 22, _q5_0),
    "q5_1": Layout(32, 24, _q5_1),
    "q8_0": Layout(32, 34, _q8_0),
    "iq4_nl": Layout(32, 18, _iq4_nl),
    "q2_k": Layout(256, 84, _q2_k),
    "q3_k": Layout(256, 110, _q3_k),
    "q4_k": Layout(256, 144, _q4_k),
    "q5_k": Layout(256, 176, _q5_k),
    "q6_k": Layout(256, 210, _q6_k),
    "iq4_xs": Layout(256, 136, _iq4_xs),
}
"""By ggml type."""
