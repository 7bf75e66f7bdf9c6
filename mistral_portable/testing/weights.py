"""Random weights for cases, dense or quantized."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mistral_portable.graph import Graph
from mistral_portable.testing.routing import decide_clearly
from mistral_portable.weights import DenseTensor, QuantTensor, Tensor

__all__ = ["random_weights"]


def random_weights(graph: Graph, seed: int, quantization: str | None = None) -> Mapping[str, Tensor]:
    """Normal weights for every tensor of an unfused graph, by checkpoint name.

    Matrices keep the scale of what they multiply (variance 1 / columns), vectors (norms, biases) lie near 1.
    With `quantization`, one of `weights.quantize.QUANTIZABLE`, matrices whose columns fill its blocks are packed;
    others stay float32, as in GGUF files. Experts are chosen clearly (see `routing`).
    """
    random = np.random.default_rng(seed)
    values: dict[str, NDArray[np.float64]] = {}
    for name, shape in graph.tensors.items():
        normal = random.standard_normal(shape)
        values[name] = normal * shape[-1] ** -0.5 if normal.ndim == 2 else 1 + normal / 10
    decide_clearly(graph, values, np.random.default_rng((seed, 1)))
    singles = {name: array.astype(np.float32) for name, array in values.items()}
    if quantization is None:
        return {name: DenseTensor(name, "float32", array) for name, array in singles.items()}
    return {name: _pack(name, array, quantization) for name, array in singles.items()}


def _pack(name: str, values: NDArray[np.float32], quantization: str) -> Tensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import quantize

    kind = GGMLQuantizationType[quantization.upper()]
    block, _ = GGML_QUANT_SIZES[kind]
    if values.ndim != 2 or values.shape[1] % block:
        return DenseTensor(name, "float32", values)
    return QuantTensor(name, values.shape, kind, quantize(values, kind))
