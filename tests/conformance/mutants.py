"""Wrong backends: each is the reference with one mistake that a real backend could make."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from conformance.invariant import VARIANT
from conformance.rounded import WRONG
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray

from mistral_portable.boundary import Availability, Capabilities, ExecutorOptions, LaneState, Precision, Program
from mistral_portable.boundary.program import NO_INPUTS, Inputs
from mistral_portable.cache import CacheSpec, LayerGroup, Reads, StepPlan
from mistral_portable.config import QueryScale
from mistral_portable.graph import Graph, Node, Parameter, Rotation
from mistral_portable.graph.adapters import ADAPTERS, is_added
from mistral_portable.reference import BACKEND
from mistral_portable.reference.program import ReferenceProgram
from mistral_portable.testing.naive import NaiveProgram
from mistral_portable.weights import QuantTensor, Tensor
from mistral_portable.weights.quantize_on_read import QUANTIZABLE

__all__ = ["MUTANTS", "Mutant", "hanging", "right", "short_ring"]

Make = Callable[[Graph, Mapping[str, Tensor], CacheSpec], Program]
Array = NDArray[Any]
Q4_0 = GGMLQuantizationType.Q4_0


@dataclass(frozen=True)
class Mutant:
    """A backend whose programs are made by `make`, with the reference's pages or, if page_size is None, rings."""

    name: str
    make: Make
    page_size: int | None = BACKEND.capabilities.page_size

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(dtypes={"float32": ("float32",)}, page_size=self.page_size)

    def probe(self) -> Availability:
        return Availability(1, "a wrong backend")

    def default_dtype(self, weights: Mapping[str, Tensor], options: ExecutorOptions) -> str:
        return "float32"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        return self.make(graph, weights, cache)


def _attributes(op: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Make:
    """Mistakes in an op's attributes: `change` maps the right ones to those that are wrong."""

    def make(graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec) -> Program:
        nodes = tuple(
            replace(node, attributes={**node.attributes, **change(dict(node.attributes))}) if node.op == op else node
            for node in graph.nodes
        )
        return ReferenceProgram(replace(graph, nodes=nodes), weights, cache, "float32")

    return make


def _plan(change: Callable[[StepPlan, CacheSpec], StepPlan]) -> Make:
    """Mistakes in reading the plan: `change` maps the right plan to what the backend makes of it."""

    class Misread(ReferenceProgram):
        def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
            return super().step(change(plan, self._cache_spec), inputs)

    return _program(Misread)


def _inputs(op: str, change: Callable[[list[Any], StepPlan], list[Any]]) -> Make:
    """Mistakes in an op's inputs."""

    class Misled(ReferenceProgram):
        def _run(self, node: Node, inputs: list[Any], plan: StepPlan) -> Array:
            return super()._run(node, change(inputs, plan) if node.op == op else inputs, plan)

    return _program(Misled)


def _given(change: Callable[[Array], Array]) -> Make:
    """Mistakes in the input `adapters`."""

    class Misgiven(ReferenceProgram):
        def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
            return super().step(plan, {**inputs, ADAPTERS: change(inputs[ADAPTERS]).astype(np.float32)})

    return _program(Misgiven)


def _blocks_of_adapters(graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec) -> Program:
    floats = {name: tensor for name, tensor in weights.items() if is_added(name) and tensor.shape[-1] % 32 == 0}
    packed = {
        name: QuantTensor(name, tensor.shape, Q4_0, quantize(tensor.numpy(), Q4_0)) for name, tensor in floats.items()
    }
    return ReferenceProgram(graph, {**weights, **packed}, cache, "float32")


def _outputs(change: Callable[[Array], Array]) -> Make:
    """Mistakes in what a step returns."""

    class Miswritten(ReferenceProgram):
        def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
            return {name: change(array) for name, array in super().step(plan, inputs).items()}

    return _program(Miswritten)


def _program(kind: type[ReferenceProgram]) -> Make:
    return lambda graph, weights, cache: kind(graph, weights, cache, "float32")


def _window(step: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda attributes: {"window": attributes["window"] and max(1, attributes["window"] + step)}


def _layer_0_window(graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec) -> Program:
    window = next((node.attributes["window"] for node in graph.nodes if node.op == "attention"), None)
    return _attributes("attention", lambda attributes: {"window": window})(graph, weights, cache)


def _reads(change: Callable[[Reads, LayerGroup, StepPlan], dict[str, Any]]) -> Make:
    """Mistakes in reading a layer group's part of the plan: `change` gives the fields that are wrong."""

    def misread(plan: StepPlan, spec: CacheSpec) -> StepPlan:
        groups = zip(plan.groups, spec.groups, strict=True)
        return plan._replace(groups=tuple(reads._replace(**change(reads, group, plan)) for reads, group in groups))

    return _plan(misread)


def _next_slot(reads: Reads, group: LayerGroup, plan: StepPlan) -> dict[str, Any]:
    return {"slot_mapping": (reads.slot_mapping + 1) % (reads.page_count * group.page_size)}


def _pages_of_the_first(reads: Reads, group: LayerGroup, plan: StepPlan) -> dict[str, Any]:
    return {"pages": np.repeat(reads.pages[:1], len(reads.pages), axis=0)}


def _pages_by_lane(reads: Reads, group: LayerGroup, plan: StepPlan) -> dict[str, Any]:
    return {"pages": reads.pages[np.argsort(plan.lanes)]}


def _pages_from_0(reads: Reads, group: LayerGroup, plan: StepPlan) -> dict[str, Any]:
    """Column p // page_size for position p, also where the first page that is read is not the text's first."""
    columns = reads.first[:, None] // group.page_size + np.arange(reads.pages.shape[1])
    return {"pages": np.take_along_axis(reads.pages, np.minimum(columns, reads.pages.shape[1] - 1), axis=1)}


def _late_pages_reversed(reads: Reads, group: LayerGroup, plan: StepPlan) -> dict[str, Any]:
    return {"pages": np.concatenate([reads.pages[:, :3], reads.pages[:, :2:-1]], axis=1)}


def _short_ring(reads: Reads, group: LayerGroup, plan: StepPlan) -> dict[str, Any]:
    """One slot too few: the last token of a full chunk overwrites a key that its first token still sees."""
    pages = reads.slot_mapping // group.page_size
    return {"slot_mapping": pages * group.page_size + plan.positions % max(1, group.page_size - 1)}


def _at_the_end(plan: StepPlan, spec: CacheSpec) -> StepPlan:
    """All queries of a sequence at the position of its last one."""
    return plan._replace(positions=np.repeat(plan.positions[plan.query_starts[1:] - 1], np.diff(plan.query_starts)))


def _restarted(inputs: list[Any], plan: StepPlan) -> list[Any]:
    return [inputs[0], np.concatenate([np.arange(count) for count in np.diff(plan.query_starts)])]


def _first_rows(inputs: list[Any], plan: StepPlan) -> list[Any]:
    return [inputs[0], np.arange(len(plan.logit_rows))]


def _rows_within(inputs: list[Any], plan: StepPlan) -> list[Any]:
    starts = plan.query_starts[np.searchsorted(plan.query_starts, plan.logit_rows, side="right") - 1]
    return [inputs[0], plan.logit_rows - starts]


def _columns_before(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"start": attributes["start"] - 1, "stop": attributes["stop"] - 1}


def _rotation(change: Callable[[Rotation], Rotation]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda attributes: {"rotation": change(attributes["rotation"])}


def _theta_1e4(rotation: Rotation) -> Rotation:
    half = len(rotation.frequencies)
    return replace(rotation, frequencies=tuple(1e4 ** (-j / half) for j in range(half)))


def _later(rotation: Rotation) -> Rotation:
    own = rotation.query_scale
    return replace(rotation, query_scale=own and QueryScale(own.beta, own.original_max_position_embeddings + 1))


def _keys_grow(graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec) -> Program:
    rotations = [node.attributes["rotation"] for node in graph.nodes if node.op == "rope"]  # the first is of queries
    return _attributes("rope", lambda attributes: {"rotation": rotations[0]})(graph, weights, cache)


def _first_places(inputs: list[Any], plan: StepPlan) -> list[Any]:
    x, given, places = inputs
    return [x, given, np.arange(len(places))]


def _no_places(inputs: list[Any], plan: StepPlan) -> list[Any]:
    x, given, places = inputs
    return [x, given[:0], places[:0]]


def _first_scores(inputs: list[Any], plan: StepPlan) -> list[Any]:
    return [inputs[0], np.broadcast_to(inputs[1][:1], inputs[1].shape), *inputs[2:]]


def _scores_of_none(inputs: list[Any], plan: StepPlan) -> list[Any]:
    return [inputs[0], inputs[1] * 0, *inputs[2:]]


class _SoftmaxOfAll(ReferenceProgram):
    """Weighs the chosen experts by their share among all."""

    def _moe(self, node: Node, inputs: list[Any]) -> Array:
        scores = inputs[1]
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        top_k: Any = node.attributes["top_k"]
        share: Array = np.sort(exponentials, axis=1)[:, -top_k:].sum(axis=1) / exponentials.sum(axis=1)
        out: Array = super()._moe(node, inputs) * share[:, None]
        return out


class _Interleaved(ReferenceProgram):
    """RoPE on the pairs (x_2j, x_2j+1), as in the original checkpoints."""

    def _run(self, node: Node, inputs: list[Any], plan: StepPlan) -> Array:
        if node.op != "rope":
            return super()._run(node, inputs, plan)
        rotation: Any = node.attributes["rotation"]
        d = rotation.head_dim
        order = np.concatenate([np.arange(0, d, 2), np.arange(1, d, 2)])
        columns = np.concatenate([start + order for start in range(0, inputs[0].shape[1], d)])
        turned = super()._run(node, [inputs[0][:, columns], inputs[1]], plan)
        return turned[:, np.argsort(columns)]


class _HeadModulo(ReferenceProgram):
    """Query head h reads key/value head h % kv_heads instead of h // group."""

    def _run(self, node: Node, inputs: list[Any], plan: StepPlan) -> Array:
        if node.op != "attention":
            return super()._run(node, inputs, plan)
        a: Any = node.attributes
        heads = np.arange(a["num_attention_heads"]).reshape(-1, a["num_key_value_heads"]).T.ravel()
        columns = (heads[:, None] * a["head_dim"] + np.arange(a["head_dim"])).ravel()
        return super()._run(node, [inputs[0][:, columns], *inputs[1:]], plan)[:, np.argsort(columns)]


class _NoRollback(ReferenceProgram):
    """Counts the tokens of a lane itself, so that what was taken back counts."""

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
        self._counts: dict[int, int] = getattr(self, "_counts", {})
        self._counted = plan.positions.copy()
        for tokens, lane in zip(plan.spans, plan.lanes.tolist(), strict=True):
            self._counted[tokens] += max(0, self._counts.get(lane, 0) - int(plan.positions[tokens][0]))
            self._counts[lane] = int(self._counted[tokens][-1]) + 1
        return super().step(plan, inputs)

    def _run(self, node: Node, inputs: list[Any], plan: StepPlan) -> Array:
        return super()._run(node, [inputs[0], self._counted] if node.op == "rope" else inputs, plan)


class _NoGrowth(ReferenceProgram):
    """A pool that grows starts empty (zeros, so that it is not noticed as NaN)."""

    def _grow(self, group: int, count: int) -> None:
        own = self._cache_spec.groups[group]
        for store in (self._keys, self._values):
            for layer in own.layers:
                if len(store[layer]) < count * own.page_size:
                    store[layer] = np.zeros((count * own.page_size, *store[layer].shape[1:]), store[layer].dtype)


class _SharedPages(ReferenceProgram):
    """Returns the arrays themselves, which the pages' next sequence overwrites, where they lie side by side."""

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        begin = min(pages, default=0)
        if list(pages) != list(range(begin, begin + len(pages))):
            return super().read_pages(group, pages, blank)
        state = {name: self._by_page(pool, group)[begin : begin + len(pages)] for name, pool in self._pools(group)}
        for array in state.values():
            array[-1:, list(blank)] = 0
        return state


class _NothingBlank(ReferenceProgram):
    """Returns pages as they are, with what an earlier sequence left in them."""

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        return super().read_pages(group, pages)


class _AllPagesBlank(ReferenceProgram):
    """Empties the slots in each of the pages."""

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        state = super().read_pages(group, pages)
        for array in state.values():
            array[:, list(blank)] = 0
        return state


class _BlankFromTheEnd(ReferenceProgram):
    """Counts the slots that are to be blank from the page's end."""

    def read_pages(self, group: int, pages: Sequence[int], blank: Sequence[int] = ()) -> LaneState:
        last = self._cache_spec.groups[group].page_size - 1
        return super().read_pages(group, pages, [last - slot for slot in blank])


class _SortedPages(ReferenceProgram):
    """Takes pages in ascending order, whatever order they are given in."""

    def write_pages(self, group: int, pages: Sequence[int], state: LaneState) -> None:
        super().write_pages(group, sorted(pages), state)


class _ReusedBuffer(ReferenceProgram):
    """Returns one buffer at every step, and leaves its last row as it finds it."""

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
        outputs = super().step(plan, inputs)
        self._buffers: dict[str, Array] = getattr(self, "_buffers", {})
        for name, array in outputs.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != array.shape:
                self._buffers[name] = array
            else:
                buffer[:-1] = array[:-1]
        return dict(self._buffers)


class _OneBuffer(ReferenceProgram):
    """Returns one buffer at every step, filled anew."""

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
        self._buffers: dict[tuple[str, tuple[int, ...]], Array] = getattr(self, "_buffers", {})
        outputs = super().step(plan, inputs)
        for name, array in outputs.items():
            buffer = self._buffers.setdefault((name, array.shape), array)
            buffer[...] = array
            outputs[name] = buffer
        return outputs


class _KeptPlan(ReferenceProgram):
    """Counts on from the positions of the last plan, which it keeps. Right for one sequence, if nobody writes there."""

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
        last: StepPlan | None = getattr(self, "_last", None)
        self._last = plan
        if last is None:
            return super().step(plan, inputs)
        counted = last.positions[-1] + 1 + np.arange(len(plan.positions), dtype=np.int32)
        return super().step(plan._replace(positions=counted), inputs)


class _NoLock(ReferenceProgram):
    """Puts the plan of a step where another thread may put its own."""

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
        self._shared = plan
        time.sleep(0.001)
        return super().step(self._shared, inputs)


class _Hanging(ReferenceProgram):
    """Waits for a lock that it holds."""

    def step(self, plan: StepPlan, inputs: Inputs = NO_INPUTS) -> dict[str, Array]:
        with self._turn:
            return super().step(plan, inputs)


class _OpenAlways(ReferenceProgram):
    def close(self) -> None:
        pass


class _ClosedOnce(ReferenceProgram):
    """Lets nobody close it again."""

    def close(self) -> None:
        with self._in_turn():
            pass
        super().close()


class _Tied(ReferenceProgram):
    """Multiplies by the embedding table where the model has its own LM head."""

    def _parameter(self, name: str) -> Array:
        return super()._parameter("model.embed_tokens.weight" if name == "lm_head.weight" else name)


class _Halves(ReferenceProgram):
    """Takes the two halves of a packed block (of 32 numbers) for one another."""

    def _read(self, parameter: Parameter) -> Array:
        array = super()._read(parameter)
        if self._weights[parameter.name].dtype not in QUANTIZABLE:
            return array
        return array.reshape(-1, 2, 16)[:, ::-1].reshape(array.shape)


hanging = _program(_Hanging)
"""Makes programs whose steps do not end."""

right = _program(ReferenceProgram)
"""Makes programs without a mistake."""

short_ring = _reads(_short_ring)
"""Makes programs whose rings are one slot too short."""


def _nan_row(array: Array) -> Array:
    array[-1:, 0] = np.nan
    return array


def _float16(graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec) -> Program:
    return NaiveProgram(graph, weights, cache, Precision("float16"), seed=7)


MUTANTS: dict[str, tuple[str, Make]] = {
    "token ids one off": ("op.embedding", _inputs("embedding", lambda inputs, plan: [inputs[0] - 1, inputs[1]])),
    "no eps": ("op.rms_norm", _attributes("rms_norm", lambda attributes: {"eps": 1e-30})),
    "float16 that says float32": ("op.linear", _float16),
    "no bias": ("op.linear+bias", _inputs("linear", lambda inputs, plan: inputs[:2])),
    "RoPE interleaved": ("op.rope", _program(_Interleaved)),
    "positions restart at each chunk": ("op.rope", _inputs("rope", _restarted)),
    "theta 10000 always": ("op.rope", _attributes("rope", _rotation(_theta_1e4))),
    "no attention factor of YaRN": ("op.rope", _attributes("rope", _rotation(lambda r: replace(r, scale=1.0)))),
    "queries that do not grow": ("op.rope", _attributes("rope", _rotation(lambda r: replace(r, query_scale=None)))),
    "queries that grow one token late": ("op.rope", _attributes("rope", _rotation(_later))),
    "keys grow as queries do": ("one_shot", _keys_grow),
    "one expert too many": ("op.moe", _attributes("moe", lambda a: {"top_k": a["top_k"] + 1})),
    "gate and up of experts swapped": (
        "op.moe",
        _inputs("moe", lambda inputs, plan: [*inputs[:2], *inputs[3:1:-1], inputs[4]]),
    ),
    "softmax over all experts": ("op.moe", _program(_SoftmaxOfAll)),
    "the experts of the first token for all": ("op.moe", _inputs("moe", _first_scores)),
    "expert 0 always": ("one_shot", _inputs("moe", _scores_of_none)),
    "window one too wide": ("op.attention", _attributes("attention", _window(1))),
    "window one too narrow": ("op.attention", _attributes("attention", _window(-1))),
    "no scale": ("op.attention", _attributes("attention", lambda attributes: {"scale": 1.0})),
    "key/value head h % kv_heads": ("op.attention", _program(_HeadModulo)),
    "not causal within a chunk": ("op.attention", _plan(_at_the_end)),
    "weights one column off": ("op.attention_weights", _outputs(lambda array: np.roll(array, 1, axis=-1))),
    "gate and up swapped": ("op.silu_mul", _inputs("silu_mul", lambda inputs, plan: inputs[::-1])),
    "a + a": ("op.add", _inputs("add", lambda inputs, plan: [inputs[0], inputs[0]])),
    "x times itself": ("op.weigh", _inputs("weigh", lambda inputs, plan: [inputs[0], inputs[0]])),
    "the first row's factor for all": (
        "op.weigh+rows",
        _inputs("weigh", lambda inputs, plan: [inputs[0], np.broadcast_to(inputs[1][:1], inputs[1].shape)]),
    ),
    "columns one off": ("op.take_columns", _attributes("take_columns", _columns_before)),
    "given rows come first": ("op.replace_rows", _inputs("replace_rows", _first_places)),
    "first rows for requested rows": ("op.take_rows", _inputs("take_rows", _first_rows)),
    "window of layer 0 in all layers": ("one_shot", _layer_0_window),
    "output head tied always": ("one_shot", _program(_Tied)),
    "slot off by one": ("one_shot", _reads(_next_slot)),
    "NaN in one row": ("one_shot", _outputs(_nan_row)),
    "one column too few": ("one_shot", _outputs(lambda array: array[:, :-1].copy())),
    "rows twice": ("one_shot", _outputs(lambda array: np.concatenate([array, array]))),
    "float64 output": ("one_shot", _outputs(lambda array: array.astype(np.float64))),
    "pages counted from the text's first": ("pages", _reads(_pages_from_0)),
    "grown pools start empty": ("chunked", _program(_NoGrowth)),
    "layers share a cache": ("token_by_token", _attributes("attention", lambda attributes: {"layer": 0})),
    "last row left as it was": ("token_by_token", _program(_ReusedBuffer)),
    "all sequences read the first one's pages": ("ragged", _reads(_pages_of_the_first)),
    "pages in order of the lanes": ("ragged", _reads(_pages_by_lane)),
    "rollback not honoured": ("rollback", _program(_NoRollback)),
    "rows counted within a sequence": ("rows", _inputs("take_rows", _rows_within)),
    "adapters not read": ("adapters", _given(lambda weights: np.zeros_like(weights))),
    "adapters of the step's first token": ("adapters", _given(lambda weights: np.tile(weights[:1], (len(weights), 1)))),
    "adapters in blocks as the weights": ("adapters.q4_0", _blocks_of_adapters),
    "inputs_embeds not read": ("inputs_embeds", _inputs("replace_rows", _no_places)),
    "steps after it is closed": ("closed", _program(_OpenAlways)),
    "closes once only": ("closed", _program(_ClosedOnce)),
    "pages are written in ascending order": ("closed", _program(_SortedPages)),
    "blank slots are as they were": ("closed", _program(_NothingBlank)),
    "slots of all pages are blank": ("closed", _program(_AllPagesBlank)),
    "blank slots counted from the end": ("swapped", _program(_BlankFromTheEnd)),
    "threads share a plan": ("threads", _program(_NoLock)),
    "one buffer for the outputs of all steps": ("own_outputs", _program(_OneBuffer)),
    "the plan is kept": ("own_outputs", _program(_KeptPlan)),
    "pages are not copied": ("swapped", _reads(lambda reads, group, plan: {"copies": reads.copies[:0]})),
    "read_pages copies nothing": ("swapped", _program(_SharedPages)),
    "pages from the fourth on in reverse order": ("pages", _reads(_late_pages_reversed)),
    **WRONG,
    **VARIANT,
    **{f"{name} halves swapped": (f"weights.{name}", _program(_Halves)) for name in QUANTIZABLE},
}
"""Name -> the rung of the ladder that must catch it, and how it is made."""
