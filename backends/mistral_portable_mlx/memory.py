"""Memory limits: a model or a cache that does not fit is refused, and the message holds the sum."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from mistral_portable.boundary.shared import gigabytes
from mistral_portable.errors import CapacityError
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor
from mistral_portable_mlx.matrices import form

__all__ = ["Memory", "weight_bytes"]

_KEPT = 2**29  # bytes of freed scratch that MLX keeps for reuse; its own default is all of the memory


@dataclass(frozen=True)
class Memory:
    """bytes: the most that MLX may take in this process. kind: of the device, "Metal", "CUDA" or "CPU"."""

    bytes: int
    kind: str

    def configure(self) -> None:
        """Set MLX's limits: freed scratch goes back to the system, and on Metal weights and cache stay resident."""
        mx.set_cache_limit(_KEPT)
        if self.kind == "Metal":
            try:
                mx.set_wired_limit(self.bytes)
            except (RuntimeError, ValueError) as error:  # macOS before 15 has no such limit
                warnings.warn(f"weights are not wired, the system may page them out: {error}", stacklevel=5)

    def require(self, weights: int, lane: int, tokens: int) -> None:
        """Raise CapacityError if weights and a first lane of `tokens` tokens, in bytes, do not fit."""
        used = mx.get_active_memory()
        if used + weights + lane > self.bytes:
            total = gigabytes(weights + lane + used)
            raise CapacityError(
                f"the model does not fit: weights {gigabytes(weights)} + keys and values of {tokens} tokens "
                f"{gigabytes(lane)} + {gigabytes(used)} of other models = {total}, and {self.kind} has "
                f"{gigabytes(self.bytes)}: use --quantize q4_0 or a smaller model"
            )

    def require_growth(self, more: int, tokens: int) -> None:
        """Raise CapacityError if `more` bytes, for keys and values of a sequence of `tokens` tokens, do not fit."""
        self._require_cache(more, f"the cache of a sequence of {tokens} tokens does not fit")

    def require_copies(self, more: int, pages: int) -> None:
        """Raise CapacityError if `more` bytes, to bring `pages` pages into new arrays, do not fit."""
        self._require_cache(more, f"the cache cannot be moved, {pages} sequences, a layer at a time")

    def _require_cache(self, more: int, what: str) -> None:
        used = mx.get_active_memory()
        if more and used + more > self.bytes:
            raise CapacityError(
                f"{what}: {gigabytes(more)} more beside {gigabytes(used)} in use, and {self.kind} has "
                f"{gigabytes(self.bytes)}: use --kv-cache q8_0, a shorter text or fewer sequences"
            )


def weight_bytes(graph: Graph, weights: Mapping[str, Tensor], dtype: mx.Dtype) -> int:
    """Bytes that all parameters of a program in `dtype` take on the device."""
    parts = {part for parameter in graph.parameters.values() for part in parameter.parts}
    return sum(form(weights[part], dtype).nbytes(weights[part].shape) for part in parts)
