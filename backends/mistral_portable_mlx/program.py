"""MLXProgram: a lowered graph with its weights and its cache, on a stream of its own."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from operator import mul
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from mistral_portable import boundary
from mistral_portable.boundary import Draws, LaneState, Precision
from mistral_portable.boundary.process import OwnProcess
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.boundary.shared import attention_weights_by_position, check_inputs, notice_unpacked
from mistral_portable.cache import CacheManager, CacheSpec, Chunk, StepPlan
from mistral_portable.errors import ClosedError, InputError
from mistral_portable.graph import Graph, infer_shapes
from mistral_portable.graph.passes import fuse_linears
from mistral_portable.weights import BlockTensor, Tensor
from mistral_portable_mlx.attention import FloatFormat, Format, Q8Format, Sizes
from mistral_portable_mlx.cache import Cache, Seats
from mistral_portable_mlx.choosing import Choice, Drawn, Highest
from mistral_portable_mlx.ggml import LAYOUTS
from mistral_portable_mlx.inputs import Span, spans_of, step_inputs
from mistral_portable_mlx.lowering import Kernel, Lowering, Step
from mistral_portable_mlx.matrices import Matrix, form, notice_float32, on_cpu, read_matrix, read_vector
from mistral_portable_mlx.memory import Memory, weight_bytes
from mistral_portable_mlx.scratch import scratch_bytes
from mistral_portable_mlx.stacks import Parts, room
from mistral_portable_mlx.streams import TURN, take_stream

__all__ = ["DrawingMLXProgram", "MLXProgram", "MLXStep"]

Values = dict[str, Any]
Layers = dict[int, list[Parts]]
Run = Callable[[dict[str, mx.array], Layers], tuple[Values, Layers]]

_CHOSEN = "chosen"  # the tokens of a step that chooses them
_ATTENDED = "attended"  # a value of such a step that is there when all pages have been written and read
_KEPT = 64  # compiled steps; the least recently used one is dropped
_KNOWN = 1024  # sizes of steps whose scratch is remembered
_MOST_EACH = 8  # tokens of each sequence in a step that is compiled: what is drafted comes in few lengths

_PROCESS = OwnProcess("MLX")  # this module is imported when the first program is prepared


class MLXProgram:
    """A GreedyProgram that records a step's operations for MLX to run.

    A step in which all sequences have the same few tokens is compiled (`mx.compile`), once for each combination of
    shapes: the numbers of sequences and tokens, the slots of their pages, the rows given for `replace_rows`. Other
    steps are recorded each time: a prompt's chunks are long, and their lengths seldom repeat.
    """

    batch_invariant = False  # the order of a sum is that of the BLAS or GPU kernels that MLX was built with

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        spec: CacheSpec,
        precision: Precision,
        memory: Memory,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        _PROCESS.require()
        self.precision = precision
        self.traces = 0
        """Number of times that the graph was walked: once for each compiled step, and for each run of another step."""
        self._spec = spec
        self._dtype: mx.Dtype = getattr(mx, precision.dtype)

        self._graph = fuse_linears(graph, lambda parameter: form(weights[parameter.parts[0]], self._dtype))
        self._shapes = infer_shapes(self._graph)
        self._attentions = [node.name for node in self._graph.nodes if node.op == "attention"]
        self._format: Format = FloatFormat(self._dtype, spec.head_dim)
        if precision.kv_cache == "q8_0":
            # float16 has as many bits as the scales; on a CPU MLX adds up in the type of the scales.
            sums = mx.float16 if self._dtype == mx.float16 and not on_cpu() else mx.float32
            self._format = Q8Format(self._dtype, spec.head_dim, sums)
        self._cache = Cache(spec, self._format, memory)
        self._steps: list[tuple[str, Kernel, tuple[str, ...]]] = []
        self._compiled: OrderedDict[tuple[object, ...], Run] = OrderedDict()
        self._rotations = graph.rotations
        self._memory, self._weights = memory, weight_bytes(self._graph, weights, self._dtype)
        forms = {name: form(weights[own.parts[0]], self._dtype) for name, own in self._graph.parameters.items()}
        known = self._graph, spec, self._format, forms, self._dtype.size
        self._scratch = lru_cache(_KNOWN)(lambda sizes: scratch_bytes(*known, sizes))
        tokens = min(spec.max_chunk, spec.max_context)
        slots = [room(tokens, group.page_size) for group in spec.groups]
        lane = sum(self._cache.slot_bytes(group) * count for group, count in enumerate(slots))
        first = self._scratch(self._sizes([tokens], [[count] for count in slots], 1))
        memory.require(self._weights, lane, first, tokens)
        notice_unpacked(
            self._graph,
            weights,
            precision.dtype,
            f"MLX has no such blocks; of ggml's types it holds {', '.join(sorted(LAYOUTS))}",
            lambda part: not isinstance(part, BlockTensor) or part.dtype in LAYOUTS,
        )
        if not on_cpu():
            notice_float32(self._graph, weights, self._dtype)
        memory.configure()
        self._stream: mx.Stream | None
        with TURN:
            self._stream, self._give_stream_back = take_stream(self)
        self._lower(weights, progress)

    @property
    def cache_bytes(self) -> int:
        return self._cache.nbytes

    @property
    def peak_memory_bytes(self) -> int:
        """The most bytes that MLX has held in this process: arrays of weights, cache and scratch."""
        return mx.get_peak_memory()

    @property
    def scratch_bytes(self) -> int:
        return 0  # MLX owns it

    def slot_bytes(self, group: int) -> int:
        return self._cache.slot_bytes(group)

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, NDArray[np.float32]]:
        check_inputs(self._graph, plan, inputs)
        with self._on_stream():
            taken = self._take(plan)
            values = self._build(plan, taken, {name: self._given(array) for name, array in inputs.items()})
            # A step without requested rows is not waited for: the next chunk is recorded while this one runs.
            mx.async_eval(values, self._cache.arrays())
            return {
                name: self._output(value, values.get(name), plan, taken) for name, value in self._graph.outputs.items()
            }

    def submit(self, plan: StepPlan, inputs: Inputs = NO_INPUTS, *, after: boundary.Step | None = None) -> "MLXStep":
        return self._choose(plan, Highest(), inputs, after)

    def read(self, step: "MLXStep") -> NDArray[np.int32]:
        """Wait for a step's tokens, int32 [R]. The one that follows starts when this one has read its pages: the device
        goes on with it while the host reads the tokens."""
        with self._on_stream():
            if step.following is not None:
                mx.eval(step.attended)
                step.following.start()
            tokens = np.array(step.chosen)
            step.read = True
            return tokens

    def read_logits(self, step: "MLXStep", row: int) -> NDArray[np.float32]:
        """Wait for the logits of a row of a step that was drawn, float32 [vocab_size]."""
        with self._on_stream():
            assert step.logits_kept is not None
            return np.array(step.logits_kept[row])

    def warm(self) -> None:
        """Run steps of one token, so that the device's kernels are made while loading, and not in the first text. The
        cache is empty again afterwards."""
        manager = CacheManager(self._spec)
        plan = manager.plan([Chunk(manager.open(), [0], [0])])
        sizes = {"T": 1, "R": 1}
        shapes = {
            name: [sizes.get(size, 0) if isinstance(size, str) else size for size in shape]
            for name, shape in self._graph.given.items()
        }
        kinds = {name: np.float32 if len(shape) == 2 else np.int32 for name, shape in shapes.items()}
        self._try(plan, {name: np.zeros(shape, kinds[name]) for name, shape in shapes.items()})
        self._cache.clear()

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        with self._on_stream():
            return self._cache.read(group, pages, blank)

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        with self._on_stream():
            self._cache.write(group, pages, state)

    def close(self) -> None:
        if _PROCESS.forked:  # the memory and the threads are the parent's
            return
        with TURN:
            if self._stream is not None:
                mx.synchronize(self._stream)
            self._stream = None
            self._give_stream_back()
            self._compiled.clear()
            self._steps.clear()
            self._cache.clear()
            mx.clear_cache()

    @contextmanager
    def _on_stream(self) -> Iterator[None]:
        _PROCESS.require()  # before the lock, which another thread may have held at the fork
        with TURN:
            if self._stream is None:
                raise ClosedError("the program is closed: prepare it again")
            with mx.stream(self._stream):
                yield

    def _lower(self, weights: Mapping[str, Tensor], progress: Callable[[str, int, int], None] | None) -> None:
        """Read the weights, one after the other, so that only one of them is in memory twice, and make the kernels."""
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
                progress("weights", min(done, self._weights), self._weights)
        with self._on_stream():
            lowering = Lowering(self._spec, self._format, self._rotations, matrices, vectors)
        self._steps = [(node.name, *lowering.kernel(node)) for node in self._graph.nodes]

    def _choose(self, plan: StepPlan, choice: Choice, inputs: Inputs, after: boundary.Step | None) -> "MLXStep":
        if not isinstance(after, MLXStep | None):
            raise InputError(f"after is a {type(after).__name__}: give a step that this program has begun")
        before = after
        check_inputs(self._graph, plan, inputs, rows_before=before.chosen.size if before else 0)
        with self._on_stream():
            given = {name: self._given(array) for name, array in inputs.items()}
            if before and plan.sources is not None:
                given["tokens"] = _gathered(plan.tokens, plan.sources, before.chosen)
            made = self._build(plan, self._take(plan, choice), given, choice)
            step = MLXStep(self, made[_CHOSEN], made[_ATTENDED], made.get("logits"))
            if before is None or before.read:
                step.start()
            else:
                before.following = step
            return step

    def _try(self, plan: StepPlan, inputs: Inputs) -> None:
        """Run a step in each way, so that the kernels of a text's first step are compiled."""
        self.step(plan, inputs)
        if self._chooses:
            self.submit(plan, inputs).tokens()

    @property
    def _chooses(self) -> bool:
        """Whether the graph has logits of requested rows, of which tokens are chosen."""
        logits = self._graph.outputs.get("logits")
        return logits is not None and self._shapes[logits][0] == "R"

    def _take(self, plan: StepPlan, choice: Choice | None = None) -> list[list[Seats]]:
        """Take the stacks of a step. Raises CapacityError, before anything has changed, if there is no memory for its
        keys, values and scratch."""
        counts = np.diff(plan.query_starts).tolist()
        slots = [self._cache.slots(plan, group) for group in range(len(self._spec.groups))]
        rows, more = len(plan.logit_rows), self._cache.growth(plan)
        scratch = self._scratch(self._sizes(counts, slots, rows))
        if choice is not None:
            scratch += choice.scratch_bytes(rows, int(self._shapes[self._graph.outputs["logits"]][1]))
        if not self._memory.has_room(more + scratch):
            cache = self._cache.nbytes + more
            raise self._memory.refusal(self._weights, cache, scratch, len(plan.tokens))
        return self._cache.take(plan)

    def _sizes(self, counts: Sequence[int], slots: Sequence[Sequence[int]], rows: int) -> Sizes:
        """counts: tokens of each sequence. slots: by layer group, of the page of each sequence."""
        return Sizes(
            tokens=sum(counts),
            rows=rows,
            longest=max(counts),
            slots=tuple(sum(own) for own in slots),
            pairs=tuple(sum(map(mul, counts, own)) for own in slots),
            metal=self._memory.kind == "Metal",
        )

    def _given(self, array: NDArray[Any]) -> mx.array:
        """An input of the step: floats in the program's dtype, integers in int32."""
        return mx.array(array, self._dtype if array.dtype.kind == "f" else mx.int32)

    def _build(
        self,
        plan: StepPlan,
        taken: list[list[Seats]],
        given: Mapping[str, mx.array],
        choice: Choice | None = None,
    ) -> Values:
        """Record a step on these stacks: its outputs, to be evaluated; with a `choice` the tokens, and the logits if it
        keeps them. given: arrays for the graph's other inputs, or for `tokens`."""
        shapes = tuple(tuple(given[name].shape) for name in self._graph.given)
        spans = tuple(tuple(spans_of(plan, seats) for seats in some) for some in taken)
        function = self._function(plan, taken, spans, choice, shapes)
        inputs = step_inputs(plan, self._spec, self._rotations, taken) | dict(given)
        if choice is not None:
            inputs |= choice.arrays()
        layers = {
            layer: [list(seats.stack.layers[layer]) for seats in some]
            for group, some in zip(self._spec.groups, taken, strict=True)
            for layer in group.layers
        }
        # No variable here may keep a page's old arrays: MLX would then copy instead of writing in place.
        values, layers = function(inputs, layers)
        self._cache.put(taken, layers)
        return values

    def _function(
        self,
        plan: StepPlan,
        taken: list[list[Seats]],
        spans: tuple[tuple[tuple[Span, ...], ...], ...],
        choice: Choice | None,
        given: tuple[tuple[int, ...], ...],
    ) -> Run:
        """Make a function of arrays of the step, compiled if all sequences have the same few tokens.

        given: the shapes of the inputs in `Graph.given`.
        """

        rows = len(plan.logit_rows)

        def run(inputs: dict[str, mx.array], layers: Layers) -> tuple[Values, Layers]:
            values, layers = self._run(spans, rows, inputs, layers)
            outputs = self._outputs(values)
            if choice is None:
                return outputs, layers
            logits = outputs["logits"]
            attended = values[self._attentions[-1]] if self._attentions else logits
            made = {_CHOSEN: choice.choose(logits, inputs), _ATTENDED: attended}
            return (made | {"logits": logits} if choice.keeps_logits else made), layers

        counts = np.diff(plan.query_starts)
        if counts.max() > _MOST_EACH or counts.min() != counts.max():
            return run
        slots = tuple(tuple(seats.stack.slots for seats in some) for some in taken)
        key = (len(plan.tokens), rows, choice and choice.key, given, spans, slots)
        if key not in self._compiled:
            self._compiled[key] = mx.compile(run)
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(key)
        return self._compiled[key]

    def _run(
        self,
        spans: tuple[tuple[tuple[Span, ...], ...], ...],
        rows: int,
        inputs: dict[str, mx.array],
        layers: Layers,
    ) -> tuple[Values, Layers]:
        """Walk the graph: all values by name, and the written layers."""
        self.traces += 1
        step = Step(spans, inputs, {layer: [list(parts) for parts in stacks] for layer, stacks in layers.items()})
        values: Values = {name: inputs[name] for name in self._graph.given}
        for name, kernel, names in self._steps:
            if self._shapes[name][0] == "R" and not rows:
                continue
            values[name] = kernel(step, *(values[value] for value in names))
        return values, step.layers

    def _outputs(self, values: Values) -> Values:
        """The outputs of the graph, in float32."""
        wanted = {name: values[value] for name, value in self._graph.outputs.items() if value in values}
        return {
            name: [array.astype(mx.float32) for array in value] if isinstance(value, list) else value.astype(mx.float32)
            for name, value in wanted.items()
        }

    def _output(self, value: str, found: Any, plan: StepPlan, taken: list[list[Seats]]) -> NDArray[np.float32]:
        shape = self._shapes[value]
        if shape[-1] == "K":
            (node,) = (node for node in self._graph.nodes if node.name == value)
            group = self._spec.group_of(node.integer("layer"))
            size = self._spec.groups[group].page_size
            order = [s for seats in taken[group] for s in seats.sequences]
            weights = dict(zip(order, (row.swapaxes(0, 1) for span in found for row in np.array(span)), strict=True))
            return attention_weights_by_position(
                node, plan, self._spec, lambda s, slots: weights[s][:, :, slots % size]
            )
        if found is None:  # no rows were requested
            return np.zeros((0, *(int(size) for size in shape[1:])), np.float32)
        return np.array(found)


class DrawingMLXProgram(MLXProgram):
    """A DrawingProgram: one on a GPU, where draws take less time than a host that waits for logits."""

    def draw(
        self, plan: StepPlan, draws: Draws, inputs: Inputs = NO_INPUTS, *, after: boundary.Step | None = None
    ) -> "MLXStep":
        return self._choose(plan, Drawn(draws), inputs, after)

    def _try(self, plan: StepPlan, inputs: Inputs) -> None:
        super()._try(plan, inputs)
        if self._chooses:
            one, off = np.ones(1), np.zeros(1, np.int32)
            for top_p in (one, one / 2):  # without a sort, and with one
                self.draw(plan, Draws(one / 2, one, off, top_p, one * 0), inputs).tokens()


class MLXStep:
    """A recorded step of `program`. One that is submitted after another starts while the tokens of that one are read.

    It does not start earlier than the other one has read its pages: while a step may still read a layer's ring, MLX
    copies the ring instead of writing in place. What is left of the other one then, the rest of its last layer, the
    head and the choice, keeps the device busy until this one comes.
    """

    def __init__(self, program: MLXProgram, chosen: mx.array, attended: mx.array, logits: mx.array | None) -> None:
        self._program = program
        self.chosen = chosen
        """The tokens, int32 [R], to be evaluated."""
        self.attended = attended
        """A value that is there when the step has read its pages."""
        self.logits_kept = logits
        """float32 [R, vocab_size], if it was drawn."""
        self.following: MLXStep | None = None
        self.read = False

    def start(self) -> None:
        """Have the device begin, in two parts that can be waited for."""
        mx.async_eval(self.attended)
        mx.async_eval(self.chosen)

    def tokens(self) -> NDArray[np.int32]:
        return self._program.read(self)

    def logits(self, row: int) -> NDArray[np.float32]:
        return self._program.read_logits(self, row)


def _gathered(tokens: NDArray[np.int32], sources: NDArray[np.int32], before: mx.array) -> mx.array:
    """The tokens of a step, int32 [T], where `sources` is r >= 0 those of row r of the step before."""
    rows = mx.array(sources)
    # Not in what is compiled, which then need not depend on the number of rows before.
    # A row without a token, -1, stands for any.
    return mx.where(rows < 0, mx.array(tokens), mx.maximum(before, 0)[mx.maximum(rows, 0)])
