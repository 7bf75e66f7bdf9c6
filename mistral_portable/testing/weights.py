"""Random weights for cases, dense or quantized."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mistral_portable.graph import Graph
from mistral_portable.weights import DenseTensor, QuantTensor, Tensor

__all__ = ["random_weights"]


def random_weights(graph: Graph, seed: int, quantization: str | None = None) -> Mapping[str, Tensor]:
    """Normal weights for every parameter part of an unfused graph, by checkpoint name.

    Matrices keep the scale of what they multiply (variance 1 / columns), vectors (norms, biases) lie near 1.
    With `quantization`, one of `weights.quantize.QUANTIZABLE`, matrices whose columns fill its blocks are packed;
    others stay float32, as in GGUF files.
    """
    random = np.random.default_rng(seed)
    weights: dict[str, Tensor] = {}
    for name, parameter in graph.parameters.items():
        normal = random.standard_normal(parameter.shape)
        matrix = normal.ndim == 2
        values = (normal * parameter.shape[-1] ** -0.5 if matrix else 1 + normal / 10).astype(np.float32)
        weights[name] = _pack(name, values, quantization) if quantization else DenseTensor(name, "float32", values)
    return weights


def _pack(name: str, values: NDArray[np.float32], quantization: str) -> Tensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import quantize

    kind = GGMLQuantizationType[quantization.upper()]
    block, _ = GGML_QUANT_SIZES[kind]
    if values.ndim != 2 or values.shape[1] % block:
        return DenseTensor(name, "float32", values)
    return QuantTensor(name, values.shape, kind, quantize(values, kind))
