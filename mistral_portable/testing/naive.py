"""The naive program of the same precision: what plain arithmetic gives, rounding by rounding."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import INT8_BLOCK, Q8_0_BLOCK, Precision
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.graph import Graph, Node, Parameter
from mistral_portable.reference import ops
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.testing.rounding import EPSILON, round_to, round_to_int8
from mistral_portable.weights import BlockTensor, Tensor

__all__ = ["NaiveProgram"]


class NaiveProgram(ReferenceProgram):
    """The reference in float32 (float64 for "float64"), with weights and every result rounded as a Precision says.

    Each number that an op reads is first moved at random by up to one epsilon, and each that becomes int8 by up to
    half a step, so that it may be rounded either way. So a run is one sample of the errors that an honest
    implementation may make: those of another order of summation are errors of this kind (Higham, Accuracy and
    Stability of Numerical Algorithms, section 3.1: a rounded dot product is an exact one of inputs that are
    slightly off). Only the squares of a norm are added one after another, as a plain loop does: all are positive, so
    that errors of this order are those of no other inputs.
    """

    def __init__(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, rounding: Precision, seed: int
    ) -> None:
        self._rounding = rounding
        self._random = np.random.default_rng(seed)
        super().__init__(graph, weights, cache, "float64" if rounding.dtype == "float64" else "float32")

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, NDArray[Any]]:
        with np.errstate(over="ignore"):
            return super().step(plan, inputs)

    def _given(self, array: NDArray[Any]) -> NDArray[Any]:
        return round_to(array, self._rounding.dtype) if array.dtype.kind == "f" else array

    def _run(self, node: Node, inputs: list[Any], plan: StepPlan) -> NDArray[Any]:
        if node.op in ("take_rows", "take_columns", "embedding", "replace_rows"):  # no arithmetic, so no rounding
            return super()._run(node, inputs, plan)
        dtype = self._rounding.dtype
        read = [
            x if name in self._graph.parameters or name == "positions" else self._nudged(x, dtype)
            for name, x in zip(node.inputs, inputs, strict=True)
        ]
        if node.op == "linear":
            read[0] = self._linear_input(read[0], node.inputs[1])
        if node.op == "rms_norm":
            return round_to(_rms_norm(read[0], read[1], node.attributes["eps"]), dtype)
        return round_to(super()._run(node, read, plan), dtype)

    def _moe(self, node: Node, inputs: list[Any]) -> NDArray[Any]:
        """The experts round as the linears and the silu_mul that they are made of."""
        x, scores, gate, up, down = inputs
        names, dtype = dict(zip(("gate", "up", "down"), node.inputs[2:], strict=True)), self._rounding.dtype

        def multiply(matrix: str, x: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
            x = self._linear_input(self._nudged(x, dtype), names[matrix])
            return round_to(ops.linear(x, weight), dtype)

        def activate(gate: NDArray[Any], up: NDArray[Any]) -> NDArray[Any]:
            return round_to(ops.silu_mul(self._nudged(gate, dtype), self._nudged(up, dtype)), dtype)

        top_k: Any = node.attributes["top_k"]
        return ops.moe(x, scores, gate, up, down, top_k, multiply=multiply, activate=activate)

    def _write(self, store: dict[int, NDArray[Any]], node: Node, x: NDArray[Any], plan: StepPlan) -> None:
        kind = self._rounding.kv_cache
        if kind == "q8_0":
            x = self._int8(x.reshape(-1, self._cache_spec.head_dim), Q8_0_BLOCK, "float16").reshape(x.shape)
        elif kind not in (None, self._rounding.dtype):
            x = self._nudged(x, kind)
        super()._write(store, node, x, plan)

    def _linear_input(self, x: NDArray[Any], weight: str) -> NDArray[Any]:
        """The input that a linear with this parameter multiplies: int8 numbers if the program says so."""
        int8 = self._rounding.quantized_linear == "int8" and self._in_blocks(weight)
        return self._int8(x, INT8_BLOCK) if int8 else x

    def _in_blocks(self, parameter: str) -> bool:
        return any(isinstance(self._weights[part], BlockTensor) for part in self._graph.parameters[parameter].parts)

    def _nudged(self, x: NDArray[Any], dtype: str) -> NDArray[Any]:
        nudge = self._random.uniform(-1, 1, x.shape) * EPSILON[dtype]
        return round_to((x * (1 + nudge)).astype(x.dtype), dtype)

    def _int8(self, x: NDArray[Any], block: int, scale_dtype: str = "float32") -> NDArray[Any]:
        return round_to_int8(x, block, self._random.uniform(-0.5, 0.5, x.shape), scale_dtype)

    def _read(self, parameter: Parameter) -> NDArray[Any]:
        return round_to(super()._read(parameter), self._rounding.dtype)


def _rms_norm(x: NDArray[Any], weight: NDArray[Any], eps: Any) -> NDArray[Any]:
    squares = np.add.accumulate(x * x, axis=-1)[:, -1:]
    out: NDArray[Any] = x / np.sqrt(squares / x.dtype.type(x.shape[1]) + x.dtype.type(eps)) * weight
    return out
