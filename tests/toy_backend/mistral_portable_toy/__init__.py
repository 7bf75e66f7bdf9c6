"""The descriptor of the toy backend. Importing it imports no framework; `probe` and `prepare` do."""

from collections.abc import Mapping

from mistral_portable.boundary import Availability, Capabilities, ExecutorOptions, Program
from mistral_portable.cache import CacheSpec
from mistral_portable.graph import Graph
from mistral_portable.weights import Tensor

__all__ = ["BACKEND", "ToyBackend"]


class ToyBackend:
    """NumPy again, written as a third party would: from the boundary alone."""

    name = "toy"
    capabilities = Capabilities(dtypes={"float32": ("float32",)}, page_size=4)

    def probe(self) -> Availability:
        try:
            import numpy
        except ImportError:
            return Availability(0, "NumPy is missing: pip install numpy")
        return Availability(1, f"CPU, NumPy {numpy.__version__}, float32: an example, not a fast executor")

    def default_dtype(self, weights: Mapping[str, Tensor], options: ExecutorOptions) -> str:
        return "float32"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        from mistral_portable_toy.program import ToyProgram

        return ToyProgram(graph, weights, cache)


BACKEND = ToyBackend()
