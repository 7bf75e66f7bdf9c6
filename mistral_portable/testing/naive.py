"""The same-dtype naive program: what plain arithmetic in a float type gives, rounding by rounding."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.graph import Graph, Node, Parameter
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.weights import Tensor

__all__ = ["EPSILON", "NaiveProgram", "round_to"]

EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Distance from 1 to the next number of each float type: twice the unit roundoff."""


def round_to(x: NDArray[Any], dtype: str) -> NDArray[Any]:
    """x in float32 (float64 for "float64") rounded to the nearest number of `dtype`: 1.01 -> 1.0078 in bfloat16."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)  # ties to even
        return rounded.view(np.float32)
    if dtype == "float16":
        return x.astype(np.float16).astype(np.float32)
    return x.astype(dtype)


class NaiveProgram(ReferenceProgram):
    """The reference in float32 (float64 for "float64"), with weights and every result rounded to `dtype`.

    Each number that an op reads is first moved at random by up to one epsilon. So a run is one sample of the errors
    that an honest implementation may make: those of another order of summation are errors of this kind (Higham,
    Accuracy and Stability of Numerical Algorithms, section 3.1: a rounded dot product is an exact one of inputs
    that are slightly off).
    """

    def __init__(self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, dtype: str, seed: int) -> None:
        self._rounding = dtype
        self._random = np.random.default_rng(seed)
        super().__init__(graph, weights, cache, "float64" if dtype == "float64" else "float32")

    def step(self, plan: StepPlan) -> dict[str, NDArray[Any]]:
        with np.errstate(over="ignore"):
            return super().step(plan)

    def _run(self, node: Node, inputs: list[Any], plan: StepPlan) -> NDArray[Any]:
        if node.op in ("take_rows", "take_columns", "embedding"):  # nothing is computed, nothing is rounded
            return super()._run(node, inputs, plan)
        read = [
            x if name in self._graph.parameters else self._nudge(x) for name, x in zip(node.inputs, inputs, strict=True)
        ]
        return round_to(super()._run(node, read, plan), self._rounding)

    def _nudge(self, x: NDArray[Any]) -> NDArray[Any]:
        if not np.issubdtype(x.dtype, np.floating):  # positions
            return x
        nudge = self._random.uniform(-1, 1, x.shape) * EPSILON[self._rounding]
        return round_to((x * (1 + nudge)).astype(x.dtype), self._rounding)

    def _read(self, parameter: Parameter) -> NDArray[Any]:
        return round_to(super()._read(parameter), self._rounding)
