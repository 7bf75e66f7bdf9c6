"""TorchProgram: a lowered graph with its weights and cache on a device."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mistral_portable import boundary
from mistral_portable.boundary import Draws, LaneState, Precision
from mistral_portable.boundary.process import OwnProcess
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.boundary.shared import attention_weights_by_position, check_inputs
from mistral_portable.cache import CacheSpec, StepPlan
from mistral_portable.errors import BackendError, ClosedError, InputError
from mistral_portable.graph import Graph, Parameter, infer_shapes
from mistral_portable.graph.adapters import is_added
from mistral_portable.graph.liveness import Launch, last_uses
from mistral_portable.graph.passes import fuse_linears
from mistral_portable.weights import Tensor as Stored
from mistral_portable_torch.attention import Attention, Eager, Sizes
from mistral_portable_torch.cache import Cache
from mistral_portable_torch.capture import Captured, Record
from mistral_portable_torch.choosing import Choice, Drawn, Highest
from mistral_portable_torch.device import Device
from mistral_portable_torch.elementwise import elementwise
from mistral_portable_torch.faster import choose
from mistral_portable_torch.inputs import Layout, pack
from mistral_portable_torch.launches import launches
from mistral_portable_torch.lowering import ATTENTION, EXPOSED, Kernel, Lowering, Step
from mistral_portable_torch.matrices import Dense, Matrix, form, read_matrix, read_vector, stored_bytes
from mistral_portable_torch.memory import Memory
from mistral_portable_torch.padding import bucket, padded, replaces_rows
from mistral_portable_torch.parallel import shard
from mistral_portable_torch.processes import Group
from mistral_portable_torch.reads import GroupReads
from mistral_portable_torch.scratch import scratch_bytes
from mistral_portable_torch.transfer import HostCopy, to_device

__all__ = ["AsynchronousProgram", "DrawingTorchProgram", "TorchProgram", "TorchStep"]

_TOKENS = "tokens"
_KNOWN = 1024  # sizes of steps whose scratch is remembered
_PROCESS = OwnProcess("torch")  # this module is imported when the first program is prepared


class TorchProgram:
    """A graph that runs on a device. Several threads may call `step`; a lock lets one of them run at a time."""

    batch_invariant = False  # torch chooses kernels, and so orders of summation, by the number of tokens

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Stored],
        spec: CacheSpec,
        precision: Precision,
        device: Device,
        attention: Attention,
        memory: Memory,
        *,
        threads: int | None = None,
        chunk: int | None = None,
        record: Record | None = None,
        quantize: str | None = None,
        group: Group | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """threads: CPU threads; None keeps torch's number. chunk: tokens of a step that reads prompts, if it fits into
        memory; None: those of the spec. record: records decoding steps; None: they are not recorded.
        quantize: the bitsandbytes type that float matrices are converted to. group: the processes that share the model.
        """
        self.precision = precision
        self._after: Mapping[str, Callable[[Tensor], Tensor]] = {}
        whole = graph
        if group is not None:
            part = shard(graph, weights, spec, group.rank, group.size)
            graph, weights, spec = part.graph, part.weights, part.spec
            self._after = {name: getattr(group, what) for name, what in part.after.items()}
        self._spec, self._device, self._threads = spec, device, threads
        self.prompt_chunk = spec.max_chunk
        self._dtype: torch.dtype = getattr(torch, precision.dtype)

        def kind(parameter: Parameter) -> tuple[str, bool]:
            return form(weights[parameter.parts[0]]), is_added(parameter.name)

        self._graph = fuse_linears(graph, kind)
        self._shapes = infer_shapes(self._graph)
        self._output_shapes = {name: infer_shapes(whole)[value] for name, value in whole.outputs.items()}
        self._attention = attention
        self._eager = Eager() if any(node.op == "attention_weights" for node in self._graph.nodes) else None
        self._cache = Cache(spec, self._dtype, device.torch, memory, recorded=record is not None)
        self._captured = Captured(record) if record else None
        self._growths = 0
        self._fitted = 0
        self._known: dict[Sizes, int] = {}
        self._packed: Mapping[str, int] = {}
        self._rotations = graph.rotations
        self._lock = threading.Lock()
        self._memory = memory
        self._kernels: list[tuple[Launch, Kernel, tuple[str, ...]]] = []
        self._last_use: Mapping[str, Sequence[str]] = {}
        self._closed = False
        with self._running(), memory.while_loading():
            self._lower(weights, chunk, quantize, record, group, progress)

    @property
    def device(self) -> torch.device:
        """The device that it runs on."""
        return self._device.torch

    @property
    def cache_bytes(self) -> int:
        return self._cache.nbytes

    @property
    def scratch_bytes(self) -> int:
        return 0  # unknown: torch's allocator keeps it

    def slot_bytes(self, group: int) -> int:
        return self._cache.slot_bytes(group)

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, NDArray[np.float32]]:
        check_inputs(self._graph, plan, inputs)
        with self._running(), self._memory.while_stepping():
            values = self._begin(plan, inputs)
            # A step without requested rows waits for nothing: the host builds the next chunk while it is computed.
            return {name: self._output(name, values.get(name), plan) for name in self._graph.outputs}

    def take_part(self, plan: StepPlan, inputs: Inputs) -> None:
        """Run a step of several processes whose outputs are read in another one. Raises the errors of `step`."""
        check_inputs(self._graph, plan, inputs)
        with self._running(), self._memory.while_stepping():
            self._begin(plan, inputs)

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        with self._running(), self._memory.while_stepping():
            return self._cache.read(group, pages, blank)

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        with self._running(), self._memory.while_stepping():
            self._cache.write(group, pages, state)

    def close(self) -> None:
        if _PROCESS.forked:  # the memory and the threads are the parent's
            return
        with self._lock:
            self._closed = True
            if self._captured:
                self._captured.clear()
            self._kernels.clear()
            self._cache.clear()
            if self._device.kind == "cuda":
                torch.cuda.empty_cache()

    @contextmanager
    def _running(self) -> Iterator[None]:
        _PROCESS.require()  # before the lock, which another thread may have held at the fork
        with self._lock, torch.inference_mode(), _cpu_threads(self._threads), self._device.as_current():
            if self._closed:
                raise ClosedError("the program is closed: prepare it again")
            yield

    def _lower(
        self,
        weights: Mapping[str, Stored],
        chunk: int | None,
        quantize: str | None,
        record: Record | None,
        group: Group | None,
        progress: Callable[[str, int, int], None] | None,
    ) -> None:
        """Read the weights one by one, so that the host holds no more than a slice of one that is on the device."""
        parameters, exposed = self._graph.parameters, set(self._graph.outputs.values())
        inner = {node.inputs[1] for node in self._graph.nodes if node.op == "linear" and node.name not in exposed}
        inner -= {node.inputs[1] for node in self._graph.nodes if node.op == "embedding"}
        inner -= {name for name in inner if is_added(name)}
        # LM head, embeddings and adapters stay floats.
        kinds = {name: quantize if name in inner else None for name in parameters}
        if quantize and not any(form(weights[part]) == "dense" for name in inner for part in parameters[name].parts):
            raise BackendError(
                f"quantize={quantize!r} changes nothing: the weights are quantized already; leave it out"
            )
        sizes = {
            name: sum(
                stored_bytes(weights[part], self._dtype, self._device.torch, kinds[name]) for part in parameter.parts
            )
            for name, parameter in parameters.items()
        }
        total = sum(sizes.values())
        self._packed = {
            name: prod(parameter.shape)
            for name, parameter in parameters.items()
            if kinds[name] is not None or form(weights[parameter.parts[0]]) != "dense"
        }
        if chunk is not None and self._memory.fits(total + sum(self._first_step(chunk))):
            self.prompt_chunk = chunk
        self._memory.require(
            total, *self._first_step(self.prompt_chunk), min(self.prompt_chunk, self._spec.max_context)
        )
        self._memory.take(total)
        tables = {node.inputs[1] for node in self._graph.nodes if node.op in ("linear", "embedding")}
        experts = {name for node in self._graph.nodes if node.op == "moe" for name in node.inputs[2:]}
        if quantize and experts:
            raise BackendError(f"quantize={quantize!r} is not made for experts: choose q4_0 or leave it out")
        tables |= experts
        matrices: dict[str, Matrix] = {}
        vectors: dict[str, Tensor] = {}
        done = 0
        for name, parameter in parameters.items():
            parts = [weights[part] for part in parameter.parts]
            if name in tables:
                matrices[name] = read_matrix(parts, self._dtype, self._device.torch, kinds[name])
            else:
                vectors[name] = read_vector(parts, self._dtype, self._device.torch)
            done += sizes[name]
            if progress is not None:
                progress("weights", done, total)
        if self._device.kind == "cuda":
            factors = [matrices[node.inputs[1]] for node in self._graph.nodes if node.op == "linear"]
            dense = [matrix for matrix in factors if isinstance(matrix, Dense)]
            choose(dense, record, group)
        plain = elementwise(self._device.kind)
        lowering = Lowering(
            self._spec,
            self._cache,
            self._attention,
            self._rotations,
            plain,
            matrices,
            vectors,
        )
        together = launches(self._graph)
        self._kernels = [(launch, *lowering.kernel(launch)) for launch in together]
        self._last_use = last_uses(self._graph, together)

    def _first_step(self, chunk: int) -> tuple[int, int]:
        """Bytes of a lane of the first `chunk` tokens of a text, and of the scratch of their step."""
        tokens = min(chunk, self._spec.max_context)
        lane = replace(self._spec, max_chunk=tokens).lane_bytes(self._dtype.itemsize, tokens)
        return lane, self._scratch(Sizes(tokens, 1, tokens, tokens * tokens, 0, 0))

    def _begin(
        self,
        plan: StepPlan,
        inputs: Inputs = NO_INPUTS,
        *,
        choice: Choice | None = None,
        before: Tensor | None = None,
    ) -> dict[str, Any]:
        """Compute the outputs, on the device; with a `choice` the tokens, and the logits if it keeps them. before: the
        tokens of the step that this one is submitted after."""
        recorded, asked = self._is_recorded(plan, inputs), plan
        self._make_room(plan, recorded, choice)
        if recorded:
            plan, inputs = padded(self._graph, self._spec, plan, inputs)
        layout, fixed, words = self._inputs(plan, inputs, recorded, choice)
        if before is not None:
            # Not in what is recorded, which then need not depend on the number of rows before.
            arrays = layout.unpack(words)
            known = torch.cat([arrays["tokens"], before])
            # -1 marks a row without a token: its next one is not used, but must be in the vocabulary.
            torch.clamp(known[arrays["sources"]], min=0, out=arrays["tokens"])
        rows = len(plan.logit_rows)

        def run(words: Tensor) -> dict[str, Any]:
            step = Step(layout.unpack(words), fixed, recorded)
            values = self._run(step, rows)
            if choice is None:
                return values
            logits = values["logits"]
            kept = {"logits": logits} if choice.keeps_logits else {}
            return {_TOKENS: choice.choose(logits, step.inputs), **kept}

        def own(values: dict[str, Any]) -> dict[str, Any]:
            """Leave out the rows that the plan was padded by."""
            sizes = {"T": len(asked.tokens), "R": len(asked.logit_rows)}
            kinds = {name: "R" if name == _TOKENS else self._output_shapes[name][0] for name in values}
            return {
                name: found[: len(asked.lanes)] if isinstance(found, list) else found[: sizes[str(kinds[name])]]
                for name, found in values.items()
            }

        if not recorded:
            return run(words)
        assert self._captured is not None
        if self._growths != self._cache.growths:
            self._captured.clear()
            self._growths = self._cache.growths
        return own(self._captured.run((layout, tuple(fixed.items()), choice and choice.key), words, run))

    def _is_recorded(self, plan: StepPlan, inputs: Inputs) -> bool:
        """Whether a step may be recorded and replayed: one that decodes, or tries a few drafted tokens."""
        if self._captured is None:
            return False
        # Exposed weights are those of whole sequences; a step whose rows are given is not padded.
        single = self._eager is not None or replaces_rows(self._graph, inputs)
        return int(np.diff(plan.query_starts).max()) <= (1 if single else self._attention.recordable)

    def _make_room(self, plan: StepPlan, recorded: bool, choice: Choice | None) -> None:
        """Have the cache make room, if the step's scratch fits besides. What has fitted once, without the cache having
        grown since, is not asked for again: the allocator keeps it."""
        sizes, more = self._sizes(plan, recorded), self._cache.missing_bytes(plan)
        scratch = self._scratch(sizes)
        if choice is not None:
            scratch += choice.scratch_bytes(sizes.rows, int(self._output_shapes["logits"][1]))
        if more:
            self._fitted = 0
        if scratch > self._fitted:
            self._memory.require_step(scratch, more, len(plan.tokens))
        self._cache.make_room(plan, scratch)
        self._fitted = max(self._fitted, scratch)

    def _sizes(self, plan: StepPlan, recorded: bool) -> Sizes:
        """Those of the layer group that reads most."""
        keys = longest = columns = page = 0
        counts = np.diff(plan.query_starts)
        padding = bucket if recorded else int
        tokens = padding(len(plan.tokens))
        for index in range(len(plan.groups)):
            reads = GroupReads(plan, self._spec, index)
            row = reads.columns(int(reads.counts.max()), recorded)
            if recorded:  # tokens and columns are padded, and all are read together
                own = products = tokens * row * reads.page
            else:
                slots = reads.counts.astype(np.int64) * reads.page
                own, products = int(slots.sum()), int((slots * counts).max())
            keys, longest = max(keys, own), max(longest, products)
            if recorded or counts.max() == 1:
                columns, page = max(columns, row), max(page, reads.page)
        return Sizes(tokens, padding(len(plan.logit_rows)), keys, longest, columns, page)

    def _scratch(self, sizes: Sizes) -> int:
        if sizes not in self._known:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[sizes] = scratch_bytes(self._graph, self._packed, self._attention, self._dtype.itemsize, sizes)
        return self._known[sizes]

    def _inputs(
        self, plan: StepPlan, inputs: Inputs, recorded: bool, choice: Choice | None
    ) -> tuple[Layout, dict[str, tuple[Any, ...]], Tensor]:
        """A step's inputs: layout and `fixed`, which a recorded step bakes in, and the words, which it takes anew."""
        arrays: dict[str, NDArray[Any]] = {"tokens": plan.tokens, "logit_rows": plan.logit_rows}
        if choice is not None:
            arrays["sources"] = _places(plan)  # also where no step is before this one: the layout stays the same
            arrays |= choice.arrays(len(plan.logit_rows))
        arrays |= {name: array.astype(_word(array)) for name, array in inputs.items()}
        for name, rotation in enumerate(self._rotations):
            # On the host, because not every device has float64.
            arrays[f"cos.{name}"], arrays[f"sin.{name}"] = rotation.signed_table(plan.positions)
        reads = [GroupReads(plan, self._spec, index) for index in range(len(plan.groups))]
        fixed: dict[str, tuple[Any, ...]] = {}
        for prefix, kernel in ((ATTENTION, self._attention), (EXPOSED, self._eager)):
            if kernel is not None:
                planned = [kernel.plan(read, recorded) for read in reads]
                fixed[prefix] = tuple(group.fixed for group in planned)
                for index, group in enumerate(planned):
                    arrays |= {f"{prefix}.{index}.{name}": array for name, array in group.arrays.items()}
        arrays |= {f"slots.{index}": group.slot_mapping.astype(np.int64) for index, group in enumerate(plan.groups)}
        layout, words = pack(arrays)
        return layout, fixed, to_device(words, self._device.torch)

    def _run(self, step: Step, rows: int) -> dict[str, Any]:
        values: dict[str, Any] = {name: self._given(step.inputs[name]) for name in self._graph.given}
        for launch, kernel, names in self._kernels:
            name = launch.name
            if self._shapes[name][0] == "R" and not rows:
                continue
            made = kernel(step, *(values[value] for value in names))
            values |= zip(launch.results, made, strict=True) if len(launch.results) > 1 else {name: made}
            if name in self._after:
                values[name] = self._after[name](values[name])
            for value in self._last_use[name]:
                values.pop(value, None)  # a value of no requested row is not there
        found = {name: values[value] for name, value in self._graph.outputs.items() if value in values}
        return {
            name: [array.float() for array in value] if isinstance(value, list) else value.float()
            for name, value in found.items()
        }

    def _given(self, array: Tensor) -> Tensor:
        """An input beside the plan's: floats in the program's dtype, integers as places of rows."""
        return array.to(self._dtype) if array.is_floating_point() else array.long()

    def _output(self, name: str, found: Any, plan: StepPlan) -> NDArray[np.float32]:
        shape = self._output_shapes[name]
        if shape[-1] == "K":
            node = next(node for node in self._graph.nodes if node.name == self._graph.outputs[name])
            hidden = GroupReads(plan, self._spec, self._spec.group_of(node.integer("layer"))).hidden
            weights = [array.cpu().numpy()[:, :, begin:] for array, begin in zip(found, hidden, strict=True)]
            return attention_weights_by_position(
                node, plan, self._spec, lambda s, slots: weights[s][:, :, : len(slots)]
            )
        if found is None:  # no rows were requested
            return np.zeros((0, *(int(size) for size in shape[1:])), np.float32)
        return HostCopy(found).numpy()


class AsynchronousProgram(TorchProgram):
    """A program on a device that computes while the host goes on, and that takes the highest logits itself."""

    @property
    def peak_memory_bytes(self) -> int:
        """Peak bytes that torch has held on the device in this process: weights, cache and scratch."""
        if self._device.kind == "cuda":
            return torch.cuda.max_memory_allocated(self._device.torch)
        return torch.mps.driver_allocated_memory()

    def submit(self, plan: StepPlan, inputs: Inputs = NO_INPUTS, *, after: boundary.Step | None = None) -> "TorchStep":
        return self._choose(plan, Highest(), inputs, after)

    def _choose(self, plan: StepPlan, choice: Choice, inputs: Inputs, after: boundary.Step | None) -> "TorchStep":
        if not isinstance(after, TorchStep | None):
            raise InputError(f"after is a {type(after).__name__}: give a step that this program has begun")
        before = after.chosen if after is not None and plan.sources is not None else None
        check_inputs(self._graph, plan, inputs, rows_before=0 if before is None else len(before))
        with self._running(), self._memory.while_stepping():
            made = self._begin(plan, inputs, choice=choice, before=before)
            # Copies: the next step of the same recording writes to the same memory.
            logits = made["logits"].clone() if choice.keeps_logits else None
            return TorchStep(made[_TOKENS].clone(), logits)


class DrawingTorchProgram(AsynchronousProgram):
    """A program on a device that draws tokens, too: one that computes in float64."""

    def draw(
        self, plan: StepPlan, draws: Draws, inputs: Inputs = NO_INPUTS, *, after: boundary.Step | None = None
    ) -> "TorchStep":
        return self._choose(plan, Drawn(draws), inputs, after)


class TorchStep:
    """A step that the device computes, and the copy of its tokens to the host."""

    def __init__(self, chosen: Tensor, logits: Tensor | None) -> None:
        self.chosen = chosen
        """int32 [R], on the device."""
        self._logits = logits
        self._copy = HostCopy(chosen)

    def tokens(self) -> NDArray[np.int32]:
        return self._copy.numpy()

    def logits(self, row: int) -> NDArray[np.float32]:
        assert self._logits is not None  # of a step that was drawn
        return HostCopy(self._logits[row]).numpy()


def _places(plan: StepPlan) -> NDArray[np.int32]:
    """The place of each token among the plan's own tokens, behind which are those of the step before: int32 [T].

    Example: sources [-1 -1 -1 1] -> [0 1 2 5].
    """
    own = np.arange(len(plan.tokens), dtype=np.int32)
    return own if plan.sources is None else np.where(plan.sources < 0, own, plan.sources + np.int32(len(own)))


def _word(array: NDArray[Any]) -> type[np.float32] | type[np.int32]:
    """The type of 4 bytes in which an input is copied to the device."""
    return np.float32 if array.dtype.kind == "f" else np.int32


@contextmanager
def _cpu_threads(count: int | None) -> Iterator[None]:
    """Set torch's number of CPU threads, which is one for the whole process, and restore it afterwards."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
