"""What the machine could do at best: how fast weights can be read and multiplied, beside how fast they were."""

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
    """Bytes read, and multiplications and additions done (8-bit ones on numba), in a second."""

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
"""By backend. They are measured in the engine's process, so that both run where and when the engine runs."""


def kernels(engine: object, threads: int) -> list[tuple[str, float, str, float]]:
    """Name, figure, unit and percent of its limit of each kernel."""
    from mistral_portable_numba import roofline

    return list(roofline.kernels(threads))


@dataclass(frozen=True)
class Work:
    """What a model asks of the machine, whatever the engine."""

    config: MistralConfig
    weight_bytes: int
    """Read in every step: all but the embedding, of which a step reads a few rows."""
    layer_weights: int
    """Multiplied with every token; the output matrix is multiplied with the last token of a prompt only."""

    @classmethod
    def of(cls, model: str) -> "Work":
        checkpoint = open_checkpoint(model)
        tied = checkpoint.config.tie_word_embeddings
        return cls(
            checkpoint.config,
            sum(t.nbytes for name, t in checkpoint.tensors.items() if tied or "embed_tokens" not in name),
            sum(prod(t.shape) for name, t in checkpoint.tensors.items() if ".layers." in name and len(t.shape) == 2),
        )

    def seconds(self, measurement: Measurement, limits: Limits) -> float:
        """The least that a measurement can take: reading or arithmetic, whichever is more.

        Of attention it counts the reading of keys and values in float16, and no arithmetic.
        """
        steps = -(-measurement.tokens // measurement.chunk)
        config, depth = self.config, measurement.depth
        seen = sum(depth if window is None else min(depth, window) for window in config.layer_windows)
        cache = measurement.sequences * seen * 2 * config.num_key_value_heads * config.head_dim * 2
        read = steps * (self.weight_bytes + cache) / limits.bytes_per_s
        compute = 2 * self.layer_weights * measurement.sequences * measurement.tokens / limits.ops_per_s
        return max(read, compute)
