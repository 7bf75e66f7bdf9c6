"""MLXProgram: a lowered graph with its weights and cache, on a stream of its own."""

import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mistral_portable.boundary import GreedyStep, LaneState, Precision
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import BackendError
from mistral_portable.graph import Graph, Parameter, infer_shapes
from mistral_portable.graph.passes import fuse_linears
from mistral_portable.weights import BlockTensor, Tensor
from mistral_portable_mlx.attention import FloatFormat, Format, Q8Format
from mistral_portable_mlx.cache import Cache, Parts
from mistral_portable_mlx.ggml import LAYOUTS
from mistral_portable_mlx.inputs import step_inputs
from mistral_portable_mlx.lowering import INPUTS_EMBEDS, Kernel, Lowering, Step
from mistral_portable_mlx.matrices import Matrix, form, read_matrix, read_vector
from mistral_portable_mlx.memory import Memory, weight_bytes

__all__ = ["MLXGreedyStep", "MLXProgram"]

Values = dict[str, Any]
Layers = dict[int, list[Parts]]
Run = Callable[[dict[str, mx.array], Layers], tuple[Values, Layers]]

_LIKELIEST = "likeliest"
_KEPT = 64  # compiled steps; the one that was not used for longest goes


class MLXProgram:
    """Steps are safe from several threads: they take turns.

    A step in which every sequence has one token is compiled (`mx.compile`), once for the shape of its arrays: how many
    sequences there are and how many slots their lanes have. Others are built as they come: a prompt's chunks are long,
    and no two prompts are alike.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        spec: CacheSpec,
        precision: Precision,
        memory: Memory,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.precision = precision
        self.traces = 0
        """How many steps were built: compiled once, or to be run once."""
        self._spec = spec
        self._dtype: mx.Dtype = getattr(mx, precision.dtype)

        def fusible(fused: Sequence[Parameter]) -> bool:
            return len({form(weights[part], self._dtype) for weight in fused for part in weight.parts}) == 1

        self._graph = fuse_linears(graph, fusible)
        self._shapes = infer_shapes(self._graph)
        kind = Q8Format if precision.kv_cache == "q8_0" else FloatFormat
        self._format: Format = kind(self._dtype, spec.head_dim)
        self._cache = Cache(spec, self._format, memory)
        self._steps: list[tuple[str, Kernel, tuple[str, ...]]] = []
        self._compiled: OrderedDict[tuple[object, ...], Run] = OrderedDict()
        self._rotations = graph.rotations
        total = weight_bytes(self._graph, weights, self._dtype)
        tokens = min(spec.max_chunk, spec.max_context)
        slots = [(len(group.layers), min(tokens, group.slots)) for group in spec.groups]
        lane = sum(layers * self._format.nbytes(spec.num_key_value_heads, count) for layers, count in slots)
        memory.require(total, lane, tokens)
        _notice_widened(self._graph, weights, precision.dtype)
        memory.configure()
        self._turn = threading.Lock()
        # Other streams of MLX work in the thread that has made them, and in no other.
        self._stream: mx.Stream | None = mx.new_thread_unsafe_stream(mx.default_device())
        self._lower(weights, total, progress)

    @property
    def cache_bytes(self) -> int:
        return self._cache.nbytes

    @property
    def peak_memory_bytes(self) -> int:
        """The most that MLX has held in this process: arrays of weights, cache and scratch."""
        return mx.get_peak_memory()

    def step(self, plan: StepPlan, inputs_embeds: NDArray[np.float32] | None = None) -> dict[str, NDArray[np.float32]]:
        with self._on_stream():
            given = {} if inputs_embeds is None else {INPUTS_EMBEDS: mx.array(inputs_embeds, self._dtype)}
            values = self._build(plan, given)
            # Where nobody asked for rows there is nothing to wait for: the next chunk is built while this one runs.
            mx.async_eval(values, self._cache.arrays())
            return {name: self._output(value, values.get(name), plan) for name, value in self._graph.outputs.items()}

    def begin_greedy(self, plan: StepPlan, after: GreedyStep | None = None) -> "MLXGreedyStep":
        with self._on_stream():
            before = after if isinstance(after, MLXGreedyStep) else None
            values = self._build(plan, {"tokens": before.likeliest} if before else {}, greedy=True)
            step = MLXGreedyStep(self, values[_LIKELIEST])
            if before is None or before.read:
                mx.async_eval(step.likeliest)
            else:
                before.following = step
            return step

    def read(self, step: "MLXGreedyStep") -> NDArray[np.int32]:
        """The step's tokens, once they are computed; the one that follows it begins."""
        with self._on_stream():
            tokens = np.array(step.likeliest)
            step.read = True
            if step.following is not None:
                mx.async_eval(step.following.likeliest)
            return tokens

    def copy_lane(self, source: int, target: int) -> None:
        with self._on_stream():
            self._cache.copy(source, target)

    def save_lane(self, lane: int) -> LaneState:
        with self._on_stream():
            return self._cache.save(lane)

    def load_lane(self, lane: int, state: LaneState) -> None:
        with self._on_stream():
            self._cache.load(lane, state)

    def close(self) -> None:
        with self._turn:
            if self._stream is not None:
                mx.synchronize(self._stream)
            self._stream = None
            self._compiled.clear()
            self._steps.clear()
            self._cache.clear()
            mx.clear_cache()

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        with self._turn:
            if self._stream is None:
                raise BackendError("the program is closed: prepare it again")
            with mx.stream(self._stream):
                yield

    def _lower(
        self, weights: Mapping[str, Tensor], total: int, progress: Callable[[str, int, int], None] | None
    ) -> None:
        """Read the weights, one after the other, so that the file and the device hold but one of them twice."""
        tables = {node.inputs[1] for node in self._graph.nodes if node.op in ("linear", "embedding")}
        tables |= {name for node in self._graph.nodes if node.op == "moe" for name in node.inputs[2:]}
        matrices: dict[str, Matrix] = {}
        vectors: dict[str, mx.array] = {}
        done = 0
        for name, parameter in self._graph.parameters.items():
            parts = [weights[part] for part in parameter.parts]
            with self._on_stream():
                if name in tables:
                    matrices[name] = read_matrix(parts, self._dtype)
                    done += sum(array.nbytes for array in matrices[name].arrays)
                else:
                    vectors[name] = read_vector(parts, self._dtype)
                    done += vectors[name].nbytes
            if progress is not None:
                progress("weights", min(done, total), total)
        lowering = Lowering(self._spec, self._format, self._rotations, matrices, vectors)
        self._steps = [(node.name, *lowering.kernel(node)) for node in self._graph.nodes]

    def _build(self, plan: StepPlan, given: Mapping[str, mx.array], greedy: bool = False) -> Values:
        """The step's outputs, still to be computed. given: `tokens` or `inputs_embeds`, in place of the plan's."""
        starts, rows = tuple(plan.query_starts.tolist()), len(plan.logit_rows)
        layers = self._cache.take(plan)
        lanes = plan.lanes.tolist()
        slots = [[self._cache.slots(group, lane) for lane in lanes] for group in range(len(self._spec.groups))]
        inputs = step_inputs(plan, self._spec, self._rotations, slots) | dict(given)
        # No name here may keep a lane's old arrays: they are written in place.
        values, layers = self._function(starts, rows, slots, greedy, INPUTS_EMBEDS in given)(inputs, layers)
        self._cache.put(plan, layers)
        return values

    def _function(self, starts: tuple[int, ...], rows: int, slots: list[list[int]], greedy: bool, embeds: bool) -> Run:
        def run(inputs: dict[str, mx.array], layers: Layers) -> tuple[Values, Layers]:
            values, layers = self._run(starts, rows, inputs, layers)
            return ({_LIKELIEST: _likeliest(values["logits"])} if greedy else values), layers

        if starts[-1] != len(starts) - 1:
            return run
        key = (starts, rows, greedy, embeds, *map(tuple, slots))
        if key not in self._compiled:
            self._compiled[key] = mx.compile(run)
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return self._compiled[key]

    def _run(
        self, starts: tuple[int, ...], rows: int, inputs: dict[str, mx.array], layers: Layers
    ) -> tuple[Values, Layers]:
        self.traces += 1
        step = Step(starts, inputs, {layer: [list(parts) for parts in lanes] for layer, lanes in layers.items()})
        values: Values = {}
        for name, kernel, names in self._steps:
            if self._shapes[name][0] == "R" and not rows:
                continue
            values[name] = kernel(step, *(values[value] for value in names))
        wanted = {name: values[value] for name, value in self._graph.outputs.items() if value in values}
        wide = {
            name: [array.astype(mx.float32) for array in value] if isinstance(value, list) else value.astype(mx.float32)
            for name, value in wanted.items()
        }
        return wide, step.layers

    def _output(self, value: str, found: Any, plan: StepPlan) -> NDArray[np.float32]:
        shape = self._shapes[value]
        if shape[-1] == "K":
            return self._by_position(value, found, plan)
        if found is None:  # no rows were asked for
            return np.zeros((0, *(int(size) for size in shape[1:])), np.float32)
        return np.array(found)

    def _by_position(self, value: str, found: list[mx.array], plan: StepPlan) -> NDArray[np.float32]:
        """Attention weights, of each sequence [T, heads, slots] -> [all T, heads, K] in order of positions."""
        layer: Any = next(node.attributes["layer"] for node in self._graph.nodes if node.name == value)
        group = self._spec.group_of(layer)
        first, ends = plan.groups[group].first, plan.positions[plan.query_starts[1:] - 1] + 1
        out = np.zeros((len(plan.tokens), found[0].shape[1], int(np.max(ends - first))), np.float32)
        for s, weights in enumerate(found):
            slots = np.arange(first[s], ends[s]) % self._spec.groups[group].slots
            out[plan.query_starts[s] : plan.query_starts[s + 1], :, : len(slots)] = np.array(weights)[:, :, slots]
        return out


class MLXGreedyStep:
    """A step of `program` that is built, and computed once the one before it is read.

    If both were on their way, MLX would not write the second one's keys in place: it copies a layer's ring that a
    step may still read.
    """

    def __init__(self, program: MLXProgram, likeliest: mx.array) -> None:
        self._program = program
        self.likeliest = likeliest
        """int32 [R]: what it will have chosen."""
        self.following: MLXGreedyStep | None = None
        self.read = False

    def tokens(self) -> NDArray[np.int32]:
        return self._program.read(self)


def _likeliest(logits: mx.array) -> mx.array:
    """The likeliest tokens, int32 [R], of float32 logits [R, vocab_size]; -1 for a row that the sampler refuses."""
    unsound = mx.isnan(logits).any(axis=-1) | mx.isinf(logits.max(axis=-1))
    return mx.where(unsound, -1, logits.argmax(axis=-1).astype(mx.int32))


def _notice_widened(graph: Graph, weights: Mapping[str, Tensor], dtype: str) -> None:
    """Say which of ggml's types become floats."""
    parts = [weights[part] for parameter in graph.parameters.values() for part in parameter.parts]
    kinds = Counter(part.dtype for part in parts if isinstance(part, BlockTensor) and part.dtype not in LAYOUTS)
    if kinds:
        listed = ", ".join(f"{count} in {kind}" for kind, count in sorted(kinds.items()))
        warnings.warn(
            f"{sum(kinds.values())} matrices ({listed}) are kept in {dtype}, as MLX has no such blocks: they take more "
            f"memory than in the file. Types that MLX can hold: {', '.join(sorted(LAYOUTS))}.",
            stacklevel=4,
        )
