"""Wrong arithmetic: ops with other attributes or inputs, or with other rules."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from conformance.making import (
    Array,
    Make,
    of_class,
    wrong_attributes,
    wrong_inputs,
    wrong_outputs,
    wrong_plan,
)

from mistral_portable.boundary import Precision, Program
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.config import QueryScale
from mistral_portable.graph import Graph, Node, Parameter, Rotation
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.testing.naive import NaiveProgram
from mistral_portable.weights import Tensor
from mistral_portable.weights.quantize_on_read import QUANTIZABLE

__all__ = ["HALVES", "WRONG_OPS"]


def _window(step: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda attributes: {"window": attributes["window"] and max(1, attributes["window"] + step)}


def _layer_0_window(graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec) -> Program:
    window = next((node.attributes["window"] for node in graph.nodes if node.op == "attention"), None)
    return wrong_attributes("attention", lambda attributes: {"window": window})(graph, weights, cache)


def _at_the_end(plan: StepPlan, spec: CacheSpec) -> StepPlan:
    """All queries of a sequence at the position of its last one."""
    return plan._replace(positions=np.repeat(plan.positions[plan.query_starts[1:] - 1], np.diff(plan.query_starts)))


def _restarted(inputs: list[Any], plan: StepPlan) -> list[Any]:
    return [inputs[0], np.concatenate([np.arange(count) for count in np.diff(plan.query_starts)])]


def _first_rows(inputs: list[Any], plan: StepPlan) -> list[Any]:
    return [inputs[0], np.arange(len(plan.logit_rows))]


def _rows_within(inputs: list[Any], plan: StepPlan) -> list[Any]:
    starts = plan.query_starts[np.searchsorted(plan.query_starts, plan.logit_rows, side="right") - 1]
    return [inputs[0], plan.logit_rows - starts]


def _columns_before(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"start": attributes["start"] - 1, "stop": attributes["stop"] - 1}


def _rotation(change: Callable[[Rotation], Rotation]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda attributes: {"rotation": change(attributes["rotation"])}


def _theta_1e4(rotation: Rotation) -> Rotation:
    half = len(rotation.frequencies)
    return replace(rotation, frequencies=tuple(1e4 ** (-j / half) for j in range(half)))


def _later(rotation: Rotation) -> Rotation:
    own = rotation.query_scale
    return replace(rotation, query_scale=own and QueryScale(own.beta, own.original_max_position_embeddings + 1))


def _keys_grow(graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec) -> Program:
    rotations = [node.attributes["rotation"] for node in graph.nodes if node.op == "rope"]  # the first is of queries
    return wrong_attributes("rope", lambda attributes: {"rotation": rotations[0]})(graph, weights, cache)


def _first_places(inputs: list[Any], plan: StepPlan) -> list[Any]:
    x, given, places = inputs
    return [x, given, np.arange(len(places))]


def _first_scores(inputs: list[Any], plan: StepPlan) -> list[Any]:
    return [inputs[0], np.broadcast_to(inputs[1][:1], inputs[1].shape), *inputs[2:]]


def _scores_of_none(inputs: list[Any], plan: StepPlan) -> list[Any]:
    return [inputs[0], inputs[1] * 0, *inputs[2:]]


class _SoftmaxOfAll(ReferenceProgram):
    """Weighs the chosen experts by their share among all."""

    def _moe(self, node: Node, inputs: list[Any]) -> Array:
        scores = inputs[1]
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        top_k: Any = node.attributes["top_k"]
        share: Array = np.sort(exponentials, axis=1)[:, -top_k:].sum(axis=1) / exponentials.sum(axis=1)
        out: Array = super()._moe(node, inputs) * share[:, None]
        return out


class _Interleaved(ReferenceProgram):
    """RoPE on the pairs (x_2j, x_2j+1), as in the original checkpoints."""

    def _run(self, node: Node, inputs: list[Any], plan: StepPlan) -> Array:
        if node.op != "rope":
            return super()._run(node, inputs, plan)
        rotation: Any = node.attributes["rotation"]
        d = rotation.head_dim
        order = np.concatenate([np.arange(0, d, 2), np.arange(1, d, 2)])
        columns = np.concatenate([start + order for start in range(0, inputs[0].shape[1], d)])
        turned = super()._run(node, [inputs[0][:, columns], inputs[1]], plan)
        return turned[:, np.argsort(columns)]


class _HeadModulo(ReferenceProgram):
    """Query head h reads key/value head h % kv_heads instead of h // group."""

    def _run(self, node: Node, inputs: list[Any], plan: StepPlan) -> Array:
        if node.op != "attention":
            return super()._run(node, inputs, plan)
        a: Any = node.attributes
        heads = np.arange(a["num_attention_heads"]).reshape(-1, a["num_key_value_heads"]).T.ravel()
        columns = (heads[:, None] * a["head_dim"] + np.arange(a["head_dim"])).ravel()
        return super()._run(node, [inputs[0][:, columns], *inputs[1:]], plan)[:, np.argsort(columns)]


class _Tied(ReferenceProgram):
    """Multiplies by the embedding table where the model has its own LM head."""

    def _parameter(self, name: str) -> Array:
        return super()._parameter("model.embed_tokens.weight" if name == "lm_head.weight" else name)


class _Halves(ReferenceProgram):
    """Takes the two halves of a packed block (of 32 numbers) for one another."""

    def _read(self, parameter: Parameter) -> Array:
        array = super()._read(parameter)
        if self._weights[parameter.name].dtype not in QUANTIZABLE:
            return array
        return array.reshape(-1, 2, 16)[:, ::-1].reshape(array.shape)


def _float16(graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec) -> Program:
    return NaiveProgram(graph, weights, cache, Precision("float16"), seed=7)


HALVES = {f"{name} halves swapped": (f"weights.{name}", of_class(_Halves)) for name in QUANTIZABLE}
"""Mutants like WRONG_OPS, for each type of blocks."""

WRONG_OPS: dict[str, tuple[str, Make]] = {
    "token ids one off": ("op.embedding", wrong_inputs("embedding", lambda inputs, plan: [inputs[0] - 1, inputs[1]])),
    "no eps": ("op.rms_norm", wrong_attributes("rms_norm", lambda attributes: {"eps": 1e-30})),
    "float16 that says float32": ("op.linear", _float16),
    "no bias": ("op.linear+bias", wrong_inputs("linear", lambda inputs, plan: inputs[:2])),
    "RoPE interleaved": ("op.rope", of_class(_Interleaved)),
    "positions restart at each chunk": ("op.rope", wrong_inputs("rope", _restarted)),
    "theta 10000 always": ("op.rope", wrong_attributes("rope", _rotation(_theta_1e4))),
    "no attention factor of YaRN": ("op.rope", wrong_attributes("rope", _rotation(lambda r: replace(r, scale=1.0)))),
    "queries that do not grow": (
        "op.rope",
        wrong_attributes("rope", _rotation(lambda r: replace(r, query_scale=None))),
    ),
    "queries that grow one token late": ("op.rope", wrong_attributes("rope", _rotation(_later))),
    "keys grow as queries do": ("one_shot", _keys_grow),
    "one expert too many": ("op.moe", wrong_attributes("moe", lambda a: {"top_k": a["top_k"] + 1})),
    "gate and up of experts swapped": (
        "op.moe",
        wrong_inputs("moe", lambda inputs, plan: [*inputs[:2], *inputs[3:1:-1], inputs[4]]),
    ),
    "softmax over all experts": ("op.moe", of_class(_SoftmaxOfAll)),
    "the experts of the first token for all": ("op.moe", wrong_inputs("moe", _first_scores)),
    "expert 0 always": ("one_shot", wrong_inputs("moe", _scores_of_none)),
    "window one too wide": ("op.attention", wrong_attributes("attention", _window(1))),
    "window one too narrow": ("op.attention", wrong_attributes("attention", _window(-1))),
    "no scale": ("op.attention", wrong_attributes("attention", lambda attributes: {"scale": 1.0})),
    "key/value head h % kv_heads": ("op.attention", of_class(_HeadModulo)),
    "not causal within a chunk": ("op.attention", wrong_plan(_at_the_end)),
    "weights one column off": ("op.attention_weights", wrong_outputs(lambda array: np.roll(array, 1, axis=-1))),
    "gate and up swapped": ("op.silu_mul", wrong_inputs("silu_mul", lambda inputs, plan: inputs[::-1])),
    "a + a": ("op.add", wrong_inputs("add", lambda inputs, plan: [inputs[0], inputs[0]])),
    "x times itself": ("op.weigh", wrong_inputs("weigh", lambda inputs, plan: [inputs[0], inputs[0]])),
    "the first row's factor for all": (
        "op.weigh+rows",
        wrong_inputs("weigh", lambda inputs, plan: [inputs[0], np.broadcast_to(inputs[1][:1], inputs[1].shape)]),
    ),
    "columns one off": ("op.take_columns", wrong_attributes("take_columns", _columns_before)),
    "given rows come first": ("op.replace_rows", wrong_inputs("replace_rows", _first_places)),
    "first rows for requested rows": ("op.take_rows", wrong_inputs("take_rows", _first_rows)),
    "window of layer 0 in all layers": ("one_shot", _layer_0_window),
    "output head tied always": ("one_shot", of_class(_Tied)),
    "rows counted within a sequence": ("rows", wrong_inputs("take_rows", _rows_within)),
}
"""Name -> the rung of the ladder that must catch it, and how it is made."""
