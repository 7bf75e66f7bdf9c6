"""HF repositories of packed weights: reads their kind from `config.json`, and combines the tensors that together are
one packed matrix."""

import reprlib
from collections.abc import Mapping
from typing import Any

from mistral_portable.config import MistralConfig
from mistral_portable.errors import CheckpointError, ConfigError
from mistral_portable.weights.awq import awq_tensors
from mistral_portable.weights.compressed_tensors import compressed_tensors
from mistral_portable.weights.fp8 import fp8_tensors
from mistral_portable.weights.gptq import gptq_tensors
from mistral_portable.weights.mlx_quantized import affine_tensors
from mistral_portable.weights.source import DenseTensor, Tensor

__all__ = ["UNPACKED", "combine_packed", "quantization"]

_READERS = {
    "awq": awq_tensors,
    "compressed-tensors": compressed_tensors,
    "fp8": fp8_tensors,
    "gptq": gptq_tensors,
    "mlx": affine_tensors,
}
_FLOATS = ("float32", "float16", "bfloat16")

UNPACKED = "{}: {} weights are unpacked to floats as a backend reads them; a GGUF file may run packed."
"""Notice for kinds that no backend multiplies with while they are packed."""


def quantization(config: MistralConfig, source: str) -> dict[str, Any]:
    """The settings of packed weights, with their kind as `quant_method`; empty if the weights are floats.

    MLX states them in `quantization` and repeats them in `quantization_config`; all others use the latter only.
    Raises ConfigError, which begins with `source`, for kinds that are not supported.
    """
    own, other = config.extra.get("quantization"), config.extra.get("quantization_config")
    if own:
        if not isinstance(own, Mapping):
            raise ConfigError(f"{source}: quantization={reprlib.repr(own)} must be an object")
        if other and other != own:
            raise ConfigError(
                f"{source}: quantization_config={reprlib.repr(other)}: beside `quantization` only MLX's are supported; "
                "use the original checkpoint"
            )
        return {**own, "quant_method": "mlx"}
    if not other:
        return {}
    method = other.get("quant_method") if isinstance(other, Mapping) else None
    if not isinstance(method, str) or method not in _READERS.keys() - {"mlx"}:
        raise ConfigError(
            f"{source}: weights of quant_method={reprlib.repr(method)} are not supported: MLX's, awq, "
            "compressed-tensors, fp8 and gptq are; use the original checkpoint or a GGUF file"
        )
    return dict(other)


def combine_packed(
    stored: Mapping[str, DenseTensor], how: Mapping[str, Any], source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Combine the stored parts of each packed matrix into one tensor; returns all tensors, and notices.

    how: the result of `quantization`. Raises ConfigError for unsupported settings, and CheckpointError for parts that
    are missing or do not fit and for integer tensors that belong to no packed matrix.
    """
    method = how.get("quant_method")
    tensors: dict[str, Tensor] = {**_READERS[method](stored, how, source)} if method else {**stored}
    for name, tensor in tensors.items():
        if isinstance(tensor, DenseTensor) and tensor.dtype not in _FLOATS:
            raise CheckpointError(f"{source}: {name} is {tensor.dtype}, which is not a part of {method} weights")
    return tensors, (UNPACKED.format(source, method.upper()),) if method and method != "mlx" else ()
