"""The machine's limits and the least time that a measurement can take at them. Used by `tools/bench.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from mistral_portable.bench import Measurement, ModelEngine
from mistral_portable.config import MistralConfig
from mistral_portable.weights import open_checkpoint

__all__ = ["LIMITS", "Limits", "Work", "kernels"]


@dataclass(frozen=True)
class Limits:
    """Peak rates: bytes read, and multiplications plus additions (8-bit on numba), per second."""

    bytes_per_s: float
    ops_per_s: float


def _numba(engine: object, threads: int) -> Limits:
    from mistral_portable_numba.roofline import int8_peak, read_bandwidth

    return Limits(read_bandwidth(threads) * 1e9, int8_peak(threads) * 1e9)


def _torch(engine: ModelEngine, threads: int | None) -> Limits:
    from tools.bench_torch import copy_bandwidth, matmul_peak

    program: Any = engine.model.program
    return Limits(copy_bandwidth(program.device), matmul_peak(program.device, program.precision.dtype))


LIMITS: dict[str, Callable[..., Limits]] = {"numba": _numba, "torch": _torch}
"""By backend, the function that measures its limits, called in the engine's process: same cores, same moment."""


def kernels(engine: object, threads: int) -> list[tuple[str, float, str, float]]:
    """Measure each kernel of the numba backend: name, figure, unit, and percent of its limit."""
    from mistral_portable_numba import roofline

    return list(roofline.kernels(threads))


@dataclass(frozen=True)
class Work:
    """The bytes and operations that a model needs, whatever the engine."""

    config: MistralConfig
    weight_bytes: int
    """Bytes read in every step: all weights but the embedding, of which a step reads a few rows (if it is not tied)."""
    layer_weights: int
    """Weights multiplied with every token: the layers'. The output matrix takes the last token of a prompt only."""

    @classmethod
    def of(cls, model: str) -> "Work":
        """The work of a model, from its checkpoint's config and tensor sizes."""
        checkpoint = open_checkpoint(model)
        tied = checkpoint.config.tie_word_embeddings
        return cls(
            checkpoint.config,
            sum(t.nbytes for name, t in checkpoint.tensors.items() if tied or "embed_tokens" not in name),
            sum(prod(t.shape) for name, t in checkpoint.tensors.items() if ".layers." in name and len(t.shape) == 2),
        )

    def seconds(self, measurement: Measurement, limits: Limits) -> float:
        """The least seconds that a measurement can take: reading or arithmetic, whichever is more.

        Attention counts as reading keys and values in float16, without arithmetic.
        """
        steps = -(-measurement.tokens // measurement.chunk)
        config, depth = self.config, measurement.depth
        seen = sum(depth if window is None else min(depth, window) for window in config.layer_windows)
        cache = measurement.sequences * seen * 2 * config.num_key_value_heads * config.head_dim * 2
        read = steps * (self.weight_bytes + cache) / limits.bytes_per_s
        compute = 2 * self.layer_weights * measurement.sequences * measurement.tokens / limits.ops_per_s
        return max(read, compute)
