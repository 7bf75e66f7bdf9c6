"""Lowering: every op of the closed list as a function of MLX arrays."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mistral_portable.cache import CacheSpec
from mistral_portable.graph import Node, Rotation
from mistral_portable.graph.ir import PLAN_INPUTS
from mistral_portable_mlx.attention import Format, mask
from mistral_portable_mlx.inputs import Span
from mistral_portable_mlx.matrices import Matrix
from mistral_portable_mlx.stacks import Parts

__all__ = ["Kernel", "Lowering", "Step"]

_SORTED = 64  # pairs of a token and an expert from which on they are sorted by expert (mlx-lm's bound)


@dataclass
class Step:
    """A step for kernels: its shapes are integers, fixed where it is compiled; all else is in arrays.

    spans: by layer group and stack, the parts that are attended as one. inputs: see `inputs.py`. layers: by layer, the
    arrays of each stack; attention replaces them by the written ones.
    """

    spans: tuple[tuple[tuple[Span, ...], ...], ...]
    inputs: Mapping[str, mx.array]
    layers: dict[int, list[Parts]]
    masks: dict[tuple[int, int, Span], mx.array] = field(default_factory=dict)

    def mask(self, group: int, stack: int, span: Span) -> mx.array:
        """The attention mask, bool [sequences, 1, tokens of each, slots], made once for all layers of a group."""
        key = group, stack, span
        if key not in self.masks:
            first, positions, held = (self.inputs[f"{name}.{group}.{stack}"] for name in ("first", "positions", "held"))
            count = len(span.rows)
            first, positions = (_part(array, span.tokens).reshape(count, -1) for array in (first, positions))
            self.masks[key] = mask(first, positions, _part(held, span.rows))
        return self.masks[key]

    def tokens_of(self, x: mx.array, group: int, stack: int) -> mx.array:
        """Rows of x [T, n] that are of a stack's sequences, in the order of its rows."""
        order = self.inputs.get(f"order.{group}.{stack}")
        return x if order is None else x[order]


Kernel = Callable[..., Any]
"""A node's function: takes the Step and the node's inputs, returns an array; attention weights: a list of one array
per span."""


class Lowering:
    """A method for each op, which makes the kernel of a node."""

    def __init__(
        self,
        spec: CacheSpec,
        format: Format,
        rotations: Sequence[Rotation],
        matrices: Mapping[str, Matrix],
        vectors: Mapping[str, mx.array],
    ) -> None:
        self._spec, self._format, self._rotations = spec, format, rotations
        self._matrices, self._vectors = matrices, vectors
        self._heads = mx.arange(spec.num_key_value_heads, dtype=mx.uint32)[None]
        mx.eval(self._heads)
        # Elementwise ops, each compiled into one kernel for any T. Compiled per program: MLX binds a compiled function
        # to the stream of its first run.
        self._turn = mx.compile(lambda *arrays: _turn(*arrays), shapeless=True)
        self._silu_mul = mx.compile(lambda *arrays: _silu_mul(*arrays), shapeless=True)

    def kernel(self, node: Node) -> tuple[Kernel, tuple[str, ...]]:
        """The kernel of a node, and the names of the values that it takes; weights and the plan's inputs are bound."""
        made: Kernel = getattr(self, node.op)(node)
        bound = {*self._matrices, *self._vectors, *PLAN_INPUTS}
        return made, tuple(name for name in node.inputs if name not in bound)

    def embedding(self, node: Node) -> Kernel:
        """Rows of the table, by token id."""
        table = self._matrices[node.inputs[1]]
        return lambda step: table.rows(step.inputs["tokens"])

    def rms_norm(self, node: Node) -> Kernel:
        """RMS norm, by `mx.fast.rms_norm`."""
        weight, eps = self._vectors[node.inputs[1]], node.number("eps")
        return lambda step, x: mx.fast.rms_norm(x, weight, eps)

    def linear(self, node: Node) -> Kernel:
        """A product with the weight, plus the bias if there is one."""
        weight = self._matrices[node.inputs[1]]
        if len(node.inputs) == 2:
            return lambda step, x: weight.multiply(x)
        bias = self._vectors[node.inputs[2]]
        return lambda step, x: weight.multiply(x) + bias

    def rope(self, node: Node) -> Kernel:
        """Pairs of each head times cosines and signed sines."""
        name, half = self._rotations.index(node.rotation), node.rotation.head_dim // 2

        def turn(step: Step, x: mx.array) -> mx.array:
            pairs = x.reshape(len(x), -1, 2, half)  # (a, b) -> (a cos - b sin, b cos + a sin)
            turned = self._turn(pairs, pairs[:, :, ::-1], step.inputs[f"cos.{name}"], step.inputs[f"sin.{name}"])
            return turned.reshape(x.shape)

        return turn

    def attention(self, node: Node) -> Kernel:
        """Write keys and values to the pages, then attend, stack by stack."""
        scale, layer = node.number("scale"), node.integer("layer")
        back = f"back.{self._spec.group_of(layer)}"

        def attend(step: Step, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            self._write(step, layer, k, v)
            outs = [
                self._format.attend(queries, parts, seen, scale).swapaxes(1, 2).reshape(-1, q.shape[1])
                for queries, parts, seen in self._reads(step, layer, q)
            ]
            out = outs[0] if len(outs) == 1 else mx.concatenate(outs)
            return out[step.inputs[back]] if back in step.inputs else out

        return attend

    def attention_weights(self, node: Node) -> Kernel:
        """Write keys to the pages; the softmax of each span, [sequences, heads, T, slots] in the order of slots."""
        scale, layer = node.number("scale"), node.integer("layer")

        def weights(step: Step, q: mx.array, k: mx.array) -> list[mx.array]:
            self._write(step, layer, k)
            return [
                self._format.weights(queries, parts, seen, scale)
                for queries, parts, seen in self._reads(step, layer, q)
            ]

        return weights

    def silu_mul(self, node: Node) -> Kernel:
        """silu(gate) * up."""
        return lambda step, gate, up: self._silu_mul(gate, up)

    def moe(self, node: Node) -> Kernel:
        """The chosen experts of each token, weighted by the softmax of their scores."""
        gate, up, down = (self._matrices[name] for name in node.inputs[2:])
        top_k = node.integer("top_k")

        def mix(step: Step, x: mx.array, scores: mx.array) -> mx.array:
            chosen, shares = _choose(scores.astype(mx.float32), top_k)
            several = chosen.size >= _SORTED
            if several:  # by expert, so that a kernel reads its matrix once for all its tokens
                order = mx.argsort(chosen.reshape(-1))
                each, experts = x[order // top_k][:, None], chosen.reshape(-1)[order]  # [T * top_k, 1, H]
            else:
                each, experts = x[:, None, None], chosen  # [T, 1, 1, H], times matrices of [T, top_k]

            def product(matrix: Matrix, of: mx.array) -> mx.array:
                return matrix.gather(of, experts, scores.shape[1], several)

            out = product(down, self._silu_mul(product(gate, each), product(up, each)))[..., 0, :]
            if several:
                out = out[mx.argsort(order)].reshape(*chosen.shape, -1)
            return (out.astype(mx.float32) * shares[:, :, None]).sum(axis=1).astype(x.dtype)

        return mix

    def add(self, node: Node) -> Kernel:
        """a + b."""
        return lambda step, a, b: a + b

    def weigh(self, node: Node) -> Kernel:
        """x * factors, but 0 where a factor is 0."""
        return lambda step, x, factors: mx.where(factors == 0, mx.array(0, x.dtype), x * factors)

    def take_columns(self, node: Node) -> Kernel:
        """A range of columns."""
        columns = slice(node.integer("start"), node.integer("stop"))
        return lambda step, x: x[:, columns]

    def replace_rows(self, node: Node) -> Kernel:
        """x with given rows at some places; x itself where there are none."""

        def replace(step: Step, x: mx.array, given: mx.array, places: mx.array) -> mx.array:
            if not len(places):
                return x
            replaced = copy(x)  # another object: assignment to rows changes the object, not only the name
            replaced[places] = given
            return replaced

        return replace

    def take_rows(self, node: Node) -> Kernel:
        """The requested rows."""
        return lambda step, x: x[step.inputs["logit_rows"]]

    def _write(self, step: Step, layer: int, *kinds: mx.array) -> None:
        """Write keys, or keys and values, each [T, kv_heads * d], into their slots."""
        group, stacks = self._spec.group_of(layer), step.layers[layer]
        for stack, parts in enumerate(stacks):
            rows, slots = (step.inputs[f"{name}.{group}.{stack}"] for name in ("rows", "slots"))
            mine = kinds if len(stacks) == 1 else [step.tokens_of(x, group, stack) for x in kinds]
            for at, heads in enumerate(self._format.encode(*(_heads(x, self._spec.head_dim) for x in mine))):
                written = copy(parts[at])  # another object, as in `replace_rows`
                written[rows, self._heads, slots] = heads  # indices of one type: nothing but a scatter
                parts[at] = written

    def _reads(self, step: Step, layer: int, q: mx.array) -> Iterator[tuple[mx.array, list[mx.array], mx.array]]:
        """The queries [B, heads, T, d], arrays [B, ...] and mask of each span, stack by stack."""
        group = self._spec.group_of(layer)
        for stack, parts in enumerate(step.layers[layer]):
            queries = _heads(step.tokens_of(q, group, stack), self._spec.head_dim)
            for span in step.spans[group][stack]:
                mine = _part(queries, span.tokens).reshape(len(span.rows), -1, *queries.shape[1:])
                yield mine.swapaxes(1, 2), [_part(array, span.rows) for array in parts], step.mask(group, stack, span)


def _choose(scores: mx.array, top_k: int) -> tuple[mx.array, mx.array]:
    """Choose experts: scores float32 [T, E] -> those of highest score, uint32 [T, top_k], and their softmax.

    Of equal scores the lower expert comes first. Sorting on a device need not be stable, so ranks are computed.
    """
    experts = mx.arange(scores.shape[1])
    ours, others = scores[:, :, None], scores[:, None, :]
    before = (others > ours) | ((others == ours) & (experts[None, :] < experts[:, None]))
    ranks = before.astype(mx.int32).sum(axis=2)  # [T, E]
    chosen = (ranks[:, None, :] == mx.arange(top_k)[:, None]).argmax(axis=2)
    return chosen, mx.softmax(mx.take_along_axis(scores, chosen, axis=1), axis=1, precise=True)


def _heads(x: mx.array, head_dim: int) -> mx.array:
    """[T, heads * d] -> [T, heads, d]"""
    return x.reshape(len(x), -1, head_dim)


def _part(x: mx.array, rows: range) -> mx.array:
    """Rows of x; x itself if these are all."""
    return x if len(rows) == len(x) else x[rows.start : rows.stop]


def _turn(x: mx.array, swapped: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Rotate pairs, with products in float32 that are rounded once."""
    return (x.astype(mx.float32) * cos + swapped.astype(mx.float32) * sin).astype(x.dtype)


def _silu_mul(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up in float32, rounded once."""
    wide = gate.astype(mx.float32)
    return (wide * mx.sigmoid(wide) * up.astype(mx.float32)).astype(gate.dtype)
