"""FP8 checkpoints, raw and HF: matrices of float8_e4m3 codes, which are multiplied by scales.

| | scale of X.weight | of the activations |
|---|---|---|
| HF (`quant_method` fp8) | X.weight_scale_inv | X.activation_scale |
| HF, by AutoFP8 and compressed-tensors | X.weight_scale | X.input_scale and others |
| raw (`qformat_weight` fp8_e4m3) | X.qscale_weight | X.qscale_act |

Scales have the shape [] or [1] (one for the whole matrix), [rows] or [rows, 1] (one per row), or
[ceil(rows / block rows), ceil(columns / block columns)] (one per block of `weight_block_size`). Scales of activations
are dropped: here activations are not rounded to 8 bits.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.weights.packed import PackedTensor
from mistral_portable.weights.source import FLOATS, DenseTensor, Tensor

__all__ = ["FP8Tensor", "fp8_tensors", "fp8_values"]

_SCALES = ("weight_scale_inv", "weight_scale", "qscale_weight")
_OF_ACTIVATIONS = frozenset(
    ["activation_scale", "qscale_act", "input_scale", "output_scale", "q_scale", "k_scale", "v_scale"]
)


@cache
def fp8_values() -> NDArray[np.float32]:
    """The values of the 256 codes, float32 [256]: a sign, 4 bits of exponent (bias 7), 3 of mantissa; no infinity.

    Examples: 0x00 is 0, 0x01 is 2**-9, 0x38 is 1, 0x7e is 448 and 0x7f NaN. Source: the OCP 8-bit floating point
    specification.
    """
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(exponent, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    size[(code & 127) == 127] = np.nan
    return np.where(code >> 7, -size, size).astype(np.float32)


@dataclass(frozen=True, eq=False)
class FP8Tensor(PackedTensor):
    """A matrix of float8_e4m3 codes with scales.

    Example: shape (200, 300) in blocks of (128, 128) has `scales` (2, 3).
    """

    codes: DenseTensor
    scales: DenseTensor
    block: tuple[int, int]
    """Rows and columns that share a scale."""

    @property
    def dtype(self) -> str:
        """The type: "float8_e4m3"."""
        return "float8_e4m3"

    @property
    def nbytes(self) -> int:
        """Size of codes and scales in bytes."""
        return self.codes.nbytes + self.scales.nbytes

    def unpack(self) -> NDArray[np.float32]:
        """scale * value of the code in float32, with the rows in the order of the file."""
        (rows, columns), (tall, wide) = self.shape, self.block
        values: NDArray[np.float32] = fp8_values()[self.codes.array]
        scales = self.scales.numpy().reshape(-(-rows // tall), -(-columns // wide))
        for row, of_blocks in enumerate(np.repeat(scales, wide, axis=1)[:, :columns]):
            values[row * tall : (row + 1) * tall] *= of_blocks
        return values


def fp8_tensors(tensors: Mapping[str, DenseTensor], how: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Combine matrices of float8_e4m3 with their scales and drop the scales of activations; others stay as they are.

    how: settings, in which `weight_block_size` is optional: [rows, columns] of a block. Raises ConfigError for
    impossible blocks, CheckpointError for scales that are missing or do not fit.
    """
    block = how.get("weight_block_size")
    if block is not None and not (
        isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
    ):
        raise ConfigError(f"{source}: weight_block_size={reprlib.repr(block)} must be two sizes, or null")
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if tensor.dtype == "float8_e4m3":
            scales = next((tensors[key] for kind in _SCALES if (key := f"{module}.{kind}") in tensors), None)
            if kind != "weight" or scales is None:
                raise CheckpointError(f"{source}: {name} is float8_e4m3 and has no scale")
            made[name] = _fp8(tensor, scales, block, source)
        elif kind in _OF_ACTIVATIONS:
            continue
        elif kind in _SCALES:
            weight = tensors.get(f"{module}.weight")
            if weight is None or weight.dtype != "float8_e4m3":
                raise CheckpointError(f"{source}: there is {name}, but no float8_e4m3 {module}.weight")
        else:
            made[name] = tensor
    return made


def _fp8(codes: DenseTensor, scales: DenseTensor, block: list[int] | None, source: str) -> FP8Tensor:
    if len(codes.shape) != 2 or 0 in codes.shape or scales.dtype not in FLOATS:
        raise CheckpointError(f"{source}: {codes.name} must be a matrix, not {codes.shape}, with scales in floats")
    rows, columns = codes.shape
    if scales.shape in ((), (1,), (1, 1)):
        size = (rows, columns)
    elif scales.shape in ((rows,), (rows, 1)):
        size = (1, columns)
    else:
        size = (min(block[0], rows), min(block[1], columns)) if block else (rows, columns)
        if scales.shape != (-(-rows // size[0]), -(-columns // size[1])):
            raise CheckpointError(
                f"{source}: the scales of {codes.name} {codes.shape} are {scales.shape}, not blocks of {block}"
            )
    return FP8Tensor(codes.name, codes.shape, codes, scales, size)
