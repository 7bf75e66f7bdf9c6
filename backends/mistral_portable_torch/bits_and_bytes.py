"""Quantization to bitsandbytes' types NF4, FP4 and int8, while float matrices are loaded.

NF4 and FP4 (Dettmers et al. 2023, QLoRA, section 3): a block of 64 weights has one scale, its largest magnitude, and
each weight is rounded to the nearest of 16 levels times the scale. The error is at most half of the widest gap between
levels: 0.152 of the scale for NF4 (levels -1 and -0.696), 0.167 for FP4 (2/3 and 1). int8: a row has one scale, its
largest magnitude / 127, and the error is at most half of it.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from mistral_portable.errors import BackendError

__all__ = ["quantized", "quantized_bytes"]

_BLOCK = 64


def quantized(weight: Tensor, kind: str) -> "FourBit | EightBit":
    """Quantize weight [O, I] to "nf4", "fp4" or "int8". Raises BackendError if bitsandbytes cannot, or is missing."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise BackendError(
            f"quantize={kind!r} needs bitsandbytes ({error}): pip install 'mistral-portable[bitsandbytes]'"
        ) from error
    if kind == "int8":
        return EightBit(bitsandbytes, weight)
    if weight.shape[1] % _BLOCK:
        raise BackendError(
            f"quantize={kind!r}: {weight.shape[1]} columns are not a multiple of {_BLOCK}: choose int8 or q4_0"
        )
    return FourBit(bitsandbytes, weight, kind)


def quantized_bytes(shape: Sequence[int], kind: str) -> int:
    """Bytes of a matrix on the device: 4 bits a weight and a float32 per block, or 8 bits and a float32 per row."""
    return prod(shape) + 4 * shape[0] if kind == "int8" else prod(shape) // 2 + 4 * prod(shape) // _BLOCK


class FourBit:
    """Two weights per byte. bitsandbytes multiplies one token with packed weights, and unpacks them for more tokens."""

    def __init__(self, bitsandbytes: Any, weight: Tensor, kind: str) -> None:
        self._bitsandbytes = bitsandbytes
        self._codes, self._state = bitsandbytes.functional.quantize_4bit(weight, blocksize=_BLOCK, quant_type=kind)
        self.nbytes = int(self._codes.nbytes + self._state.absmax.nbytes)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._bitsandbytes.matmul_4bit(x, self._codes.t(), quant_state=self._state, bias=bias)

    def rows(self, tokens: Tensor) -> Tensor:
        return self._bitsandbytes.functional.dequantize_4bit(self._codes, self._state)[tokens]


class EightBit:
    """codes int8 [O, I], and the largest magnitude of each row, float32 [O]; unpacked for every product."""

    def __init__(self, bitsandbytes: Any, weight: Tensor) -> None:
        self._dtype = weight.dtype
        codes, largest, _ = bitsandbytes.functional.int8_vectorwise_quant(weight.half())
        self._codes, self._largest = codes, largest
        self.nbytes = int(codes.nbytes + largest.nbytes)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, self._unpacked(self._codes, self._largest), bias)

    def rows(self, tokens: Tensor) -> Tensor:
        return self._unpacked(self._codes[tokens], self._largest[tokens])

    def _unpacked(self, codes: Tensor, largest: Tensor) -> Tensor:
        # One kernel, which computes in float32 and rounds as it writes: 3 bytes a weight in place of 21.
        out = torch.empty(codes.shape, dtype=self._dtype, device=codes.device)
        return torch.mul(codes, (largest / 127)[:, None], out=out)
