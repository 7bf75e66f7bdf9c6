"""From nodes to closures: what every op of the closed list is in MLX."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from mistral_portable.cache import CacheSpec
from mistral_portable.graph import Node, Rotation
from mistral_portable_mlx.attention import Format, mask
from mistral_portable_mlx.cache import Parts
from mistral_portable_mlx.matrices import Matrix

__all__ = ["INPUTS_EMBEDS", "Kernel", "Lowering", "Step"]

INPUTS_EMBEDS = "inputs_embeds"
"""The input that, where a step has it, stands for the rows of the embedding table."""


@dataclass
class Step:
    """What kernels know of a step: shapes as integers, everything else as arrays, which a compiled step takes anew.

    starts: sequence s owns the tokens starts[s] .. starts[s + 1] - 1. inputs: see `inputs.py`. layers: by layer, the
    arrays of each sequence's lane; attention puts the written ones in place of those it found.
    """

    starts: tuple[int, ...]
    inputs: Mapping[str, mx.array]
    layers: dict[int, list[Parts]]
    masks: dict[tuple[int, int], mx.array] = field(default_factory=dict)
    written: set[tuple[int, str]] = field(default_factory=set)

    @property
    def spans(self) -> list[tuple[int, slice]]:
        """Each sequence and its tokens."""
        return [(s, slice(a, b)) for s, (a, b) in enumerate(zip(self.starts, self.starts[1:], strict=False))]

    def mask(self, group: int, sequence: int, tokens: slice) -> mx.array:
        """bool [T of the sequence, slots], made once for all layers of a group."""
        key = group, sequence
        if key not in self.masks:
            first, positions = self.inputs[f"first.{group}"][tokens], self.inputs["positions"][tokens]
            self.masks[key] = mask(first, positions, self.inputs[f"held.{group}.{sequence}"])
        return self.masks[key]


Kernel = Callable[..., Any]
"""Takes the Step and the node's inputs, returns its result: an array; of attention weights one per sequence."""


class Lowering:
    """One method per op, each returning the kernel of a node."""

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
        # Elementwise ops in one kernel each, compiled once for any T. They are this program's own, as MLX compiles a
        # function for the stream on which it runs first.
        self._turn = mx.compile(lambda *arrays: _turn(*arrays), shapeless=True)
        self._silu_mul = mx.compile(lambda *arrays: _silu_mul(*arrays), shapeless=True)

    def kernel(self, node: Node) -> tuple[Kernel, tuple[str, ...]]:
        """The kernel, and the values that it takes; parameters are bound."""
        made: Kernel = getattr(self, node.op)(node)
        bound = {*self._matrices, *self._vectors, "tokens", "positions", "rows"}
        return made, tuple(name for name in node.inputs if name not in bound)

    def embedding(self, node: Node) -> Kernel:
        table = self._matrices[node.inputs[1]]

        def rows(step: Step) -> mx.array:
            given = step.inputs.get(INPUTS_EMBEDS)
            return table.rows(step.inputs["tokens"]) if given is None else given

        return rows

    def rms_norm(self, node: Node) -> Kernel:
        weight, eps = self._vectors[node.inputs[1]], _float(node, "eps")
        return lambda step, x: mx.fast.rms_norm(x, weight, eps)

    def linear(self, node: Node) -> Kernel:
        weight = self._matrices[node.inputs[1]]
        if len(node.inputs) == 2:
            return lambda step, x: weight.multiply(x)
        bias = self._vectors[node.inputs[2]]
        return lambda step, x: weight.multiply(x) + bias

    def rope(self, node: Node) -> Kernel:
        rotation = node.attributes["rotation"]
        assert isinstance(rotation, Rotation)
        name, half = self._rotations.index(rotation), rotation.head_dim // 2

        def turn(step: Step, x: mx.array) -> mx.array:
            pairs = x.reshape(len(x), -1, 2, half)  # (a, b) -> (a cos - b sin, b cos + a sin)
            turned = self._turn(pairs, pairs[:, :, ::-1], step.inputs[f"cos.{name}"], step.inputs[f"sin.{name}"])
            return turned.reshape(x.shape)

        return turn

    def attention(self, node: Node) -> Kernel:
        head_dim, scale, layer = _int(node, "head_dim"), _float(node, "scale"), _int(node, "layer")
        group = self._spec.group_of(layer)

        def attend(step: Step, q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            self._write(step, layer, "keys", k)
            self._write(step, layer, "values", v)
            outs = []
            for s, tokens in step.spans:
                seen = step.mask(group, s, tokens)
                out = self._format.attend(_heads(q[tokens], head_dim), step.layers[layer][s], seen, scale)
                outs.append(out.swapaxes(0, 1).reshape(seen.shape[0], -1))
            return outs[0] if len(outs) == 1 else mx.concatenate(outs)

        return attend

    def attention_weights(self, node: Node) -> Kernel:
        head_dim, scale, layer = _int(node, "head_dim"), _float(node, "scale"), _int(node, "layer")
        group = self._spec.group_of(layer)

        def weights(step: Step, q: mx.array, k: mx.array) -> list[mx.array]:
            """Per sequence [T, heads, slots], in order of slots."""
            self._write(step, layer, "keys", k)
            return [
                self._format.weights(
                    _heads(q[tokens], head_dim), step.layers[layer][s], step.mask(group, s, tokens), scale
                ).swapaxes(0, 1)
                for s, tokens in step.spans
            ]

        return weights

    def silu_mul(self, node: Node) -> Kernel:
        return lambda step, gate, up: self._silu_mul(gate, up)

    def moe(self, node: Node) -> Kernel:
        gate, up, down = (self._matrices[name] for name in node.inputs[2:])
        top_k = _int(node, "top_k")

        def mix(step: Step, x: mx.array, scores: mx.array) -> mx.array:
            count = scores.shape[1]
            chosen, shares = _choose(scores.astype(mx.float32), top_k)
            each = x[:, None, None, :]  # [T, 1, 1, H], times matrices of [T, top_k]
            inner = self._silu_mul(gate.gather(each, chosen, count), up.gather(each, chosen, count))
            out = down.gather(inner, chosen, count)[:, :, 0].astype(mx.float32)  # [T, top_k, H]
            return (out * shares[:, :, None]).sum(axis=1).astype(x.dtype)

        return mix

    def add(self, node: Node) -> Kernel:
        return lambda step, a, b: a + b

    def take_columns(self, node: Node) -> Kernel:
        columns = slice(_int(node, "start"), _int(node, "stop"))
        return lambda step, x: x[:, columns]

    def take_rows(self, node: Node) -> Kernel:
        return lambda step, x: x[step.inputs["rows"]]

    def _write(self, step: Step, layer: int, kind: str, x: mx.array) -> None:
        """Put keys or values [T, kv_heads * d] into their slots, once per step."""
        if (layer, kind) in step.written:
            return
        step.written.add((layer, kind))
        half = len(self._format.parts) // 2
        begin = 0 if kind == "keys" else half
        slots = step.inputs[f"slots.{self._spec.group_of(layer)}"]
        for s, tokens in step.spans:
            parts = step.layers[layer][s]
            for at, rows in enumerate(self._format.encode(_heads(x[tokens], self._spec.head_dim)), begin):
                written = mx.array(parts[at])  # another name for it: assignment changes what a name stands for
                written[:, slots[tokens]] = rows
                parts[at] = written


def _choose(scores: mx.array, top_k: int) -> tuple[mx.array, mx.array]:
    """float32 [T, E] -> the experts of highest score, uint32 [T, top_k], and the softmax of their scores.

    By rank, as sorting on a device need not keep the order of equal scores: the lower expert is to come first.
    """
    experts = mx.arange(scores.shape[1])
    ours, others = scores[:, :, None], scores[:, None, :]
    before = (others > ours) | ((others == ours) & (experts[None, :] < experts[:, None]))
    ranks = before.astype(mx.int32).sum(axis=2)  # [T, E]
    chosen = (ranks[:, None, :] == mx.arange(top_k)[:, None]).argmax(axis=2)
    return chosen, mx.softmax(mx.take_along_axis(scores, chosen, axis=1), axis=1, precise=True)


def _heads(x: mx.array, head_dim: int) -> mx.array:
    """[T, heads * d] -> [heads, T, d]"""
    return x.reshape(len(x), -1, head_dim).swapaxes(0, 1)


def _turn(x: mx.array, swapped: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Products in float32, rounded once; so is `_silu_mul`."""
    return (x.astype(mx.float32) * cos + swapped.astype(mx.float32) * sin).astype(x.dtype)


def _silu_mul(gate: mx.array, up: mx.array) -> mx.array:
    wide = gate.astype(mx.float32)
    return (wide * mx.sigmoid(wide) * up.astype(mx.float32)).astype(gate.dtype)


def _int(node: Node, name: str) -> int:
    value = node.attributes[name]
    assert isinstance(value, int)
    return value


def _float(node: Node, name: str) -> float:
    value = node.attributes[name]
    assert isinstance(value, int | float)
    return float(value)
