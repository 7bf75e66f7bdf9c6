"""NumbaProgram: a lowered graph with its weights, cache, memory and team of threads."""

import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import ExecutorOptions, LaneState, Precision
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.boundary.shared import attention_weights_by_position, check_inputs, notice_unpacked
from mistral_portable.cache import CacheSpec, StepPlan, visible
from mistral_portable.errors import ClosedError
from mistral_portable.graph import Graph, Node, infer_shapes
from mistral_portable.weights import AffineTensor, BlockTensor, DenseTensor, Tensor
from mistral_portable_numba.cache import KVCache
from mistral_portable_numba.compiler.isa import Isa
from mistral_portable_numba.compiler.objects import LoadedKernels
from mistral_portable_numba.lowering import lower_graph
from mistral_portable_numba.step import StepValues
from mistral_portable_numba.tape import Layout, lay_out
from mistral_portable_numba.team import Team, yield_address

__all__ = ["NumbaProgram"]


class NumbaProgram:
    """Steps are safe from several threads: they take turns."""

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
        self._turn = threading.Lock()
        self._values = StepValues(spec)
        self._cache = KVCache(spec, precision.kv_cache or precision.dtype)
        self._lowered = lower_graph(graph, weights, spec, precision, self._values, self._cache, threads)
        notice_unpacked(
            graph,
            weights,
            "float32",
            "backend 'numba' has no kernels for them; backend 'mlx' keeps MLX's groups as they are, and a GGUF file "
            "runs here in its own size",
            kept=lambda tensor: not isinstance(tensor, AffineTensor),
        )
        self._widths = infer_shapes(graph)
        names = {"tape", "pack", *(instruction.kernel for instruction in self._lowered.instructions)}
        self._kernels = LoadedKernels(names, isa, folder, options.progress)
        self._addresses = {name: self._kernels[name] for name in names}
        self._team: Team | None = Team(threads, self._kernels["tape"])
        self._barrier = np.zeros(64, np.int64)
        _programs.add(self)
        self._job = np.array([0, 0, self._barrier.ctypes.data, yield_address()], np.int64)
        self._job_address = int(self._job.ctypes.data)
        self._tables = {
            node.inputs[1]: _Table([weights[part] for part in graph.parameters[node.inputs[1]].parts])
            for node in self._lowered.embedded
            if node.op == "embedding"
        }
        self._layout: Layout | None = None
        self._room = (0, 0)
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
        layout = self._layout
        return sum(array.nbytes for array in self._lowered.memory) + (layout.memory.nbytes if layout else 0)

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, NDArray[np.float32]]:
        check_inputs(self._graph, plan, inputs)
        with self._turn:
            self._require_open()
            layout = self._room_for(len(plan.tokens), len(plan.logit_rows))
            self._cache.grow(plan)
            self._values.update(plan)
            for node in self._lowered.embedded:
                self._embed(layout, node, plan, inputs)
            self._run(len(layout.tape), layout.address)
            exposed = {
                node.name: self._attention_weights(layout, node, plan) for node in self._lowered.attention_weights
            }
            sizes = {"T": len(plan.tokens), "R": len(plan.logit_rows)}
            return {
                name: exposed[value]
                if value in exposed
                else self._view(layout, value, sizes[self._lowered.buffers[value].rows]).copy()
                for name, value in self._graph.outputs.items()
            }

    def copy_lane(self, source: int, target: int) -> None:
        self.load_lane(target, self.save_lane(source))

    def save_lane(self, lane: int) -> LaneState:
        with self._turn:
            self._require_open()
            return self._cache.save(lane)

    def load_lane(self, lane: int, state: LaneState) -> None:
        with self._turn:
            self._require_open()
            self._cache.load(lane, state)

    def close(self) -> None:
        with self._turn:
            if self._team is not None:
                self._team.close()
            self._team = self._layout = None
            self._room = (0, 0)
            self._cache.clear()
            self._lowered.instructions.clear()
            self._lowered.memory.clear()
            self._lowered.matrices.clear()
            self._tables.clear()

    def _require_open(self) -> None:
        if self._team is None:
            raise ClosedError("the program is closed: prepare it again")

    def _forget_other_threads(self) -> None:
        """In a forked child: the thread that may have been in the middle of a step is not there."""
        self._turn = threading.Lock()
        self._barrier[:] = 0

    def _read_weights(self, options: ExecutorOptions) -> None:
        """Pack what is to be packed, on all threads, while the file is read."""
        matrices = list(self._lowered.matrices.values())
        total = sum(matrix.data.nbytes for matrix in matrices)
        done = 0
        for matrix in matrices:
            if matrix.parts:
                matrix.fill(self._pack)
            done += matrix.data.nbytes
            if options.progress is not None:
                options.progress("weights", done, total)

    def _pack(self, arguments: list[int]) -> None:
        counter = np.zeros(8, np.int64)
        values = np.array([counter.ctypes.data, *arguments], np.int64)
        tape = np.array([[self._kernels["pack"], values.ctypes.data, 0]], np.int64)
        self._run(len(tape), tape.ctypes.data)

    def _run(self, instructions: int, tape: int) -> None:
        assert self._team is not None
        self._job[:2] = instructions, tape
        self._team.run(self._job_address)

    def _room_for(self, tokens: int, rows: int) -> Layout:
        """The tape with buffers for a step of so many tokens and rows."""
        if self._layout is None or tokens > self._room[0] or rows > self._room[1]:
            self._layout = None  # its memory first
            room = max(tokens, self._room[0]), max(rows, self._room[1])
            self._layout = lay_out(self._lowered.instructions, self._lowered.buffers.values(), self._addresses, *room)
            self._room = room
        self._layout.counters[:] = 0
        return self._layout

    def _view(self, layout: Layout, value: str, count: int) -> NDArray[np.float32]:
        """Rows of a buffer, [count, columns]."""
        buffer = self._lowered.buffers[value]
        columns = self._widths[value][1]
        assert isinstance(columns, int)
        begin = layout.offsets[buffer]
        rows = layout.memory[begin : begin + count * buffer.stride].view(np.float32)
        return rows.reshape(count, buffer.stride // 4)[:, :columns]

    def _embed(self, layout: Layout, node: Node, plan: StepPlan, inputs: Inputs) -> None:
        """Write the rows of an embedding, or those of a replace_rows over one, where the tape reads them."""
        out = self._view(layout, node.name, len(plan.tokens))
        if node.op == "embedding":
            out[:] = self._tables[node.inputs[1]].rows(plan.tokens)
        else:
            x, given, places = node.inputs
            out[:] = self._view(layout, x, len(plan.tokens))
            out[inputs[places]] = inputs[given]

    def _attention_weights(self, layout: Layout, node: Node, plan: StepPlan) -> NDArray[np.float32]:
        """[T, heads, K], from the queries of the step and the cached keys."""
        heads, head_dim = node.integer("num_attention_heads"), node.integer("head_dim")
        q = self._view(layout, node.inputs[0], len(plan.tokens)).reshape(len(plan.tokens), heads, head_dim)

        def softmax(s: int, slots: NDArray[np.intp]) -> NDArray[np.float32]:
            tokens, positions = plan.spans[s], np.arange(plan.ends[s] - len(slots), plan.ends[s])
            keys = self._cache.keys(node.integer("layer"), int(plan.lanes[s]), slots)
            keys = np.repeat(keys, heads // keys.shape[1], axis=1)
            scores = np.einsum("thd,nhd->thn", q[tokens], keys) * np.float32(node.number("scale"))
            mask = visible(plan.positions[tokens, None], positions[None, :], node.window)[:, None, :]
            scores = np.where(mask, scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            normalized: NDArray[np.float32] = weights / weights.sum(axis=-1, keepdims=True)
            return normalized

        return attention_weights_by_position(node, plan, self._spec, softmax)


class _Table:
    """An embedding table, which stays in the file: a step reads a few rows."""

    def __init__(self, parts: list[Tensor]) -> None:
        tensor = parts[0]
        if len(parts) > 1 or not isinstance(tensor, BlockTensor | DenseTensor):
            tensor = DenseTensor(tensor.name, "float32", np.concatenate([part.numpy(np.float32) for part in parts]))
        self._tensor = tensor
        self._blocks = tensor.blocks() if isinstance(tensor, BlockTensor) else None

    def rows(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """float32 [T, columns]"""
        if isinstance(self._tensor, DenseTensor):
            return self._tensor.gather(tokens)
        from gguf.quants import dequantize

        assert self._blocks is not None
        unpacked: NDArray[np.float32] = dequantize(self._blocks[tokens], self._tensor.type)
        return unpacked


_programs: "weakref.WeakSet[NumbaProgram]" = weakref.WeakSet()


def _forget_other_threads() -> None:
    for program in _programs:
        program._forget_other_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_other_threads)
