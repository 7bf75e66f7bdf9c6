"""Random weights for a model that is made from a config alone."""

import numpy as np

from mistral_portable.graph import build
from mistral_portable.transformers.configuration import MistralConfig
from mistral_portable.transformers.seeds import fresh_seed
from mistral_portable.weights import DenseTensor, Tensor

__all__ = ["initial_tensors"]


def initial_tensors(
    config: MistralConfig, head: str, num_labels: int, random: np.random.Generator | None = None
) -> dict[str, Tensor]:
    """Draw float32 weights by their checkpoint names: matrices from a normal distribution with the standard deviation
    `config.initializer_range`; norms are 1 and biases 0. random: one of a `fresh_seed` if None."""
    random = random or np.random.default_rng(fresh_seed())
    tensors: dict[str, Tensor] = {}
    for name, shape in build(config.native(), head=head, num_labels=num_labels).tensors.items():
        if len(shape) == 1:
            values = np.full(shape, 0.0 if name.endswith(".bias") else 1.0, np.float32)
        else:
            values = random.standard_normal(shape, np.float32) * np.float32(config.initializer_range)
        tensors[name] = DenseTensor(name, "float32", values)
    return tensors
