"""Repositories quantized by mlx-lm: `config.json` has the settings, and a matrix is three tensors."""

import reprlib
from collections.abc import Mapping
from typing import Any, TypeGuard

from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.weights.affine import BITS, GROUP_SIZES, AffineTensor
from mistral_portable.weights.names import from_hf
from mistral_portable.weights.source import DenseTensor, Tensor

__all__ = ["affine_tensors"]


def affine_tensors(tensors: Mapping[str, Tensor], quantization: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Combine a packed `X.weight` with its `X.scales` and `X.biases`; other tensors stay as they are.

    quantization: settings from `config.json`, such as `{"group_size": 64, "bits": 4}`, which may hold objects with
    other settings for single modules, by name. Raises ConfigError for unsupported settings, CheckpointError for parts
    that are missing or do not fit.
    """
    own = {from_hf(f"{name}.weight"): value for name, value in quantization.items() if isinstance(value, Mapping)}
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if _packed(tensor):
            scales, biases = tensors.get(f"{module}.scales"), tensors.get(f"{module}.biases")
            if not isinstance(scales, DenseTensor) or not isinstance(biases, DenseTensor):
                raise CheckpointError(f"{source}: {name} is packed, but {module}.scales or {module}.biases is missing")
            made[name] = _affine(tensor, scales, biases, {**quantization, **own.get(name, {})}, source)
        elif kind in ("scales", "biases") and (weight := tensors.get(f"{module}.weight")) is not None:
            if not _packed(weight):
                raise CheckpointError(f"{source}: there is {name}, but {weight.name} is {weight.dtype}, not packed")
        else:
            made[name] = tensor
    return made


def _packed(tensor: Tensor | None) -> TypeGuard[DenseTensor]:
    return isinstance(tensor, DenseTensor) and tensor.dtype == "uint32"


def _affine(
    packed: DenseTensor, scales: DenseTensor, biases: DenseTensor, how: Mapping[str, Any], source: str
) -> AffineTensor:
    bits, group, mode = how.get("bits"), how.get("group_size"), how.get("mode", "affine")
    given = [reprlib.repr(value) for value in (mode, bits, group)]
    whole = isinstance(bits, int) and isinstance(group, int)
    if not whole or mode != "affine" or bits not in BITS or group not in GROUP_SIZES:
        raise ConfigError(
            f"{source}: {packed.name} has mode={given[0]}, bits={given[1]}, group_size={given[2]}: supported are "
            f"mode 'affine', bits {', '.join(map(str, BITS))} and groups of {', '.join(map(str, GROUP_SIZES))}"
        )
    shape = (packed.shape[0], scales.shape[-1] * group) if len(packed.shape) == len(scales.shape) == 2 else (0, 0)
    fits = packed.shape == (shape[0], shape[1] * bits // 32) and scales.shape == (shape[0], shape[1] // group)
    if not fits or biases.shape != scales.shape or "uint32" in (scales.dtype, biases.dtype):
        raise CheckpointError(
            f"{source}: {packed.name} {packed.shape} does not fit its scales, {scales.dtype} {scales.shape}, and "
            f"biases, {biases.dtype} {biases.shape}, with {bits} bits in groups of {group}"
        )
    return AffineTensor(packed.name, shape, bits, group, packed.array, scales, biases)
