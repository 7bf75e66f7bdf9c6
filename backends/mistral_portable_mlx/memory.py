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
        """Set MLX's limits: near its memory MLX waits for what is under way, freed scratch goes back to the system, and
        on Metal weights and cache stay resident."""
        mx.set_memory_limit(self.bytes)
        mx.set_cache_limit(_KEPT)
        if self.kind == "Metal":
            try:
                mx.set_wired_limit(self.bytes)
            except (RuntimeError, ValueError) as error:  # macOS before 15 has no such limit
                warnings.warn(f"weights are not wired, the system may page them out: {error}", stacklevel=5)

    def require(self, weights: int, lane: int, scratch: int, tokens: int) -> None:
        """Raise CapacityError if weights, a first lane of `tokens` tokens and the scratch of its step do not fit."""
        used = mx.get_active_memory()
        total = weights + lane + scratch + used
        if total > self.bytes:
            raise CapacityError(
                f"the model does not fit: weights {gigabytes(weights)} + keys and values of {tokens} tokens "
                f"{gigabytes(lane)} + scratch of their step {gigabytes(scratch)} + {gigabytes(used)} of other models = "
                f"{gigabytes(total)}, and {self.kind} has {gigabytes(self.bytes)}: use --quantize q4_0 or a smaller "
                "model"
            )

    def has_room(self, more: int) -> bool:
        """Tell whether `more` bytes fit beside what MLX holds. The scratch of a step under way counts as long as it is
        not done; it is waited for before the answer is no."""
        if mx.get_active_memory() + more > self.bytes:
            mx.synchronize()
        return mx.get_active_memory() + more <= self.bytes

    def refusal(self, weights: int, cache: int, scratch: int, tokens: int) -> CapacityError:
        """Make the error for a step of `tokens` tokens: with its keys and values the cache takes `cache` bytes."""
        others = max(0, mx.get_active_memory() - weights - cache)
        total = weights + cache + scratch + others
        return CapacityError(
            f"a step of {tokens} tokens does not fit: weights {gigabytes(weights)} + keys and values "
            f"{gigabytes(cache)} + scratch {gigabytes(scratch)} + {gigabytes(others)} of other models = "
            f"{gigabytes(total)}, and {self.kind} has {gigabytes(self.bytes)}: use --kv-cache q8_0, a shorter text or "
            "fewer sequences"
        )

    def require_growth(self, more: int, tokens: int) -> None:
        """Raise CapacityError if `more` bytes, for keys and values of a sequence of `tokens` tokens, do not fit."""
        self._require_cache(more, f"the cache of a sequence of {tokens} tokens does not fit")

    def require_copies(self, more: int, pages: int) -> None:
        """Raise CapacityError if `more` bytes, to bring `pages` pages into new arrays, do not fit."""
        self._require_cache(more, f"the cache cannot be moved, {pages} sequences, a layer at a time")

    def _require_cache(self, more: int, what: str) -> None:
        if more > 0 and not self.has_room(more):
            raise CapacityError(
                f"{what}: {gigabytes(more)} more beside {gigabytes(mx.get_active_memory())} in use, and {self.kind} "
                f"has {gigabytes(self.bytes)}: use --kv-cache q8_0, a shorter text or fewer sequences"
            )


def weight_bytes(graph: Graph, weights: Mapping[str, Tensor], dtype: mx.Dtype) -> int:
    """Bytes that all parameters of a program in `dtype` take on the device."""
    parts = {part for parameter in graph.parameters.values() for part in parameter.parts}
    return sum(form(weights[part], dtype).nbytes(weights[part].shape) for part in parts)
