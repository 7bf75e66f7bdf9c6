"""compressed-tensors repositories, written by llm-compressor: a matrix is two to five tensors.

| format | X.weight of [rows, columns] | beside it |
|---|---|---|
| pack-quantized | X.weight_packed int32 [rows, columns * b / 32] | weight_shape; optional weight_g_idx [columns] |
| int-quantized | int8 | |
| float-quantized | float8_e4m3: `fp8.py` | |

All have X.weight_scale, float [rows, groups], or [1] for the whole matrix. X.weight_zero_point is optional: for packed
codes int32 [rows * b / 32, groups], packed along the rows; for int8 codes int8 of the scales' shape.
weight = scale[group] * (code - zero[group]); without a zero point the zero is 2**(b - 1) for packed codes, 0 for int8.
A column's group is weight_g_idx[column] if there is one, else column // (columns / groups). Scales of activations and
of cached keys and values are dropped: here these are not rounded to 8 bits.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.weights.fp8 import fp8_tensors
from mistral_portable.weights.packed import PackedTensor, bit_fields
from mistral_portable.weights.source import FLOATS, DenseTensor, Tensor

__all__ = ["CompressedTensor", "compressed_tensors"]

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")
_BITS = (2, 4, 8)  # older versions pad the words of 3 or 5-bit codes, so those are not supported
_PARTS = ("weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape")


@dataclass(frozen=True, eq=False)
class CompressedTensor(PackedTensor):
    """A matrix in the layout of compressed-tensors.

    Example: shape (64, 256) with 4 bits in groups of 128: `codes` (64, 32), `scales` (64, 2), `zeros` (8, 2).
    """

    bits: int
    codes: DenseTensor
    scales: DenseTensor
    zeros: DenseTensor | None
    groups: NDArray[np.integer[Any]]
    """[columns], each from 0 to the number of groups - 1."""

    @property
    def dtype(self) -> str:
        """The type: "compressed_4bit", with the number of bits."""
        return f"compressed_{self.bits}bit"

    @property
    def nbytes(self) -> int:
        """Size of codes, scales and zeros in bytes."""
        zeros = self.zeros.nbytes if self.zeros else 0
        return self.codes.nbytes + self.scales.nbytes + zeros

    def unpack(self) -> NDArray[np.float32]:
        """scale * (code - zero) in float32, with the rows in the order of the file."""
        shape = (self.shape[0], self.scales.shape[1])
        zeros: NDArray[Any] | int
        if self.codes.dtype == "int8":
            values = self.codes.numpy()
            zeros = self.zeros.numpy() if self.zeros else 0
        else:
            values = bit_fields(self.codes.array, self.bits).astype(np.float32)
            zeros = bit_fields(self.zeros.array.T, self.bits).T if self.zeros else 1 << (self.bits - 1)
        values -= np.broadcast_to(zeros, shape)[:, self.groups]
        values *= np.broadcast_to(self.scales.numpy(), shape)[:, self.groups]
        return values


def compressed_tensors(tensors: Mapping[str, DenseTensor], how: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Combine the parts of each matrix into `X.weight`; other tensors stay as they are.

    how: `quantization_config` of `config.json`. Bits and groups follow from the shapes, so they may differ between
    matrices. Raises ConfigError for other formats, sparse and rotated weights; CheckpointError for parts that do not
    fit.
    """
    block = _block(how, source)
    made: dict[str, Tensor] = {}
    rest: dict[str, DenseTensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        codes = tensors.get(f"{module}.weight_packed") or tensors.get(f"{module}.weight")
        if kind == "weight_packed" and f"{module}.weight" in tensors:
            raise CheckpointError(f"{source}: there are {module}.weight and {module}.weight_packed: one is too many")
        if kind == "weight_packed" or (kind == "weight" and tensor.dtype == "int8"):
            parts = {part: tensors.get(f"{module}.{part}") for part in _PARTS}
            made[f"{module}.weight"] = _compressed(f"{module}.weight", tensor, parts, source)
        elif kind not in _PARTS or codes is None or codes.dtype not in ("int32", "int8"):
            rest[name] = tensor
    return made | fp8_tensors(rest, {"weight_block_size": block}, source)


def _block(how: Mapping[str, Any], source: str) -> object:
    """`block_structure`, the rows and columns of float8 blocks; None if no scheme has one. Refuses other formats."""
    groups = how.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, Mapping) else []
    formats = [how.get("format"), *(scheme.get("format") for scheme in schemes if isinstance(scheme, Mapping))]
    others = [form for form in formats if form not in (None, "mixed-precision", *_FORMATS)]
    sparse = how.get("sparsity_config")
    dense = not sparse or (isinstance(sparse, Mapping) and sparse.get("format", "dense") == "dense")
    if others or not dense or how.get("transform_config"):
        named = ", ".join(
            f"{key}={reprlib.repr(how[key])}"
            for key in ("format", "sparsity_config", "transform_config")
            if how.get(key)
        )
        raise ConfigError(
            f"{source}: compressed-tensors with {named}: supported are {', '.join(_FORMATS)}, neither sparse nor "
            "rotated; use the original checkpoint or a GGUF file"
        )
    weights = [scheme.get("weights") for scheme in schemes if isinstance(scheme, Mapping)]
    blocks = [each.get("block_structure") for each in weights if isinstance(each, Mapping)]
    given = [block for block in blocks if block is not None]
    if any(block != given[0] for block in given):
        raise ConfigError(f"{source}: block_structure={reprlib.repr(given)}: one size for all matrices is supported")
    return given[0] if given else None


def _compressed(
    name: str, codes: DenseTensor, parts: Mapping[str, DenseTensor | None], source: str
) -> CompressedTensor:
    scales, zeros, index, size = (parts[part] for part in _PARTS)
    if scales is None:
        raise CheckpointError(f"{source}: {name} is packed, but its weight_scale is missing")
    scales, zeros = _matrix(scales), _matrix(zeros) if zeros else None
    shapes = [part.shape for part in (codes, scales, zeros) if part]
    kinds = [part.dtype for part in (codes, scales, zeros) if part]
    no_matrix = any(len(shape) != 2 or 0 in shape for shape in shapes)
    if no_matrix or kinds[0] not in ("int32", "int8") or kinds[1] not in FLOATS or kinds[2:] not in ([], kinds[:1]):
        raise CheckpointError(
            f"{source}: {name} has parts of {', '.join(kinds)} {shapes}: a matrix of int32 or int8, one of float "
            "scales, and perhaps zero points are needed"
        )
    rows, columns, bits = *codes.shape, 8
    if codes.dtype == "int32":
        columns = _columns(name, codes, size, source)
        bits = 32 * codes.shape[1] // columns
    count = scales.shape[1]
    below = (rows * bits // 32, count) if codes.dtype == "int32" else scales.shape
    odd = codes.dtype == "int32" and (bits not in _BITS or columns * bits != 32 * codes.shape[1] or rows * bits % 32)
    if odd or scales.shape[0] not in (1, rows) or (zeros and zeros.shape != below) or columns % count:
        raise CheckpointError(
            f"{source}: {name} {(rows, columns)} does not fit its codes and scales {shapes}: supported are "
            f"{', '.join(map(str, _BITS))} bits, groups of one size and whole words"
        )
    groups: NDArray[np.integer[Any]] = np.arange(columns) // (columns // count)
    if index is not None:
        groups = index.array
        if (
            index.dtype not in ("int32", "int64")
            or index.shape != (columns,)
            or groups.min() < 0
            or groups.max() >= count
        ):
            raise CheckpointError(
                f"{source}: the weight_g_idx of {name}, {index.dtype} {index.shape}, does not name one of {count} "
                f"groups for each of {columns} columns"
            )
    return CompressedTensor(name, (rows, columns), bits, codes, scales, zeros, groups)


def _matrix(tensor: DenseTensor) -> DenseTensor:
    """A tensor of shape (1,) as a (1, 1) matrix; other tensors as they are."""
    return replace(tensor, array=tensor.array.reshape(1, 1)) if tensor.shape == (1,) else tensor


def _columns(name: str, codes: DenseTensor, size: DenseTensor | None, source: str) -> int:
    """The columns of a packed matrix, from its weight_shape."""
    rows, words = codes.shape
    if size is not None and size.dtype in ("int64", "int32") and size.shape == (2,):
        stated = [int(number) for number in size.array]
        if stated[0] == rows and 0 < stated[1] <= 32 * words:
            return stated[1]
    raise CheckpointError(f"{source}: {name}, packed {codes.shape}, needs a weight_shape that fits")
