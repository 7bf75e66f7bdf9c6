"""HF repositories of packed weights: reads their kind from `config.json` or a file beside it, and combines the tensors
that together are one packed matrix."""

import json
import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.weights.awq import awq_tensors
from mistral_portable.weights.compressed_tensors import compressed_tensors
from mistral_portable.weights.fp8 import fp8_tensors
from mistral_portable.weights.gptq import gptq_tensors
from mistral_portable.weights.mlx_quantized import affine_tensors
from mistral_portable.weights.packed import PackedTensor
from mistral_portable.weights.source import FLOATS, DenseTensor, Tensor, map_file

__all__ = ["PACKING_KEYS", "combine_packed", "normal_settings", "quantization"]

_READERS = {
    "awq": awq_tensors,
    "compressed-tensors": compressed_tensors,
    "fp8": fp8_tensors,
    "gptq": gptq_tensors,
    "mlx": affine_tensors,
}
_SETTINGS_FILES = ("quantize_config.json", "quant_config.json")
"""Files with the settings of GPTQ and AWQ, written before `config.json` had them."""

PACKING_KEYS = ("quantization", "quantization_config", "compression_config")
"""The keys of `config.json` and `params.json` that describe packed weights."""

_MAX_SETTINGS = 2**20  # bytes; with a rule for each module of a large model they have 100 kB
_ALIASES = {"w_bit": "bits", "q_group_size": "group_size"}
_OF_AWQ = frozenset([*_ALIASES, "version", "zero_point"])
_PARTS = frozenset(
    ["qweight", "qzeros", "scales", "g_idx", "weight"]
    + [f"weight_{part}" for part in ("packed", "scale", "shape", "zero_point", "g_idx")]
)
"""Last parts of the names of tensors that may be a matrix of the model or a part of one, whatever their type is."""

_DECODER = ("model.", "lm_head.")
"""Beginnings of the names of modules without biases; classification heads have them."""

_UNPACKED = "{}: {} weights are unpacked to floats as a backend reads them; a GGUF file may run packed."
"""Notice for kinds that no backend multiplies with while they are packed."""


def quantization(config: MistralConfig, folder: Path, stored: Iterable[str]) -> dict[str, Any]:
    """The settings of an HF folder's packed weights, with their kind as `quant_method`; empty if none are stated.

    MLX states them in `quantization` of `config.json` and repeats them in `quantization_config`; all others use the
    latter only, earlier versions of compressed-tensors `compression_config`, of GPTQ and AWQ a file beside it.

    stored: the names of all tensors: that file counts only if some are GPTQ's or AWQ's.
    Raises ConfigError, which names the folder, for kinds that are not supported.
    """
    own, other = config.extra.get("quantization"), config.extra.get("quantization_config")
    if own:
        if not isinstance(own, Mapping):
            raise ConfigError(f"{folder}: quantization={reprlib.repr(own)} must be an object")
        if other and other != own:
            raise ConfigError(
                f"{folder}: quantization_config={reprlib.repr(other)}: beside `quantization` only MLX's are supported; "
                "use the original checkpoint"
            )
        return {**own, "quant_method": "mlx"}
    other = other or config.extra.get("compression_config")
    if not other and any(name.endswith(".qweight") for name in stored):
        other = _settings_file(folder)
    return normal_settings(other, str(folder)) if other else {}


def normal_settings(given: object, source: str) -> dict[str, Any]:
    """Settings under the usual names: `quant_method` in lower case, AWQ's `w_bit` and `q_group_size` as in others.

    Raises ConfigError, which begins with `source`, for other methods.
    """
    method = given.get("quant_method") if isinstance(given, Mapping) else None
    name = method.lower().replace("_", "-") if isinstance(method, str) else None
    if not isinstance(given, Mapping) or name not in _READERS.keys() - {"mlx"}:
        raise ConfigError(
            f"{source}: weights of quant_method={reprlib.repr(method)} are not supported: MLX's, awq, "
            "compressed-tensors, fp8 and gptq are; use the original checkpoint or a GGUF file"
        )
    renamed = {own: given[key] for key, own in _ALIASES.items() if key in given}
    return {**given, **renamed, "quant_method": name}


def _settings_file(folder: Path) -> dict[str, Any]:
    """The content of the first file of settings, with its method, which is often left out; empty if there is none."""
    path = next((folder / name for name in _SETTINGS_FILES if (folder / name).is_file()), None)
    if path is None:
        return {}
    data = map_file(path)
    try:
        settings = json.loads(bytes(data[:_MAX_SETTINGS]))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON of at most {_MAX_SETTINGS} bytes: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: is not a JSON object")
    return {"quant_method": "awq" if _OF_AWQ & settings.keys() else "gptq", **settings}


def combine_packed(
    stored: Mapping[str, DenseTensor], how: Mapping[str, Any], source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Combine the stored parts of each packed matrix into one tensor; returns all tensors, and notices.

    Dropped are buffers that are no floats, such as masks and positions, and biases of the decoder that are all zero,
    which AutoGPTQ and AutoAWQ write for modules that have none.

    how: the result of `quantization`. Raises ConfigError for unsupported settings, and CheckpointError for parts that
    are missing or do not fit and for matrices of other types that are not packed.
    """
    method = how.get("quant_method")
    read: dict[str, Tensor] = {**_READERS[method](stored, how, source)} if method else {**stored}
    tensors: dict[str, Tensor] = {}
    for name, tensor in read.items():
        module, _, kind = name.rpartition(".")
        own_bias = kind == "bias" and f"{module}.weight" in read
        floats = not isinstance(tensor, DenseTensor) or tensor.dtype in FLOATS
        if not floats and (kind in _PARTS or own_bias):
            raise CheckpointError(
                f"{source}: {name!r:.100} is {tensor.dtype}, "
                + (f"which is not a part of {method} weights" if method else "and no file says how it is packed")
            )
        without_effect = own_bias and name.startswith(_DECODER) and not tensor.numpy().any()
        if floats and not without_effect:
            tensors[name] = tensor
    unpacked = any(isinstance(tensor, PackedTensor) for tensor in tensors.values())
    return tensors, (_UNPACKED.format(source, str(method).upper()),) if unpacked else ()
