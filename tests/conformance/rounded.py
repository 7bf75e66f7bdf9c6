"""Backends that round to small types, as they say they do or otherwise: made from the reference."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
from conformance.making import Array, Make

from mistral_portable.boundary import INT8_BLOCK, Q8_0_BLOCK, Precision, Program
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.graph import Graph, Node
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.testing.rounding import round_to, round_to_int8
from mistral_portable.weights import Tensor

__all__ = ["HONEST", "WRONG"]

Round = Callable[[Array], Array]


def _rounded(precision: Precision, *, inputs: Round = np.copy, cached: Round = np.copy) -> Make:
    """Make programs that say `precision`; functions round inputs of linears [T, I] and cached heads [T, heads, d]."""

    class Rounded(ReferenceProgram):
        def _run(self, node: Node, values: list[Any], plan: StepPlan) -> Array:
            return super()._run(node, [inputs(values[0]), *values[1:]] if node.op == "linear" else values, plan)

        def _write(self, store: dict[int, Array], node: Node, x: Array, plan: StepPlan) -> None:
            heads = x.reshape(len(x), -1, self._cache_spec.head_dim)
            super()._write(store, node, cached(heads).reshape(x.shape), plan)

    def make(graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec) -> Program:
        program = Rounded(graph, weights, cache, "float32")
        program.precision = precision
        return program

    return make


class _OneAfterAnother(ReferenceProgram):
    """Adds up as a plain loop does, in float32."""

    def _run(self, node: Node, inputs: list[Any], plan: StepPlan) -> Array:
        if node.op == "rms_norm":
            x, weight = inputs
            squares = np.add.accumulate(x * x, axis=1)[:, -1:]
            root: Array = np.sqrt(squares / np.float32(x.shape[1]) + np.float32(cast(float, node.attributes["eps"])))
            normed: Array = x / root * weight
            return normed
        if node.op == "linear" and len(inputs) == 2:
            x, weight = inputs
            products: Array = np.add.accumulate(x[:, None, :] * weight, axis=2)
            return products[:, :, -1]
        return super()._run(node, inputs, plan)


def _one_after_another(graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec) -> Program:
    return _OneAfterAnother(graph, weights, cache, "float32")


def _int8(x: Array) -> Array:
    return round_to_int8(x, INT8_BLOCK)


def _int5(x: Array) -> Array:
    """One scale for a row, for the numbers -15 .. 15."""
    scale = np.abs(x).max(axis=-1, keepdims=True, initial=1e-9) / x.dtype.type(15)
    rounded: Array = np.rint(x / scale) * scale
    return rounded


def _signed_scale(x: Array) -> Array:
    """The scale is that of the largest number, which may be smaller than some negative one."""
    scale = np.maximum(x.max(axis=-1, keepdims=True), x.dtype.type(1e-9)) / x.dtype.type(127)
    rounded: Array = np.clip(np.rint(x / scale), -127, 127) * scale
    return rounded


_INT8 = Precision(quantized_linear="int8")
_F16 = Precision(kv_cache="float16")
_Q8_0 = Precision(kv_cache="q8_0")

HONEST: dict[str, tuple[str, Make]] = {
    **{
        f"sums one after another, {rung}": (rung, _one_after_another)
        for rung in ("op.rms_norm", "op.linear", "ragged", "weights.q4_1")
    },
    "int8 inputs": ("weights.q4_0", _rounded(_INT8, inputs=_int8)),
    "int8 inputs in float32": ("weights.q4_1", _rounded(_INT8)),
    "no int8 for float weights": ("op.linear", _rounded(_INT8)),
    "float16 cache": ("op.attention", _rounded(_F16, cached=lambda x: round_to(x, "float16"))),
    "q8_0 cache": ("op.attention", _rounded(_Q8_0, cached=lambda x: round_to_int8(x, Q8_0_BLOCK, 0, "float16"))),
    "q8_0 cache of a model": ("ragged", _rounded(_Q8_0, cached=lambda x: round_to_int8(x, Q8_0_BLOCK, 0, "float16"))),
    "q8_0 cache in float32": ("op.attention_weights", _rounded(_Q8_0)),
}
"""Name -> a rung of the ladder that must let it pass, and how it is made."""

WRONG: dict[str, tuple[str, Make]] = {
    "int8 inputs that are said to be float32": ("weights.q4_0", _rounded(Precision(), inputs=_int8)),
    "int8 inputs of float weights": ("op.linear", _rounded(_INT8, inputs=_int8)),
    "int5 inputs that are said to be int8": ("weights.q4_0", _rounded(_INT8, inputs=_int5)),
    "int8 scale of max x, not of max |x|": ("weights.q8_0", _rounded(_INT8, inputs=_signed_scale)),
    "float16 cache that is said to be float32": (
        "op.attention",
        _rounded(Precision(), cached=lambda x: round_to(x, "float16")),
    ),
    "bfloat16 cache that is said to be float16": (
        "op.attention",
        _rounded(_F16, cached=lambda x: round_to(x, "bfloat16")),
    ),
    "5-bit cache that is said to be q8_0": ("op.attention", _rounded(_Q8_0, cached=_int5)),
    "q8_0 scale of max x, not of max |x|": ("op.attention_weights", _rounded(_Q8_0, cached=_signed_scale)),
}
"""Name -> the rung of the ladder that must catch it, and how it is made."""
