"""What a model needs and what the device has: a model that cannot fit is refused with the sum."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx

from mistral_portable.errors import BackendError, CacheError
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor
from mistral_portable_mlx.matrices import form

__all__ = ["Memory", "weight_bytes"]

_KEPT = 2**29  # bytes of freed scratch that MLX may keep for later; its own limit is all of the memory


@dataclass(frozen=True)
class Memory:
    """bytes that all of MLX in this process may take on a device of this kind."""

    bytes: int
    kind: str

    def configure(self) -> None:
        """Set MLX's limits: freed scratch goes back to the system, and on Metal what a model needs stays resident."""
        mx.set_cache_limit(_KEPT)
        if self.kind == "Metal":
            try:
                mx.set_wired_limit(self.bytes)
            except (RuntimeError, ValueError) as error:  # before macOS 15 there is no such limit
                warnings.warn(f"weights are not wired, the system may page them out: {error}", stacklevel=5)

    def require(self, weights: int, lane: int, tokens: int) -> None:
        """Raise BackendError if weights and a first lane of `tokens` tokens do not fit."""
        used = mx.get_active_memory()
        if used + weights + lane > self.bytes:
            raise BackendError(
                f"the model does not fit: weights {_gb(weights)} + keys and values of {tokens} tokens {_gb(lane)} + "
                f"{_gb(used)} of other models = {_gb(weights + lane + used)}, and {self.kind} has {_gb(self.bytes)}: "
                "use --quantize q4_0 or a smaller model"
            )

    def require_growth(self, more: int, tokens: int) -> None:
        """Raise CacheError if keys and values of a sequence of `tokens` tokens take `more` bytes than there are."""
        used = mx.get_active_memory()
        if used + more > self.bytes:
            raise CacheError(
                f"the cache of a sequence of {tokens} tokens does not fit: {_gb(more)} more beside {_gb(used)} in use, "
                f"and {self.kind} has {_gb(self.bytes)}: use --kv-cache q8_0, a shorter text or fewer sequences"
            )


def weight_bytes(graph: Graph, weights: Mapping[str, Tensor], dtype: mx.Dtype) -> int:
    """Bytes of all parameters on the device of a program in `dtype`."""
    parts = {part for parameter in graph.parameters.values() for part in parameter.parts}
    return sum(form(weights[part], dtype).nbytes(weights[part].shape) for part in parts)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
