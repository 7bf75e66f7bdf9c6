"""The descriptor of the toy backend. Importing it imports no framework; `probe` and `prepare` do."""

from collections.abc import Mapping

from mistral_portable.boundary import Availability, ExecutorOptions, Program, require_supported
from mistral_portable.cache import CacheSpec
from mistral_portable.errors import BackendError
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor

__all__ = ["BACKEND", "ToyBackend"]


class ToyBackend:
    """NumPy again, written as a third party would: from the boundary alone."""

    name = "toy"

    def probe(self) -> Availability:
        try:
            import numpy
        except ImportError:
            return Availability(0, "NumPy is missing: pip install numpy")
        return Availability(1, f"CPU, NumPy {numpy.__version__}, float32: an example, not a fast executor")

    def supports(self, op: str, dtype: str) -> str | None:
        from mistral_portable_toy.lowering import OPS

        if dtype != "float32":
            return f"dtype {dtype!r}: the toy computes in float32 only; choose float32 or another backend"
        return None if op in OPS else f"the toy has no op {op!r}; choose another backend"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        from mistral_portable_toy.program import ToyProgram

        require_supported(self, graph, options.dtype or "float32")
        options.refuse("toy", "device", "attention", "quantize", "tensor_parallel")
        if options.threads is not None:
            raise BackendError(f"threads={options.threads}: the toy has NumPy's own threads, see OMP_NUM_THREADS")
        if options.kv_cache not in (None, "float32"):
            raise BackendError(f"kv_cache={options.kv_cache!r}: the toy keeps float32; leave the option out")
        return ToyProgram(graph, weights, cache)


BACKEND = ToyBackend()
