"""Quantization in memory (`load(..., quantize="q4_0")`): float matrices are packed into ggml blocks as they are read.

The blocks are made by a BlockMaker: `gguf_blocks` here, the kernels of a backend in `engine/block_maker.py`. To write
a quantized file is another matter: `quantization/quantize.py`.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import InputError
from mistral_portable.weights.blocks import BlockTensor
from mistral_portable.weights.joined import JoinedTensor
from mistral_portable.weights.source import DenseTensor, Tensor, release

__all__ = ["QUANTIZABLE", "BlockMaker", "gguf_blocks", "quantized", "require_quantizable"]

QUANTIZABLE = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
"""The ggml types that `gguf.quants` can both make from floats and unpack."""

BlockMaker = Callable[[DenseTensor, str], NDArray[np.uint8]]
"""Function of a float matrix and one of QUANTIZABLE that returns blocks, uint8 [rows, bytes_per_row]. It is called from
any thread."""

_SLICE = 2**20  # numbers that a thread converts at a time: 4 MiB in float32
# NumPy releases the GIL at times: on two cores two threads were 1.5 times as fast as one, four slower than two.
_THREADS = min(4, os.cpu_count() or 1)


def require_quantizable(type: str) -> None:
    """Raise InputError, which lists the types, unless `type` is one of QUANTIZABLE."""
    if type not in QUANTIZABLE:
        raise InputError(f"quantize={type!r}: choose one of {', '.join(QUANTIZABLE)}")


def gguf_blocks(matrix: DenseTensor, type: str) -> NDArray[np.uint8]:
    """Blocks made by `gguf.quants`: the largest weight of a block sets its scale, and each weight is rounded."""
    from gguf import GGMLQuantizationType, quants

    rows, columns = matrix.shape
    step, kind = max(1, _SLICE // columns), GGMLQuantizationType[type.upper()]

    def convert(begin: int) -> NDArray[np.uint8]:
        return quants.quantize(matrix.rows(slice(begin, begin + step)).numpy(), kind)

    with ThreadPoolExecutor(_THREADS) as pool:
        return np.concatenate([*pool.map(convert, range(0, rows, step))])


def quantized(tensors: Mapping[str, Tensor], type: str, make: BlockMaker = gguf_blocks) -> Mapping[str, Tensor]:
    """Replace float matrices by lazy tensors that pack them into blocks of `type`, one of QUANTIZABLE, when read.

    Quantized tensors, vectors, and matrices whose rows are not whole blocks stay as they are. Raises InputError for
    another type, and if nothing would change.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    require_quantizable(type)
    kind = GGMLQuantizationType[type.upper()]
    columns, _ = GGML_QUANT_SIZES[kind]
    made: dict[str, Tensor] = {
        name: _QuantizedOnRead(tensor.name, tensor.shape, kind, tensor, make)
        for name, tensor in tensors.items()
        if isinstance(tensor, DenseTensor | JoinedTensor) and len(tensor.shape) == 2 and tensor.shape[1] % columns == 0
    }
    if not made:
        stored = sorted(
            {tensor.dtype for tensor in tensors.values() if not isinstance(tensor, DenseTensor | JoinedTensor)}
        )
        why = f"are quantized already ({', '.join(stored)})" if stored else f"have no multiple of {columns} columns"
        raise InputError(f"quantize={type!r} changes nothing: the model's matrices {why}; leave the option out")
    return {**tensors, **made}


@dataclass(frozen=True, eq=False)
class _QuantizedOnRead(BlockTensor):
    """A matrix whose blocks are made from floats, anew at each call of `blocks`."""

    floats: DenseTensor | JoinedTensor
    make: BlockMaker

    def blocks(self) -> NDArray[np.uint8]:
        """New blocks, uint8 [rows, bytes_per_row], which the caller owns."""
        floats = self.floats.joined() if isinstance(self.floats, JoinedTensor) else self.floats
        out = self.make(floats, self.dtype)
        release(floats.array)
        return out

    def permute_rows(self, order: NDArray[np.intp]) -> Self:
        """The matrix whose row i is row `order[i]` of this one."""
        return replace(self, floats=self.floats.permute_rows(order))
