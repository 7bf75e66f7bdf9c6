"""The pass that adds adapters: what each of them changes in linears and tables, weighted token by token.

Source of low-rank changes: Hu et al. 2021, LoRA: h = W x + scale * B A x.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mistral_portable.errors import GraphError
from mistral_portable.graph.ir import Graph, Node, Parameter
from mistral_portable.graph.verify import infer_shapes

__all__ = ["ADAPTERS", "Changed", "add_adapters", "is_added", "lora_a", "lora_b", "replacement", "weight_name"]

ADAPTERS = "adapters"
"""The input that `add_adapters` adds: float32 [T, n], each token's weights of n adapters, mostly 0 or 1."""

Constants = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Changed:
    """How n adapters change one weight.

    ranks, scales: of the low-rank change by each adapter; rank 0: none. whole: indices of those that replace it.

    Example: ranks (16, 0, 8) and scales (2, 0, 0.5) of a weight [O, I]. The A of two adapters lie one below the other,
    [24, I], and their B side by side, [O, 24]. Between the two, a token's 24 numbers are multiplied with factors: for
    one of the first adapter alone 2, 16 times, and 0, 8 times.
    """

    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    whole: tuple[int, ...] = ()


def lora_a(weight: str) -> str:
    """The parameter with the A of all adapters: [sum of ranks, I]; of an embedding [vocab_size, sum of ranks]."""
    return f"{weight.removesuffix('.weight')}.lora_A.weight"


def lora_b(weight: str) -> str:
    """The parameter with the B of all adapters: [O, sum of ranks]; of an embedding [hidden_size, sum of ranks]."""
    return f"{weight.removesuffix('.weight')}.lora_B.weight"


def replacement(weight: str, adapter: int) -> str:
    """The parameter that an adapter has in place of a weight."""
    return f"{weight.removesuffix('.weight')}.{ADAPTERS}.{adapter}.weight"


def is_added(parameter: str) -> bool:
    """Whether `add_adapters` has added a parameter: these are small, and nobody quantizes them."""
    return f"{ADAPTERS}." in parameter or parameter.endswith((".lora_A.weight", ".lora_B.weight"))


def weight_name(graph: Graph, node: Node) -> str | None:
    """The name under which adapters know the weight of a linear or an embedding; None for other nodes.

    It is the weight's own, but `lm_head.weight` for logits that are made with the embedding table.
    """
    if node.op not in ("linear", "embedding"):
        return None
    tables = {other.inputs[1] for other in graph.nodes if other.op == "embedding"}
    return "lm_head.weight" if node.op == "linear" and node.inputs[1] in tables else node.inputs[1]


def add_adapters(graph: Graph, changes: Mapping[str, Changed]) -> tuple[Graph, Constants]:
    """Add the input `adapters` and, behind each linear or embedding whose weight changes, what the adapters do to it.

    changes: by `weight_name`, all of the same n adapters. A token whose weights are 0 has the results of the graph as
    it was. Of other passes, `accept_embeddings` comes before this one and `select_rows` after it.

    Also returns the values of the parameters that are neither `lora_a`, `lora_b` nor `replacement`.

    Raises GraphError for a weight that no linear and no embedding reads.
    """
    adding = _Adding(graph, max(len(change.ranks) for change in changes.values()))
    left = dict(changes)
    for node in graph.nodes:
        adding.keep(node)
        name = weight_name(graph, node)
        if name is not None and (change := left.pop(name, None)) is not None:
            adding.change(node, name, change)
    if left:
        raise GraphError(f"no linear and no embedding reads {', '.join(left)}")
    return adding.graph(), adding.constants


class _Adding:
    """A graph that grows node by node."""

    def __init__(self, graph: Graph, count: int) -> None:
        self.constants: dict[str, NDArray[np.float32]] = {}
        self._graph = graph
        self._count = count
        self._shapes = infer_shapes(graph)
        self._parameters = dict(graph.parameters)
        self._nodes: list[Node] = []
        self._renamed: dict[str, str] = {}
        self._factors: dict[tuple[object, ...], str] = {}

    def keep(self, node: Node) -> None:
        """Take over a node; it reads what has been changed before it."""
        self._nodes.append(replace(node, inputs=tuple(self._renamed.get(value, value) for value in node.inputs)))

    def change(self, node: Node, weight: str, change: Changed) -> None:
        """Add nodes behind the one that was taken over last."""
        x, out = self._nodes[-1].inputs[0], node.name
        rows, columns = self._parameters[node.inputs[1]].shape
        if change.whole:
            out = self._replaced(node, x, weight, change.whole)
        if rank := sum(change.ranks):
            table = node.op == "embedding"
            down = self._parameter(lora_a(weight), *((rows, rank) if table else (rank, columns)))
            up = self._parameter(lora_b(weight), columns if table else rows, rank)
            low = self._node(f"{node.name}.lora_A", node.op, x, down)
            weighted = self._node(f"{low}.weighted", "weigh", low, self._low_rank_factors(change))
            out = self._node(
                f"{node.name}.adapted", "add", out, self._node(f"{node.name}.lora_B", "linear", weighted, up)
            )
        self._renamed[node.name] = out

    def graph(self) -> Graph:
        """The graph as it has become."""
        return replace(
            self._graph,
            parameters=self._parameters,
            nodes=tuple(self._nodes),
            outputs={name: self._renamed.get(value, value) for name, value in self._graph.outputs.items()},
            taps={name: self._renamed.get(value, value) for name, value in self._graph.taps.items()},
            inputs={**self._graph.inputs, ADAPTERS: ("T", self._count)},
        )

    def _replaced(self, node: Node, x: str, weight: str, whole: tuple[int, ...]) -> str:
        """The sum of a node's result and those with the adapters' own weights, each times its factor, 0 or 1."""
        shape = self._parameters[node.inputs[1]].shape
        own = [np.float32(-(index in whole)) for index in range(self._count)]
        out = self._node(f"{node.name}.base", "weigh", node.name, self._factor(np.array([own]), 1.0))
        for index in whole:
            made = self._node(f"{node.name}.{index}", node.op, x, self._parameter(replacement(weight, index), *shape))
            factor = self._factor(np.eye(self._count, dtype=np.float32)[[index]])
            out = self._node(f"{out}+{index}", "add", out, self._node(f"{made}.weighted", "weigh", made, factor))
        return out

    def _low_rank_factors(self, change: Changed) -> str:
        columns = np.repeat(np.arange(self._count), change.ranks)
        return self._factor(np.diag(np.array(change.scales, np.float32))[columns])

    def _factor(self, matrix: NDArray[np.float32], bias: float | None = None) -> str:
        """The value [T, rows] = adapters @ matrix.T + bias: made once for all nodes that need it."""
        key = (matrix.shape, matrix.tobytes(), bias)
        if key not in self._factors:
            name = f"{ADAPTERS}.factors.{len(self._factors)}"
            inputs = [ADAPTERS, self._constant(f"{name}.weight", matrix)]
            if bias is not None:
                inputs.append(self._constant(f"{name}.bias", np.full(len(matrix), bias, np.float32)))
            self._factors[key] = self._node(name, "linear", *inputs)
        return self._factors[key]

    def _constant(self, name: str, values: NDArray[np.float32]) -> str:
        self.constants[name] = values
        return self._parameter(name, *values.shape)

    def _parameter(self, name: str, *shape: int) -> str:
        self._parameters[name] = Parameter(name, shape, (name,))
        return name

    def _node(self, name: str, op: str, *inputs: str) -> str:
        self._nodes.append(Node(name, op, inputs, {}))
        return name
