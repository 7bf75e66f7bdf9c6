"""Lowering of graph nodes to closures: every op in torch."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mistral_portable.cache import CacheSpec
from mistral_portable.graph import PLAN_INPUTS, Node
from mistral_portable.graph.liveness import Launch
from mistral_portable_torch.attention import Attention, Eager, Planned
from mistral_portable_torch.cache import Cache
from mistral_portable_torch.elementwise import Elementwise, Turn, write
from mistral_portable_torch.experts import Experts
from mistral_portable_torch.matrices import Dense, Matrix
from mistral_portable_torch.packed import Packed

__all__ = ["ATTENTION", "EXPOSED", "Kernel", "Lowering", "Step"]

ATTENTION, EXPOSED = "attention", "exposed"
"""Prefixes of the names of the attention kernel's inputs, and of those of the kernel for attention weights."""


@dataclass(frozen=True)
class Step:
    """inputs: arrays on the device, by name. fixed: `Planned.fixed` of each layer group, by prefix. recorded: whether
    the step is one that may be recorded; its work on the host is then the same each time, also before it is recorded,
    so that nothing is compiled or allocated for the first time while it is."""

    inputs: Mapping[str, Tensor]
    fixed: Mapping[str, tuple[Hashable, ...]]
    recorded: bool = False
    _prepared: dict[tuple[str, int], Any] = field(default_factory=dict)

    def prepared(self, kernel: Attention, prefix: str, group: int) -> Any:
        """The kernel's prepared inputs of one layer group, made once for all layers."""
        if (prefix, group) not in self._prepared:
            start = f"{prefix}.{group}."
            arrays = {name.removeprefix(start): array for name, array in self.inputs.items() if name.startswith(start)}
            self._prepared[prefix, group] = kernel.prepare(Planned(self.fixed[prefix][group], arrays))
        return self._prepared[prefix, group]


Kernel = Callable[..., Any]
"""Takes the Step and a launch's inputs; returns its result, or a tuple of several: tensors, or for attention weights a
list of one per sequence."""


class Lowering:
    """One method for each op, and for ops that are computed together, each returning a kernel."""

    def __init__(
        self,
        spec: CacheSpec,
        cache: Cache,
        attention: Attention,
        rotations: Sequence[object],
        elementwise: Elementwise,
        matrices: Mapping[str, Matrix],
        vectors: Mapping[str, Tensor],
    ) -> None:
        self._spec, self._cache, self._attention, self._elementwise = spec, cache, attention, elementwise
        self._rotations, self._matrices, self._vectors, self._eager = rotations, matrices, vectors, Eager()

    def kernel(self, launch: Launch) -> tuple[Kernel, tuple[str, ...]]:
        """The launch's kernel, and the names of the values that it is called with; parameters are bound already."""
        made: Kernel = getattr(self, "_and_".join(node.op for node in launch.nodes))(*launch.nodes)
        bound = {*self._matrices, *self._vectors, *PLAN_INPUTS}
        return made, tuple(name for name in launch.inputs if name not in bound)

    def embedding(self, node: Node) -> Kernel:
        table = self._matrices[node.inputs[1]]
        return lambda step: table.rows(step.inputs["tokens"])

    def replace_rows(self, node: Node) -> Kernel:
        # Launches nothing if no row is replaced.
        return lambda step, x, given, places: x.index_copy(0, places, given) if len(places) else x

    def rms_norm(self, node: Node) -> Kernel:
        weight, eps = self._vectors[node.inputs[1]], node.number("eps")
        return lambda step, x: self._elementwise.rms_norm(x, weight, eps)

    def add_and_rms_norm(self, add: Node, norm: Node) -> Kernel:
        """Both of a sum and its norm."""
        weight, eps = self._vectors[norm.inputs[1]], norm.number("eps")
        return lambda step, a, b: self._elementwise.add_rms_norm(a, b, weight, eps)

    def linear(self, node: Node) -> Kernel:
        weight = self._matrices[node.inputs[1]]
        bias = self._vectors[node.inputs[2]] if len(node.inputs) == 3 else None
        return lambda step, x: weight.multiply(x, bias)

    def rope(self, node: Node) -> Kernel:
        turn = self._turn(node)
        return lambda step, x: self._elementwise.rope(x, turn(step))

    def attention(self, node: Node) -> Kernel:
        layer, attend = node.integer("layer"), self._attend(node)
        group = self._spec.group_of(layer)

        def written(step: Step, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            slots = step.inputs[f"slots.{group}"]
            write(self._cache.keys(layer), slots, k)
            write(self._cache.values(layer), slots, v)
            return attend(step, q)

        return written

    def rope_and_rope_and_attention(self, queries: Node, keys: Node, node: Node) -> Kernel:
        """Attention, of queries and keys that are turned as they are written."""
        layer, attend = node.integer("layer"), self._attend(node)
        group, turns = self._spec.group_of(layer), (self._turn(queries), self._turn(keys))

        def written(step: Step, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            pools = self._cache.keys(layer), self._cache.values(layer)
            both = turns[0](step), turns[1](step)
            return attend(step, self._elementwise.rope_into(q, k, v, both, *pools, step.inputs[f"slots.{group}"]))

        return written

    def attention_weights(self, node: Node) -> Kernel:
        head_dim, scale, layer = node.integer("head_dim"), node.number("scale"), node.integer("layer")
        group = self._spec.group_of(layer)

        def weights(step: Step, q: Tensor, k: Tensor) -> list[Tensor]:
            """Per sequence [T, heads, slots], in order of slots."""
            keys = self._cache.keys(layer)
            write(keys, step.inputs[f"slots.{group}"], k)
            prepared = step.prepared(self._eager, EXPOSED, group)
            return self._eager.weights(q.unflatten(1, (-1, head_dim)), keys, prepared, scale)

        return weights

    def silu_mul(self, node: Node) -> Kernel:
        return lambda step, gate, up: self._elementwise.silu_mul(gate, up)

    def linear_and_take_columns_and_take_columns_and_silu_mul(
        self, linear: Node, gate: Node, up: Node, node: Node
    ) -> Kernel:
        """SwiGLU of the halves of a product."""
        weight = self._matrices[linear.inputs[1]]

        def gated(step: Step, x: Tensor) -> Tensor:
            made = weight.gated(x) if isinstance(weight, Dense | Packed) else None
            return self._elementwise.silu_mul(*weight.multiply(x, None).chunk(2, dim=1)) if made is None else made

        return gated

    def moe(self, node: Node) -> Kernel:
        matrices = [self._matrices[name] for name in node.inputs[2:]]
        experts = Experts(matrices, node.integer("top_k"), self._elementwise)
        return lambda step, x, scores: experts.mix(x, scores, waits=not step.recorded)

    def add(self, node: Node) -> Kernel:
        return lambda step, a, b: a + b

    def weigh(self, node: Node) -> Kernel:
        return lambda step, x, factors: (x * factors).masked_fill(factors == 0, 0)

    def take_columns(self, node: Node) -> Kernel:
        columns = slice(node.integer("start"), node.integer("stop"))
        return lambda step, x: x[:, columns]

    def take_rows(self, node: Node) -> Kernel:
        return lambda step, x: x[step.inputs["logit_rows"]]

    def _turn(self, node: Node) -> Callable[[Step], Turn]:
        name = self._rotations.index(node.rotation)
        return lambda step: Turn(step.inputs[f"cos.{name}"], step.inputs[f"sin.{name}"])

    def _attend(self, node: Node) -> Callable[[Step, Tensor], Tensor]:
        """Make the attention of queries [T, heads * d] to what the layer's pools hold."""
        head_dim, scale, layer = node.integer("head_dim"), node.number("scale"), node.integer("layer")
        group = self._spec.group_of(layer)

        def attend(step: Step, q: Tensor) -> Tensor:
            keys, values = self._cache.keys(layer), self._cache.values(layer)
            prepared = step.prepared(self._attention, ATTENTION, group)
            return self._attention.attend(q.unflatten(1, (-1, head_dim)), keys, values, prepared, scale).flatten(1)

        return attend
