"""Models that are cut at every layer: a backend that does it, in this process, and what must not change by it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from mistral_portable.boundary import Availability, Backend, Capabilities, ExecutorOptions, Program, prepare
from mistral_portable.cache import CacheSpec
from mistral_portable.graph import Graph
from mistral_portable.graph.stages import layers_of
from mistral_portable.staging import LocalStage, StagedProgram, make_part
from mistral_portable.testing.case import Case, cache_spec
from mistral_portable.testing.invariance import differing_bits
from mistral_portable.testing.scenario import Outputs, run
from mistral_portable.weights import Tensor

__all__ = ["StagedBackend", "difference_from_whole"]


@dataclass(frozen=True)
class StagedBackend:
    """A stage for each layer of a graph, each a program of `inner`."""

    inner: Backend

    @property
    def name(self) -> str:
        """The name of `inner`."""
        return self.inner.name

    @property
    def capabilities(self) -> Capabilities:
        """Those of `inner`."""
        return self.inner.capabilities

    def probe(self) -> Availability:
        """Whether `inner` can run here."""
        return self.inner.probe()

    def default_dtype(self, weights: Mapping[str, Tensor], options: ExecutorOptions) -> str:
        """That of `inner`."""
        return self.inner.default_dtype(weights, options)

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        """Cut the graph at every layer, and lower each stage onto `inner`."""
        cuts = range(1, len(layers_of(graph)))
        stages = [
            LocalStage(partial(make_part, self.inner, graph, cuts, stage, weights, cache, options))
            for stage in range(len(cuts) + 1)
        ]
        return StagedProgram(stages, depth=len(stages))


def difference_from_whole(case: Case, backend: Backend, options: ExecutorOptions) -> str:
    """Describe the first output of the staged model whose bits are not those of the whole one; "" if there is none."""
    spec = cache_spec(case, case.scenario, backend)
    staged, whole = (
        _run(prepare(some, case.graph, case.weights, spec, options), case, spec)
        for some in (StagedBackend(backend), backend)
    )
    return differing_bits(case.graph.outputs, staged, whole, "in stages")


def _run(program: Program, case: Case, spec: CacheSpec) -> dict[int, Outputs]:
    try:
        return run(program, case.graph, spec, case.scenario)
    finally:
        program.close()
