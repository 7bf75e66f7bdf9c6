"""The descriptor of the reference executor."""

from collections.abc import Mapping

import numpy as np

from mistral_portable.boundary.backend import Availability
from mistral_portable.boundary.options import Capabilities, ExecutorOptions
from mistral_portable.cache import CacheSpec
from mistral_portable.graph import Graph
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.weights import Tensor

__all__ = ["BACKEND", "ReferenceBackend"]


class ReferenceBackend:
    """Plain NumPy on the CPU. Slow, exact, the one to compare with."""

    name = "reference"
    capabilities = Capabilities(
        dtypes={"float32": ("float32",), "float64": ("float64",)}, options=frozenset({"threads"}), page_size=16
    )

    def probe(self) -> Availability:
        return Availability(1, f"CPU, NumPy {np.__version__}, float32 or float64: the slow, exact oracle")

    def default_dtype(self, weights: Mapping[str, Tensor], options: ExecutorOptions) -> str:
        return "float32"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> ReferenceProgram:
        assert options.dtype is not None  # set by `boundary.prepare`
        return ReferenceProgram(
            graph, weights, cache, options.dtype, threads=options.threads, progress=options.progress
        )


BACKEND = ReferenceBackend()
