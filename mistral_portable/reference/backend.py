"""The descriptor of the reference executor."""

from collections.abc import Mapping

import numpy as np

from mistral_portable.cache import CacheSpec
from mistral_portable.errors import BackendError
from mistral_portable.executor import Availability, ExecutorOptions, require_supported
from mistral_portable.graph import OPS, Graph
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.weights import Tensor

__all__ = ["BACKEND", "ReferenceBackend"]

_DTYPES = ("float32", "float64")


class ReferenceBackend:
    """Plain NumPy on the CPU. Slow, exact, the one to compare with."""

    name = "reference"

    def probe(self) -> Availability:
        return Availability(1, f"CPU, NumPy {np.__version__}, float32 or float64: the slow, exact oracle")

    def supports(self, op: str, dtype: str) -> str | None:
        if dtype not in _DTYPES:
            return f"dtype {dtype!r}: the reference computes in {' or '.join(_DTYPES)}; choose one, or another backend"
        return None if op in OPS else f"unknown op {op!r}"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> ReferenceProgram:
        options.refuse("reference", "device", "attention", "quantize", "tensor_parallel")
        dtype = options.dtype or "float32"
        require_supported(self, graph, dtype)
        if options.kv_cache not in (None, dtype):
            raise BackendError(
                f"kv_cache={options.kv_cache!r}: the reference keeps keys and values in its own {dtype}; "
                "leave the option out, or choose another backend"
            )
        return ReferenceProgram(graph, weights, cache, dtype, threads=options.threads, progress=options.progress)


BACKEND = ReferenceBackend()
