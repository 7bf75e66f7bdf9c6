"""bitsandbytes' types, made of float matrices as they are loaded: NF4, FP4 and int8.

NF4 and FP4 (Dettmers et al. 2023, QLoRA, section 3): 64 weights share the largest of their magnitudes, and each is the
nearest of 16 levels times that. No two neighbouring levels are farther apart than the outermost of NF4, -1 and -0.696,
and of FP4, 2/3 and 1: a weight is off by at most 0.152 or 0.167 of its 64's largest. int8: a row shares its largest
magnitude / 127; a weight is off by at most half of that.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor
from torch.nn.functional import linear

from mistral_portable.errors import BackendError

__all__ = ["quantized", "quantized_bytes"]

_BLOCK = 64


def quantized(weight: Tensor, kind: str) -> "FourBit | EightBit":
    """weight [O, I] as "nf4", "fp4" or "int8". Raises BackendError if bitsandbytes is missing or cannot do it."""
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
            f"quantize={kind!r}: a matrix has {weight.shape[1]} columns, no multiple of {_BLOCK}: choose int8 or q4_0"
        )
    return FourBit(bitsandbytes, weight, kind)


def quantized_bytes(shape: Sequence[int], kind: str) -> int:
    """Bytes of a matrix on the device: 4 bits and a float32 for each block, or 8 bits and a float32 for each row."""
    return prod(shape) + 4 * shape[0] if kind == "int8" else prod(shape) // 2 + 4 * prod(shape) // _BLOCK


class FourBit:
    """Two weights in a byte. Products of one token read them as they are, others unpack them: bitsandbytes decides."""

    def __init__(self, bitsandbytes: Any, weight: Tensor, kind: str) -> None:
        self._bitsandbytes = bitsandbytes
        self._codes, self._state = bitsandbytes.functional.quantize_4bit(weight, blocksize=_BLOCK, quant_type=kind)
        self.nbytes = int(self._codes.nbytes + self._state.absmax.nbytes)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._bitsandbytes.matmul_4bit(x, self._codes.t(), quant_state=self._state, bias=bias)

    def rows(self, tokens: Tensor) -> Tensor:
        return self._bitsandbytes.functional.dequantize_4bit(self._codes, self._state)[tokens]


class EightBit:
    """codes int8 [O, I], largest magnitudes float32 [O]; unpacked for each product."""

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
        return (codes.float() * (largest / 127)[:, None]).to(self._dtype)
