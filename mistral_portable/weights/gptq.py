"""GPTQ repositories: `config.json` has the settings, and a matrix is three or four tensors.

Layout (AutoGPTQ, GPTQModel), for a weight of [rows, columns] with codes of b bits, transposed: qweight int32
[columns * b / 32, rows], packed along the columns of the weight; qzeros int32 [groups, rows * b / 32], packed along its
rows, where the format "gptq" stores each zero minus 1 and "gptq_v2" the zero itself; scales float [groups, rows]; g_idx
int32 or int64 [columns], the group of each column: any with act-order (`desc_act`), else column // group_size.
weight = scale[group] * (code - zero[group]).

With `dynamic` (GPTQModel) modules may have other bits and groups, which follow from their shapes, or be floats.
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

__all__ = ["BITS", "GPTQTensor", "gptq_tensors"]

BITS = (2, 3, 4, 8)
_ZERO_OFFSET = {"gptq": 1, "gptq_v2": 0}
_PARTS = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True, eq=False)
class GPTQTensor(PackedTensor):
    """A matrix in GPTQ's layout.

    Example: shape (64, 256) with 4 bits in groups of 128: `codes` (32, 64), `zeros` (2, 8), `scales` (2, 64).
    """

    bits: int
    codes: DenseTensor
    zeros: DenseTensor
    scales: DenseTensor
    groups: NDArray[np.integer[Any]]
    """[columns], each from 0 to the number of groups - 1."""
    zero_offset: int

    @property
    def dtype(self) -> str:
        """The type: "gptq_4bit", with the number of bits."""
        return f"gptq_{self.bits}bit"

    @property
    def nbytes(self) -> int:
        """Size of codes, zeros, scales and groups in bytes."""
        return self.codes.nbytes + self.zeros.nbytes + self.scales.nbytes + self.groups.nbytes

    def unpack(self) -> NDArray[np.float32]:
        """scale * (code - zero) in float32, with the rows in the order of the file."""
        values = bit_fields(self.codes.array.T, self.bits).astype(np.float32)
        zeros = bit_fields(self.zeros.array, self.bits).astype(np.float32) + self.zero_offset
        values -= zeros.T[:, self.groups]
        values *= self.scales.numpy().T[:, self.groups]
        return values


def gptq_tensors(tensors: Mapping[str, DenseTensor], how: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Combine `X.qweight`, `X.qzeros`, `X.scales` and `X.g_idx` into `X.weight`; other tensors stay as they are.

    how: `quantization_config` of `config.json`. Raises ConfigError for other formats, bits or groups, and
    CheckpointError for shapes that do not fit and parts that are missing.
    """
    bits: Any = how.get("bits")
    group: Any = how.get("group_size")
    form = "marlin" if how.get("is_marlin_format") else how.get("checkpoint_format", how.get("format", "gptq"))
    whole = type(bits) is int and type(group) is int
    if not whole or bits not in BITS or group < -1 or group == 0 or form not in [*_ZERO_OFFSET]:
        raise ConfigError(
            f"{source}: GPTQ with bits={reprlib.repr(bits)}, group_size={reprlib.repr(group)}, "
            f"checkpoint_format={reprlib.repr(form)}: supported are {', '.join(map(str, BITS))} bits in groups, the "
            f"formats {' and '.join(_ZERO_OFFSET)}; use the original checkpoint or a GGUF file"
        )
    dynamic = bool(how.get("dynamic"))
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind == "qweight":
            parts = [tensors.get(f"{module}.{part}") for part in _PARTS]
            made[f"{module}.weight"] = _gptq(
                f"{module}.weight", parts, (bits, group), dynamic, _ZERO_OFFSET[form], source
            )
            if how.get("desc_act") and parts[3] is None and parts[2] is not None and len(parts[2].array) > 1:
                raise CheckpointError(f"{source}: {module} has no g_idx, which act-order (desc_act) needs")
        elif kind not in _PARTS or f"{module}.qweight" not in tensors:
            made[name] = tensor
    return made


def _gptq(
    name: str, parts: list[DenseTensor | None], common: tuple[int, int], dynamic: bool, zero_offset: int, source: str
) -> GPTQTensor:
    """Combine the parts of one matrix. common: bits and group size; with `dynamic` the shapes decide instead."""
    codes, zeros, scales, index = parts
    if codes is None or zeros is None or scales is None:
        raise CheckpointError(f"{source}: {name} is packed, but its qzeros or scales are missing")
    shapes = [part.shape for part in (codes, zeros, scales)]
    kinds = (codes.dtype, zeros.dtype, scales.dtype)
    no_matrix = any(len(shape) != 2 or 0 in shape for shape in shapes)
    if no_matrix or kinds[:2] != ("int32", "int32") or kinds[2] not in FLOATS:
        raise CheckpointError(
            f"{source}: {name} has parts of {kinds} {shapes}: int32, int32, float matrices are needed"
        )
    bits, group = _own(*shapes) if dynamic else common
    columns, rows = shapes[0][0] * 32 // bits, shapes[0][1]
    count = 1 if group == -1 else -(-columns // group)
    ragged = common[1] != -1 and columns % common[1] and count == -(-columns // common[1])
    if dynamic and index is None and bits == common[0] and ragged:
        raise CheckpointError(
            f"{source}: {name} has {count} groups for {columns} columns, of {group} or of {common[1]}; it needs a g_idx"
        )
    if (
        bits not in BITS
        or shapes[0][0] * 32 % bits
        or shapes[1:] != [(count, rows * bits // 32), (count, rows)]
        or rows * bits % 32
    ):
        raise CheckpointError(
            f"{source}: {name} {shapes[0]} does not fit its qzeros {shapes[1]} and scales {shapes[2]} "
            f"with {bits} bits in groups of {group}"
        )
    if index is None:
        groups: NDArray[np.integer[Any]] = np.arange(columns) // (columns if group == -1 else group)
    else:
        groups = index.array
        if (
            index.dtype not in ("int32", "int64")
            or index.shape != (columns,)
            or groups.min() < 0
            or groups.max() >= count
        ):
            raise CheckpointError(
                f"{source}: the g_idx of {name}, {index.dtype} {index.shape}, does not name one of {count} groups "
                f"for each of {columns} columns"
            )
    return GPTQTensor(name, (rows, columns), bits, codes, zeros, scales, groups, zero_offset)


def _own(codes: tuple[int, ...], zeros: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, int]:
    """Bits and group size that follow from the shapes of a matrix's parts."""
    bits = max(1, zeros[1] * 32 // scales[1])
    return bits, max(1, codes[0] * 32 // bits // scales[0])
