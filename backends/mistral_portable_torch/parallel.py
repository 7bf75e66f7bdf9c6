"""Tensor parallelism: the part of a graph that one of several processes runs, each with a device of its own.

How a linear is cut follows from the ops around it (Shoeybi et al. 2019, Megatron-LM, section 3). rope, attention and
silu_mul work head by head or column by column, so their inputs and results can be cut by columns. A linear that feeds
them is cut by rows of its weight, and computes some columns of its result. A linear that reads their result is cut by
columns of its weight, and computes a partial sum, which is summed over all processes. The LM head, whose result is an
output of the graph, is cut by rows, and its columns are gathered. Every process computes all the rest.

Example, 2 processes, 4 heads of 8, 2 key/value heads: q_proj [32, 64] becomes [16, 64], k_proj [16, 64] becomes
[8, 64], o_proj [64, 32] becomes [64, 16], with a sum.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mistral_portable.cache import CacheSpec
from mistral_portable.errors import BackendError
from mistral_portable.graph import Graph, Node, Parameter
from mistral_portable.weights import BlockTensor, DenseTensor
from mistral_portable.weights import Tensor as Stored
from mistral_portable_torch.ggml import LAYOUTS

__all__ = ["Shard", "shard"]

_BY_COLUMN = ("rope", "attention", "silu_mul")


@dataclass(frozen=True)
class Shard:
    """One process's part. after: "sum" or "gather" for nodes whose results need it, by the node's name."""

    graph: Graph
    weights: Mapping[str, Stored]
    spec: CacheSpec
    after: Mapping[str, str]


def shard(graph: Graph, weights: Mapping[str, Stored], spec: CacheSpec, rank: int, size: int) -> Shard:
    """The part of process `rank`. Raises BackendError if heads or columns cannot be divided evenly."""
    if spec.num_key_value_heads % size:
        raise BackendError(
            f"tensor_parallel={size}: {spec.num_key_value_heads} key/value heads cannot be divided evenly: "
            f"choose a divisor of {spec.num_key_value_heads}"
        )
    if any(node.op == "moe" for node in graph.nodes):
        raise BackendError(f"tensor_parallel={size} cannot divide a model with experts: leave the option out")
    if any(node.op == "attention_weights" for node in graph.nodes):
        raise BackendError(f"tensor_parallel={size} cannot return attention weights: leave the option out")
    tables = {node.inputs[1] for node in graph.nodes if node.op == "embedding"}
    feeding, cut = _values_in_columns(graph)
    exposed = set(graph.outputs.values())
    parameters, parts, nodes = dict(graph.parameters), dict(weights), []
    after: dict[str, str] = {}
    for node in graph.nodes:
        gathered = node.name in exposed and node.op == "linear" and node.inputs[1] not in tables
        gathered = gathered and parameters[node.inputs[1]].shape[0] % size == 0  # else every process computes all of it
        if node.op == "linear" and (node.name in feeding or gathered):
            for name in node.inputs[1:]:
                _cut(parameters, parts, name, 0, rank, size)
            after |= {node.name: "gather"} if gathered else {}
        elif node.op == "linear" and node.inputs[0] in cut:
            _cut(parameters, parts, node.inputs[1], 1, rank, size)
            after[node.name] = "sum"
            if rank:  # rank 0 alone adds the bias, once
                node = replace(node, inputs=node.inputs[:2])
        nodes.append(_fewer_heads(node, size))
    return Shard(
        replace(graph, nodes=tuple(nodes), parameters=parameters),
        parts,
        replace(spec, num_key_value_heads=spec.num_key_value_heads // size),
        after,
    )


def _values_in_columns(graph: Graph) -> tuple[set[str], set[str]]:
    """The values that ops of _BY_COLUMN read, and those that they compute; take_rows passes columns on."""
    feeding = {name for node in graph.nodes if node.op in _BY_COLUMN for name in node.inputs}
    cut = {node.name for node in graph.nodes if node.op in _BY_COLUMN}
    rows = [node for node in graph.nodes if node.op == "take_rows"]
    feeding |= {node.inputs[0] for node in rows if node.name in feeding}
    cut |= {node.name for node in rows if node.inputs[0] in cut}
    return feeding, cut


@dataclass(frozen=True, eq=False)
class _CutBlocks(BlockTensor):
    """A range of a matrix's rows, or of its columns in whole blocks."""

    source: BlockTensor
    part: tuple[slice, slice]
    """A slice of the rows, and one of the bytes of a row."""

    def blocks(self) -> NDArray[np.uint8]:
        return self.source.blocks()[self.part]

    def permute_rows(self, order: NDArray[np.intp]) -> NoReturn:
        raise TypeError(f"{self.name} is cut: permute its rows before")


def _cut(
    parameters: dict[str, Parameter], parts: dict[str, Stored], name: str, axis: int, rank: int, size: int
) -> None:
    """Replace a parameter, and the tensor behind it, by the rank's range of rows or columns."""
    parameter = parameters[name]
    (part,) = parameter.parts  # graphs are cut before linears are fused
    length = parameter.shape[axis]
    columns = _block_columns(parts[part]) if axis == 1 else 1
    if length % (size * columns):
        raise BackendError(
            f"tensor_parallel={size}: the {length} {'rows' if axis == 0 else 'columns'} of {part} cannot be divided "
            f"evenly{f' in blocks of {columns}' if columns > 1 else ''}: choose fewer processes"
        )
    span = slice(rank * length // size, (rank + 1) * length // size)
    shape = tuple(length // size if at == axis else count for at, count in enumerate(parameter.shape))
    parameters[name] = replace(parameter, shape=shape)
    parts[part] = _cut_tensor(parts[part], span, axis, shape)


def _cut_tensor(tensor: Stored, span: slice, axis: int, shape: tuple[int, ...]) -> Stored:
    if isinstance(tensor, BlockTensor):
        columns_per_byte = tensor.shape[1] * tensor.shape[0] / tensor.nbytes
        every, bytes_ = slice(None), slice(round(span.start / columns_per_byte), round(span.stop / columns_per_byte))
        return _CutBlocks(tensor.name, shape, tensor.type, tensor, (span, every) if axis == 0 else (every, bytes_))
    dense = tensor if isinstance(tensor, DenseTensor) else DenseTensor(tensor.name, "float32", tensor.numpy())
    return dense.rows(span) if axis == 0 else replace(dense, array=dense.array[:, span])


def _block_columns(tensor: Stored) -> int:
    return LAYOUTS[tensor.dtype].columns if isinstance(tensor, BlockTensor) else 1


def _fewer_heads(node: Node, size: int) -> Node:
    names = ("num_attention_heads", "num_key_value_heads")
    attributes: Mapping[str, Any] = node.attributes
    fewer = {name: attributes[name] // size for name in names if name in attributes}
    return replace(node, attributes={**node.attributes, **fewer})
