"""Wrong backends: each is the reference with one mistake that a real backend could make."""

from collections.abc import Mapping
from dataclasses import dataclass

from conformance.invariant import VARIANT
from conformance.making import Make, of_class
from conformance.rounded import WRONG
from conformance.wrong_ops import HALVES, WRONG_OPS
from conformance.wrong_pages import WRONG_PAGES
from conformance.wrong_steps import WRONG_STEPS

from mistral_portable.boundary import Availability, Capabilities, ExecutorOptions, Program
from mistral_portable.cache import CacheSpec
from mistral_portable.graph import Graph
from mistral_portable.reference import BACKEND
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.weights import Tensor

__all__ = ["MUTANTS", "Mutant", "right"]


@dataclass(frozen=True)
class Mutant:
    """A backend whose programs are made by `make`, with the reference's pages or, if page_size is None, rings."""

    name: str
    make: Make
    page_size: int | None = BACKEND.capabilities.page_size

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(dtypes={"float32": ("float32",)}, page_size=self.page_size)

    def probe(self) -> Availability:
        return Availability(1, "a wrong backend")

    def default_dtype(self, weights: Mapping[str, Tensor], options: ExecutorOptions) -> str:
        return "float32"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        return self.make(graph, weights, cache)


right = of_class(ReferenceProgram)
"""Makes programs without a mistake."""

MUTANTS: dict[str, tuple[str, Make]] = {
    **WRONG_OPS,
    **WRONG_PAGES,
    **WRONG_STEPS,
    **WRONG,
    **VARIANT,
    **HALVES,
}
"""Name -> the rung of the ladder that must catch it, and how it is made."""
