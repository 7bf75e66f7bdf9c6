"""Lowering of a graph to a tape: the kernels to run, their arguments and their order.

The host computes `replace_rows`, embeddings that go there or lie in ggml blocks, and attention weights in NumPy, before
and after the tape.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import Precision
from mistral_portable.cache import CacheSpec
from mistral_portable.errors import BackendError
from mistral_portable.graph import PLAN_INPUTS, Graph, Node, infer_shapes
from mistral_portable.weights import DenseTensor, Tensor
from mistral_portable_numba.cache import KVCache
from mistral_portable_numba.layouts import (
    BLOCKS,
    DENSE_SCRATCH,
    TILED_SCRATCH,
    activation_bytes,
    all_tile_sizes,
    bf16_bytes,
    linear_scratch,
    round_up,
)
from mistral_portable_numba.matrices import Matrix, float_row, floats, matrices
from mistral_portable_numba.segments import attention_scratch
from mistral_portable_numba.step import StepValues
from mistral_portable_numba.tape import Argument, Buffer, Instruction, Place, bits, set_waits

__all__ = ["Lowered", "lower_graph"]


@dataclass
class Lowered:
    """The result of `lower_graph`.

    instructions: in execution order. buffers: by value, for values that kernels write and values that the host writes
    for them. matrices: weights of linears by parameter; those in ggml blocks are still to be filled. tables: of
    embeddings.
    host_nodes: nodes that the host computes before the tape runs, in order. host_written: the values, results of
    host_nodes or inputs of the graph, that the host copies into their buffers for the kernels.
    attention_weights: nodes that the host computes after the tape. memory: other arrays whose addresses are arguments.
    """

    instructions: list[Instruction] = field(default_factory=list)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    matrices: dict[str, Matrix] = field(default_factory=dict)
    tables: list[Matrix] = field(default_factory=list)
    host_nodes: list[Node] = field(default_factory=list)
    host_written: list[str] = field(default_factory=list)
    attention_weights: list[Node] = field(default_factory=list)
    memory: list[NDArray[Any]] = field(default_factory=list)

    def bytes_per_row(self, rows: str) -> int:
        """The sum of the strides of all buffers whose rows are tokens ("T") or requested rows ("R")."""
        used = (buffer for instruction in self.instructions for buffer in (*instruction.reads, *instruction.writes))
        buffers = dict.fromkeys([*self.buffers.values(), *(each for each in used if isinstance(each, Buffer))])
        return sum(buffer.stride for buffer in buffers if buffer.rows == rows)


def lower_graph(
    graph: Graph,
    weights: Mapping[str, Tensor],
    spec: CacheSpec,
    precision: Precision,
    values: StepValues,
    cache: KVCache,
    threads: int,
    *,
    tiles: bool,
) -> Lowered:
    """Choose the kernels and their arguments.

    values, cache: their cells and tables are arguments of the kernels, by address. threads: each gets its own scratch.
    tiles: `Isa.tiles`.
    Raises BackendError for an input of the graph, or a use of `replace_rows`, that the kernels cannot serve,
    and CapacityError where memory is short of the weights.
    """
    lowering = _Lowering(graph, weights, spec, precision, values, cache, threads, tiles)
    for node in graph.nodes:
        getattr(lowering, node.op)(node)
    out = lowering.out
    set_waits(out.instructions)
    kept = {*graph.outputs.values(), *(node.inputs[0] for node in out.attention_weights)}
    for name, buffer in out.buffers.items():
        if name in kept:  # the host reads it after the tape
            buffer.last = len(out.instructions)
        if name in out.host_written:  # before the tape
            buffer.first = 0
    return out


class _Lowering:
    """The lowering of a graph, with one method per op of the closed list."""

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        spec: CacheSpec,
        precision: Precision,
        values: StepValues,
        cache: KVCache,
        threads: int,
        tiles: bool,
    ) -> None:
        self.out = Lowered()
        self._tiles = tiles
        self._graph, self._weights, self._spec, self._precision = graph, weights, spec, precision
        self._values, self._cache = values, cache
        self._shapes = infer_shapes(graph)
        self._host = {*graph.inputs}
        self._codes: dict[Buffer, tuple[Buffer, Buffer, Buffer]] = {}
        self._rounded_values: dict[Buffer, Buffer] = {}
        self._attended = {node.attributes["layer"] for node in graph.nodes if node.op == "attention"}
        parts = {}
        for node in graph.nodes:
            if node.op == "linear":
                parts[node.inputs[1]] = [weights[part] for part in graph.parameters[node.inputs[1]].parts]
            parts |= {part: [weights[part]] for part in self._experts(node)}
        self.out.matrices = matrices(parts, quantized=precision.quantized_linear == "int8")
        self._scratch_bytes = round_up(max([64, *self._scratch_needs()]), 64)
        scratch = np.empty(threads * self._scratch_bytes + 64, np.uint8)
        self._scratch = round_up(scratch.ctypes.data, 64)
        self.out.memory.append(scratch)

    def embedding(self, node: Node) -> None:
        tokens, name = node.inputs
        parts = [self._weights[part] for part in self._graph.parameters[name].parts]
        replaced = any(user.op == "replace_rows" and node.name in user.inputs for user in self._graph.nodes)
        if replaced or tokens != "tokens" or len(parts) > 1 or not isinstance(parts[0], DenseTensor):
            self._on_host(node, node.inputs[:1])
            return
        table, out = floats(parts), self._new(node)
        self.out.tables.append(table)
        sizes = [self._count(node), table.rows, table.columns]
        arguments = [*sizes, table.address, self._values.tokens(), *_at(out)]
        self._emit(f"embedding_{table.kind}", arguments, [], [out])

    def replace_rows(self, node: Node) -> None:
        self._on_host(node, node.inputs)

    def rms_norm(self, node: Node) -> None:
        x, weight = node.inputs
        self._row_kernel("rms_norm", node, [x], [self._row(weight), bits(node.number("eps"))])

    def linear(self, node: Node) -> None:
        x, name, *bias = node.inputs
        weight, out = self.out.matrices[name], self._new(node)
        self._multiply(self._count(node), weight, self._buffer(x), out)
        for parameter in bias:
            same = (Place(out), out.stride)
            arguments = [self._count(node), weight.rows, *same, self._row(parameter), 0, *same]
            self._emit("add", arguments, [out], [out])

    def rope(self, node: Node) -> None:
        x, rotation = node.inputs[0], node.rotation
        out, head_dim = self._new(node), rotation.head_dim
        arguments = [self._count(node), self._columns(x) // head_dim, head_dim, *self._at(x), Place(out), out.stride]
        angles = self._values.angles(rotation)
        self._emit("rope", [*arguments, angles], [self._buffer(x)], [out])

    def attention(self, node: Node) -> None:
        q, k, v = node.inputs
        self._store("keys", node, k)
        self._store("values", node, v)
        layer, head_dim = node.integer("layer"), node.integer("head_dim")
        heads, kv_heads = node.integer("num_attention_heads"), node.integer("num_key_value_heads")
        out = self._new(node)
        arguments: list[Argument] = [*self._values.items(layer, heads // kv_heads), heads, kv_heads, head_dim]
        window = node.window or 0  # the kernel's `cache.window.visible`: 0 stands for no window
        arguments += [window, bits(node.number("scale")), *self._at(q), Place(out), out.stride]
        arguments += [self._cache.address(layer), self._values.pages(layer)]
        arguments += [self._values.parts(layer, heads, kv_heads, head_dim), self._scratch, self._scratch_bytes]
        cached, parts = [("cache", layer, kind) for kind in ("keys", "values")], ("parts",)
        self._emit(f"attention_{self._kv}", [*arguments, 0], [self._buffer(q), *cached], [out, parts])
        self._emit(f"attention_{self._kv}", [*arguments, 1], [self._buffer(q), parts], [out])

    def attention_weights(self, node: Node) -> None:
        if node.attributes["layer"] not in self._attended:
            self._store("keys", node, node.inputs[1])
        self.out.attention_weights.append(node)

    def silu_mul(self, node: Node) -> None:
        self._row_kernel("silu_mul", node, node.inputs)

    def moe(self, node: Node) -> None:
        """Run the experts one after the other: gather its tokens, run its MLP, add the weighted results.

        The weights of an expert without tokens are not read.
        """
        x, scores = self._buffer(node.inputs[0]), self._buffer(node.inputs[1])
        columns, count, out = self._columns(node.name), self._columns(node.inputs[1]), self._new(node)
        cells = np.zeros(3 * count, np.int64)
        self.out.memory.append(cells)
        at, routes = int(cells.ctypes.data), ("routes", node.name)
        rows, shares = Buffer(out.rows, 4 * count), Buffer(out.rows, 4 * count)
        self._emit("clear", [self._count(node), columns, *_at(out)], [], [out])
        top_k, room = node.integer("top_k"), [Place(rows), Place(shares)]
        self._emit(
            "route", [self._count(node), count, top_k, *_at(scores), at, *room], [scores], [routes, rows, shares]
        )
        parts = zip(*(self._graph.parameters[name].parts for name in node.inputs[2:]), strict=True)
        for expert, names in enumerate(parts):
            gate, up, down = (self.out.matrices[name] for name in names)
            own, its_rows, its_shares = (at + 8 * (expert + count * kind) for kind in range(3))
            taken, a, b, inner, y = (self._floats(out.rows, n) for n in (columns, *[gate.rows] * 3, columns))
            self._emit("take", [own, columns, *_at(x), *_at(taken), its_rows], [x, routes, rows], [taken])
            self._multiply(own, gate, taken, a)
            self._multiply(own, up, taken, b)
            self._emit("silu_mul", [own, gate.rows, *_at(a), *_at(b), *_at(inner)], [a, b, routes], [inner])
            self._multiply(own, down, inner, y)
            arguments = [own, columns, *_at(y), *_at(out), its_rows, its_shares]
            self._emit("add_rows", arguments, [y, out, routes, rows, shares], [out])

    def add(self, node: Node) -> None:
        self._row_kernel("add", node, node.inputs)

    def weigh(self, node: Node) -> None:
        one = self._columns(node.inputs[1]) == 1 < self._columns(node.name)
        self._row_kernel("weigh_rows" if one else "weigh", node, node.inputs)

    def take_columns(self, node: Node) -> None:
        self._take(node, 4 * node.integer("start"), 0)

    def take_rows(self, node: Node) -> None:
        if node.inputs[1] != "logit_rows":
            raise BackendError(
                f"backend 'numba' takes the rows 'logit_rows' only, not {node.inputs[1]!r}: choose another backend"
            )
        self._take(node, 0, self._values.rows())

    @property
    def _kv(self) -> str:
        return self._precision.kv_cache or self._precision.dtype

    def _take(self, node: Node, offset: int, rows: int) -> None:
        x, out = self._buffer(node.inputs[0]), self._new(node)
        columns = self._columns(node.name)
        arguments = [self._count(node), columns, Place(x, offset), x.stride, Place(out), out.stride, rows]
        self._emit("take", arguments, [x], [out])

    def _row_kernel(self, kernel: str, node: Node, inputs: Any, more: Any = ()) -> None:
        out = self._new(node)
        places = [argument for name in inputs for argument in self._at(name)]
        arguments = [self._count(node), self._columns(node.name), *places, Place(out), out.stride, *more]
        self._emit(kernel, arguments, [self._buffer(name) for name in inputs], [out])

    def _store(self, kind: str, node: Node, x: str) -> None:
        layer = node.integer("layer")
        sizes = [node.integer("num_key_value_heads"), node.integer("head_dim")]
        places = [self._values.slots(layer), self._cache.address(layer, kind)]
        arguments = [self._values.count("T"), *sizes, *self._at(x), *places]
        self._emit(f"store_{kind}_{self._kv}", arguments, [self._buffer(x)], [("cache", layer, kind)])

    def _multiply(self, count: int, weight: Matrix, x: Buffer, out: Buffer) -> None:
        """Emit out = x @ weight.T. count: the address of the cell with the number of rows."""
        if weight.kind in BLOCKS:
            layout = BLOCKS[weight.kind]
            codes, sums32, sums16 = made = self._quantized(count, x, weight.columns)
            arguments: list[Argument] = [count, weight.row_pairs, weight.columns // layout.columns, weight.address]
            for buffer in (out, codes, sums32 if layout.step == 32 else sums16):
                arguments += _at(buffer)
            self._emit(f"linear_{weight.kind}", [*arguments, self._scratch, self._scratch_bytes], made, [out])
        elif self._tiled(weight):
            rounded, sizes = self._rounded(count, x, weight.columns), all_tile_sizes()
            self.out.memory.append(sizes)
            arguments = [count, weight.rows, weight.columns, weight.address, *_at(rounded), *_at(out)]
            arguments += [int(sizes.ctypes.data), self._scratch, self._scratch_bytes]
            self._emit("tiled_bfloat16", arguments, [rounded], [out])
        else:
            arguments = [count, weight.rows, weight.columns, weight.address, *_at(x), *_at(out)]
            self._emit(f"linear_{weight.kind}", [*arguments, self._scratch, self._scratch_bytes], [x], [out])

    def _quantized(self, count: int, x: Buffer, columns: int) -> tuple[Buffer, Buffer, Buffer]:
        """The buffers of a value's int8 blocks, sums over 32 and sums over 16 columns; it is quantized once."""
        if x not in self._codes:
            codes, sums32, sums16 = (Buffer(x.rows, size) for size in activation_bytes(columns))
            self._codes[x] = made = codes, sums32, sums16
            places = [argument for buffer in made for argument in _at(buffer)]
            self._emit("quantize", [count, columns, *_at(x), *places], [x], made)
        return self._codes[x]

    def _tiled(self, weight: Matrix) -> bool:
        """Whether a float weight is multiplied by AMX: by request, as its inputs are then rounded to bfloat16."""
        return self._tiles and weight.kind == "bfloat16" and self._precision.dtype == "bfloat16"

    def _rounded(self, count: int, x: Buffer, columns: int) -> Buffer:
        """The buffer of a value in bfloat16; it is rounded once."""
        if x not in self._rounded_values:
            self._rounded_values[x] = rounded = Buffer(x.rows, bf16_bytes(columns))
            self._emit("round_bfloat16", [count, columns, *_at(x), *_at(rounded)], [x], [rounded])
        return self._rounded_values[x]

    def _new(self, node: Node) -> Buffer:
        """Make the buffer of a node's result."""
        buffer = self._floats(str(self._shapes[node.name][0]), self._columns(node.name))
        self.out.buffers[node.name] = buffer
        return buffer

    def _floats(self, rows: str, columns: int) -> Buffer:
        """A buffer of float32 rows, padded to a multiple of 32 columns, as linears write whole tiles, and 16 more."""
        return Buffer(rows, 4 * round_up(columns, 32) + 64)

    def _experts(self, node: Node) -> Iterator[str]:
        """The tensors of all experts of a node; none unless it is `moe`."""
        for name in node.inputs[2:] if node.op == "moe" else ():
            yield from self._graph.parameters[name].parts

    def _emit(self, kernel: str, arguments: Any, reads: Any, writes: Any) -> None:
        self.out.instructions.append(Instruction(kernel, list(arguments), list(reads), list(writes)))

    def _on_host(self, node: Node, inputs: Iterable[str]) -> None:
        """Let the host compute a node before the tape runs. Raises BackendError if a kernel makes one of its inputs."""
        if made := [value for value in inputs if value not in self._host]:
            raise BackendError(
                f"backend 'numba' runs {node.op!r} on embeddings and inputs of the step only, and {made[0]!r} is "
                "computed from them: choose another backend"
            )
        self._host.add(node.name)
        self.out.host_nodes.append(node)

    def _buffer(self, value: str) -> Buffer:
        """The buffer of a value that a kernel reads. Raises BackendError for an input that is no rows of floats."""
        if value not in self.out.buffers:
            shape = self._shapes[value]
            if value in PLAN_INPUTS or len(shape) != 2 or shape[0] not in ("T", "R"):
                raise BackendError(
                    f"backend 'numba' computes on rows of tokens, [T, columns], and the input {value!r} is "
                    f"{list(shape)}: choose another backend"
                )
            self.out.buffers[value] = self._floats(str(shape[0]), self._columns(value))
            self.out.host_written.append(value)
        return self.out.buffers[value]

    def _at(self, value: str) -> tuple[Place, int]:
        """The place and the stride of a value."""
        return _at(self._buffer(value))

    def _columns(self, value: str) -> int:
        columns = self._shapes[value][1]
        assert isinstance(columns, int)
        return columns

    def _count(self, node: Node) -> int:
        return self._values.count(str(self._shapes[node.name][0]))

    def _row(self, parameter: str) -> int:
        """The address of a parameter vector in float32."""
        row = float_row([self._weights[part] for part in self._graph.parameters[parameter].parts])
        self.out.memory.append(row)
        return int(row.ctypes.data)

    def _scratch_needs(self) -> list[int]:
        needs = [linear_scratch(BLOCKS[m.kind], self._tiles) for m in self.out.matrices.values() if m.kind in BLOCKS]
        floats = [m for m in self.out.matrices.values() if m.kind not in BLOCKS]
        needs += [TILED_SCRATCH if self._tiled(m) else DENSE_SCRATCH for m in floats]
        for node in self._graph.nodes:
            if node.op == "attention":
                names = ("num_attention_heads", "num_key_value_heads", "head_dim")
                needs.append(attention_scratch(*map(node.integer, names)))
        return needs


def _at(buffer: Buffer) -> tuple[Place, int]:
    return Place(buffer), buffer.stride
