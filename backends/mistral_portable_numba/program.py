"""NumbaProgram: a lowered graph with its weights, cache, buffers and threads."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import ExecutorOptions, LaneState, Precision
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.boundary.shared import (
    attention_weights_by_position,
    check_inputs,
    gigabytes,
    notice_unpacked,
)
from mistral_portable.cache import CacheSpec, StepPlan, visible
from mistral_portable.errors import CapacityError, ClosedError
from mistral_portable.forks import make_locks
from mistral_portable.graph import Graph, Node, infer_shapes
from mistral_portable.weights import AffineTensor, BlockTensor, DenseTensor, Tensor, release
from mistral_portable_numba.cache import KVCache
from mistral_portable_numba.compiler.isa import Isa
from mistral_portable_numba.compiler.objects import LoadedKernels
from mistral_portable_numba.layouts import TOKEN_GROUP, round_up
from mistral_portable_numba.lowering import lower_graph
from mistral_portable_numba.matrices import Packing
from mistral_portable_numba.step import StepValues
from mistral_portable_numba.tape import Layout, lay_out
from mistral_portable_numba.team import Team, yield_address

__all__ = ["SHRINK_AFTER", "NumbaProgram"]

T = TypeVar("T")

SHRINK_AFTER = 64
"""Steps in a row that need less than a quarter of the buffers' memory before the buffers shrink."""

_PACKED = 2**28
"""Bytes of weights that are packed at a time."""


class NumbaProgram:
    """A Program on the CPU. Its calls may come from several threads, and from a forked child."""

    batch_invariant = True  # each kernel adds up a row in one order, on any thread and beside any other rows

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        spec: CacheSpec,
        precision: Precision,
        options: ExecutorOptions,
        *,
        isa: Isa,
        threads: int,
        folder: Path,
    ) -> None:
        self.precision = precision
        self._graph, self._spec = graph, spec
        self._values = StepValues(spec)
        self._cache = KVCache(spec, precision.kv_cache or precision.dtype)
        self._lowered = lower_graph(
            graph, weights, spec, precision, self._values, self._cache, threads, tiles=isa.tiles
        )
        notice_unpacked(
            graph,
            weights,
            "float32",
            "backend 'numba' has no kernels for MLX's groups; backend 'mlx' keeps them as they are, and GGUF files "
            "keep their size here",
            kept=lambda tensor: not isinstance(tensor, AffineTensor),
        )
        self._widths = infer_shapes(graph)
        names = {"tape", "pack", *(instruction.kernel for instruction in self._lowered.instructions)}
        self._token_bytes, self._row_bytes = (self._lowered.bytes_per_row(rows) for rows in ("T", "R"))
        self._kernels = LoadedKernels(names, isa, folder, options.progress)
        self._addresses = {name: self._kernels[name] for name in names}
        self._team: Team | None = Team(threads, self._addresses["tape"])
        self._barrier = np.zeros(64, np.int64)
        make_locks(self, NumbaProgram._make_locks)
        self._job = np.array([0, 0, self._barrier.ctypes.data, yield_address()], np.int64)
        self._job_address = int(self._job.ctypes.data)
        self._tables = {
            node.inputs[1]: _Table([weights[part] for part in graph.parameters[node.inputs[1]].parts])
            for node in self._lowered.host_nodes
            if node.op == "embedding"
        }
        self._layout: Layout | None = None
        self._views: dict[tuple[str, int], NDArray[np.float32]] = {}  # of the layout
        self._room, self._recent, self._small_steps, self._room_bytes = (0, 0), (0, 0), 0, 0
        try:
            self._read_weights(options)
        except BaseException:
            self.close()
            raise

    @property
    def cache_bytes(self) -> int:
        return self._cache.bytes

    @property
    def scratch_bytes(self) -> int:
        layout = self._layout  # a step may replace it meanwhile
        held = 0 if layout is None else layout.bytes
        return held + self._values.bytes + sum(array.nbytes for array in list(self._lowered.memory))

    def slot_bytes(self, group: int) -> int:
        return self._cache.slot_bytes(group)

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, NDArray[np.float32]]:
        check_inputs(self._graph, plan, inputs)
        return self._in_turn(f"a step of {len(plan.tokens)} tokens", lambda: self._step(plan, inputs))

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        return self._in_turn("the copy of a lane", lambda: self._cache.read(group, pages, blank))

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        self._in_turn("a saved lane", lambda: self._cache.write(group, pages, state))

    def close(self) -> None:
        with self._turn:
            if self._team is not None:
                self._team.close()
            self._team = self._layout = None
            self._room, self._room_bytes = (0, 0), 0
            self._views.clear()
            self._cache.clear()
            self._values.shrink()
            self._lowered.instructions.clear()
            self._lowered.memory.clear()
            self._lowered.matrices.clear()
            self._lowered.tables.clear()
            self._tables.clear()

    def _step(self, plan: StepPlan, inputs: Inputs) -> dict[str, NDArray[np.float32]]:
        layout = self._room_for(len(plan.tokens), len(plan.logit_rows))
        self._cache.make_room(plan)
        self._values.update(plan)
        on_host: dict[str, NDArray[Any]] = {
            **inputs,
            "tokens": plan.tokens,
            "positions": plan.positions,
            "logit_rows": plan.logit_rows,
        }
        for node in self._lowered.host_nodes:
            on_host[node.name] = self._host_value(node, on_host)
        for value in self._lowered.host_written:
            self._view(layout, value, len(on_host[value]))[:] = on_host[value]
        self._run(len(layout.tape), layout.address)
        exposed: dict[str, NDArray[np.float32]] = {}
        for node in self._lowered.attention_weights:
            name = node.inputs[0]
            q = on_host[name] if name in on_host else self._view(layout, name, len(plan.tokens))
            exposed[node.name] = self._attention_weights(node, q, plan)
        sizes = {"T": len(plan.tokens), "R": len(plan.logit_rows)}
        return {
            name: exposed[value]
            if value in exposed
            else np.array(on_host[value], np.float32)
            if value in on_host
            else self._view(layout, value, sizes[self._lowered.buffers[value].rows]).copy()
            for name, value in self._graph.outputs.items()
        }

    def _in_turn(self, what: str, call: Callable[[], T]) -> T:
        """Call, one at a time. Raises ClosedError after `close`, and CapacityError if memory runs out for `what`."""
        with self._turn:
            if self._team is None:
                raise ClosedError("the program is closed: prepare it again")
            try:
                return call()
            except MemoryError as error:
                raise CapacityError(
                    f"no memory is left for {what} beside a cache of {gigabytes(self._cache.bytes)}: close other "
                    "sequences, or give shorter ones"
                ) from error

    def _make_locks(self) -> None:
        """Also the barrier, at which a thread may have waited that a forked child does not have."""
        self._turn = threading.Lock()
        self._barrier[:] = 0

    def _read_weights(self, options: ExecutorOptions) -> None:
        """Pack the matrices in ggml blocks, on all threads, as the file is read.

        As many at a time as make _PACKED bytes: meanwhile nobody waits for the GIL, which another thread may hold.
        """
        matrices = list(self._lowered.matrices.values())
        total = sum(matrix.data.nbytes for matrix in matrices)
        done = packed = 0
        waiting: list[Packing] = []
        for matrix in matrices:
            done += matrix.data.nbytes
            if matrix.parts:
                waiting.append(matrix.packing())
            if done - packed >= _PACKED or done == total:
                if waiting:
                    self._pack(waiting)
                waiting, packed = [], done
                if options.progress is not None:
                    options.progress("weights", done, total)

    def _pack(self, packings: Sequence[Packing]) -> None:
        """Pack matrices on all threads, and release the file's pages."""
        counters = np.zeros((len(packings), 8), np.int64)  # a cache line each
        arguments = [[line.ctypes.data, *each.arguments] for line, each in zip(counters, packings, strict=True)]
        values = np.array(arguments, np.int64)
        tape = np.array([[self._addresses["pack"], row.ctypes.data, 0] for row in values], np.int64)
        self._run(len(tape), tape.ctypes.data)
        for each in packings:
            release(each.source)

    def _run(self, instructions: int, tape: int) -> None:
        """Run the instructions at the address `tape` on all threads."""
        assert self._team is not None
        self._job[:2] = instructions, tape
        self._team.run(self._job_address)

    def _room_for(self, tokens: int, rows: int) -> Layout:
        """The tape, with buffers for a step of this many tokens and requested rows.

        Buffers grow at once. They shrink to the largest of the last SHRINK_AFTER steps once each of these needed less
        than a quarter of them.
        """
        self._recent = max(tokens, self._recent[0]), max(rows, self._recent[1])
        self._small_steps = self._small_steps + 1 if 4 * self._need(tokens, rows) < self._room_bytes else 0
        if self._small_steps == 0:
            self._recent = 0, 0
        shrinks = self._small_steps == SHRINK_AFTER
        if self._layout is None or tokens > self._room[0] or rows > self._room[1] or shrinks:
            room = self._recent if shrinks else (max(tokens, self._room[0]), max(rows, self._room[1]))
            self._layout, self._room = None, (0, 0)  # its memory first; Ctrl-C may come before the end
            self._views.clear()
            self._small_steps, self._recent = 0, (0, 0)
            if shrinks:
                self._values.shrink()
            layout = lay_out(self._lowered.instructions, self._lowered.buffers.values(), self._addresses, *room)
            room_bytes = self._need(*room)
            self._layout, self._room_bytes, self._room = layout, room_bytes, room
        self._layout.counters[:] = 0
        return self._layout

    def _need(self, tokens: int, rows: int) -> int:
        """Bytes of all buffers for a step of this size, as if none shared memory: to compare sizes of steps."""
        return self._token_bytes * round_up(tokens, TOKEN_GROUP) + self._row_bytes * round_up(rows, TOKEN_GROUP)

    def _view(self, layout: Layout, value: str, count: int) -> NDArray[np.float32]:
        """The first `count` rows of a value's buffer, float32 [count, columns]; no copy."""
        view = self._views.get((value, count))
        if view is None:
            buffer = self._lowered.buffers[value]
            columns = self._widths[value][1]
            assert isinstance(columns, int)
            begin = layout.offsets[buffer]
            rows = layout.memory[begin : begin + count * buffer.stride].view(np.float32)
            view = self._views[value, count] = rows.reshape(count, buffer.stride // 4)[:, :columns]
        return view

    def _host_value(self, node: Node, values: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The result of an `embedding` or `replace_rows` node, float32 [T, columns]."""
        if node.op == "embedding":
            return self._tables[node.inputs[1]].rows(values[node.inputs[0]])
        x, given, places = (values[name] for name in node.inputs)
        out = np.array(x, np.float32)
        out[places] = given
        return out

    def _attention_weights(self, node: Node, rows: NDArray[np.float32], plan: StepPlan) -> NDArray[np.float32]:
        """float32 [T, heads, K]: softmax of the step's queries, rows [T, heads * head_dim], over the cached keys."""
        layer, head_dim = node.integer("layer"), node.integer("head_dim")
        q = rows.reshape(len(plan.tokens), -1, head_dim)

        def found(s: int, slots: NDArray[np.intp]) -> NDArray[np.float32]:
            tokens = plan.spans[s]
            keys = self._cache.keys(layer, slots)
            keys = np.repeat(keys, q.shape[1] // keys.shape[1], axis=1)
            scores = np.einsum("thd,nhd->thn", q[tokens], keys) * np.float32(node.number("scale"))
            positions = np.arange(plan.ends[s] - len(slots), plan.ends[s])
            mask = visible(plan.positions[tokens, None], positions[None, :], node.window)[:, None, :]
            scores = np.where(mask, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            return np.asarray(weights / weights.sum(axis=-1, keepdims=True))

        return attention_weights_by_position(node, plan, self._spec, found)


class _Table:
    """An embedding table. It stays in the file's own pages, as a step reads few of its rows."""

    def __init__(self, parts: list[Tensor]) -> None:
        tensor = parts[0]
        if len(parts) > 1 or not isinstance(tensor, BlockTensor | DenseTensor):
            tensor = DenseTensor(tensor.name, "float32", np.concatenate([part.numpy(np.float32) for part in parts]))
        self._tensor = tensor
        self._blocks = tensor.blocks() if isinstance(tensor, BlockTensor) else None

    def rows(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """The tokens' rows, float32 [T, columns]."""
        if isinstance(self._tensor, DenseTensor):
            return self._tensor.gather(tokens)
        assert self._blocks is not None
        return self._tensor.unpack(self._blocks[tokens])
