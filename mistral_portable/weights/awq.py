"""AWQ repositories: `config.json` has the settings, and a matrix is three tensors; weight = scale * (code - zero).

Layout (AutoAWQ), for a weight of [rows, columns] in groups of G columns:

version "gemm" (`WQLinear_GEMM`), transposed: qweight int32 [columns, rows / 8], qzeros int32 [columns / G, rows / 8],
scales float16 [columns / G, rows]. Nibble i of a word, from the lowest bits on, is row 8 * word + (0 2 4 6 1 3 5 7)[i].

version "gemv" (`WQLinear_GEMV`): qweight int32 [rows, columns / 8], qzeros int32 [rows, Z], scales float16 [rows, 8 Z],
where 8 Z is at least columns / G, and the excess is unused. Nibbles are in order.
"""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.weights.packed import PackedTensor, bit_fields
from mistral_portable.weights.source import FLOATS, DenseTensor, Tensor

__all__ = ["AWQTensor", "awq_tensors"]

_NIBBLE_OF_ROW = (0, 4, 1, 5, 2, 6, 3, 7)  # the inverse of 0 2 4 6 1 3 5 7
_BITS = 4
_VERSIONS = ("gemm", "gemv")


@dataclass(frozen=True, eq=False)
class AWQTensor(PackedTensor):
    """A matrix in AWQ's layout.

    Example: shape (16, 256) in groups of 128 has `codes` (256, 2), `zeros` (2, 2) and `scales` (2, 16) in version
    "gemm"; (16, 32), (16, 1) and (16, 8) in version "gemv".
    """

    version: str
    group: int
    codes: DenseTensor
    zeros: DenseTensor
    scales: DenseTensor

    @property
    def dtype(self) -> str:
        """The type: "awq_4bit"."""
        return f"awq_{_BITS}bit"

    @property
    def nbytes(self) -> int:
        """Size of codes, zeros and scales in bytes."""
        return self.codes.nbytes + self.zeros.nbytes + self.scales.nbytes

    def unpack(self) -> NDArray[np.float32]:
        """scale * (code - zero) in float32, with the rows in the order of the file."""
        if self.version == "gemv":
            rows, columns = self.shape
            count = columns // self.group
            codes, zeros = (bit_fields(packed.array, _BITS) for packed in (self.codes, self.zeros))
            values = codes.reshape(rows, count, self.group).astype(np.float32)
            values -= zeros[:, :count, None]
            values *= self.scales.numpy()[:, :count, None]
            return values.reshape(rows, columns)
        codes, zeros = (_rows(packed.array) for packed in (self.codes, self.zeros))
        values = codes.reshape(len(zeros), self.group, codes.shape[1]).astype(np.float32)
        values -= zeros[:, None]
        values *= self.scales.numpy()[:, None]
        return np.ascontiguousarray(values.reshape(codes.shape).T)


def _rows(words: NDArray[Any]) -> NDArray[np.uint8]:
    """Unpack [n, rows / 8] words of version "gemm" into [n, rows] codes."""
    nibbles = bit_fields(words, _BITS)
    return nibbles.reshape(len(words), -1, 8)[..., _NIBBLE_OF_ROW].reshape(nibbles.shape)


def awq_tensors(tensors: Mapping[str, DenseTensor], how: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Combine `X.qweight`, `X.qzeros` and `X.scales` into `X.weight`; other tensors stay as they are.

    how: `quantization_config` of `config.json`. Raises ConfigError for other versions, bits or groups, and
    CheckpointError for shapes that do not fit and parts that are missing.
    """
    bits, group = how.get("bits"), how.get("group_size")
    version = str(how.get("version", how.get("format", "gemm"))).lower()
    if bits != _BITS or version not in _VERSIONS or type(group) is not int or group == 0 or group < -1:
        raise ConfigError(
            f"{source}: AWQ with bits={reprlib.repr(bits)}, group_size={reprlib.repr(group)}, "
            f"version={reprlib.repr(version)}: supported are 4 bits in groups, version 'gemm' or 'gemv'; use the "
            "original checkpoint or a GGUF file"
        )
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        parts = [tensors.get(f"{module}.{part}") for part in ("qweight", "qzeros", "scales")]
        if kind == "qweight":
            made[f"{module}.weight"] = _awq(f"{module}.weight", parts, group, version, source)
        elif kind not in ("qzeros", "scales") or parts[0] is None:
            made[name] = tensor
    return made


def _awq(name: str, parts: list[DenseTensor | None], group: int, version: str, source: str) -> AWQTensor:
    codes, zeros, scales = parts
    if codes is None or zeros is None or scales is None:
        raise CheckpointError(f"{source}: {name} is packed, but its qzeros or scales are missing")
    shapes = [part.shape for part in (codes, zeros, scales)]
    kinds = (codes.dtype, zeros.dtype, scales.dtype)
    no_matrix = any(len(shape) != 2 or 0 in shape for shape in shapes)
    if no_matrix or kinds[:2] != ("int32", "int32") or kinds[2] not in FLOATS:
        raise CheckpointError(
            f"{source}: {name} has parts of {kinds} {shapes}: int32, int32, float matrices are needed"
        )
    columns, rows = shapes[0][0], shapes[0][1] * 8
    if version == "gemv":
        rows, columns = shapes[0][0], shapes[0][1] * 8
    group = columns if group == -1 else group
    count = columns // group
    if version == "gemv":
        width = shapes[1][1]
        fits = shapes[1:] == [(rows, width), (rows, 8 * width)] and 8 * width >= count
    else:
        fits = shapes[1:] == [(count, rows // 8), (count, rows)]
    if not fits or columns % group:
        raise CheckpointError(
            f"{source}: {name} {shapes[0]} does not fit its qzeros {shapes[1]} and scales {shapes[2]} "
            f"with groups of {group}, version {version!r}"
        )
    return AWQTensor(name, (rows, columns), version, group, codes, zeros, scales)
