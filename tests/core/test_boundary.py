"""The boundary: declared capabilities, declared inputs, saved lanes; refused before any work is done."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mistral_portable.boundary import (
    Availability,
    Capabilities,
    ExecutorOptions,
    Program,
    check_supported,
    prepare,
)
from mistral_portable.boundary.shared import check_inputs, check_pages, notice_unpacked, read_slots, stored_dtype
from mistral_portable.cache import CacheManager, CacheSpec, Chunk, LayerGroup, Reads, StepPlan
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BackendError, CacheError, ClosedError, GraphError, InputError
from mistral_portable.graph import OPS, Graph, build, verify
from mistral_portable.graph.passes import (
    EMBEDDED_ROWS,
    INPUTS_EMBEDS,
    accept_embeddings,
    expose_hidden_states,
    fuse_linears,
    select_rows,
)
from mistral_portable.reference import BACKEND
from mistral_portable.testing import random_weights
from mistral_portable.weights import DenseTensor, Tensor

CONFIG = MistralConfig(
    vocab_size=11,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    sliding_window=(3, None),
)
GRAPH = verify(build(CONFIG))
WEIGHTS = random_weights(GRAPH, 0)
SPEC = CacheSpec.from_config(CONFIG, max_context=32, page_size=4, max_chunk=8, max_lanes=3)
ABLE = Capabilities(
    dtypes={"int8": ("float16", "q8_0"), "float32": ("float32",)}, options=frozenset({"threads"}), ops=frozenset(OPS)
)


class Recorder:
    """A backend that keeps the options that it was given."""

    name = "recorder"

    def __init__(self, capabilities: Capabilities) -> None:
        self.capabilities = capabilities
        self.options: ExecutorOptions | None = None

    def probe(self) -> Availability:
        return Availability(1, "keeps its options")

    def default_dtype(self, weights: Mapping[str, Tensor], options: ExecutorOptions) -> str:
        return "int8"

    def prepare(
        self, graph: Graph, weights: Mapping[str, Tensor], cache: CacheSpec, options: ExecutorOptions
    ) -> Program:
        self.options = options
        return BACKEND.prepare(graph, weights, cache, replace(options, dtype="float32"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float16"}, "dtype='float16': it computes in int8, float32; choose one"),
        ({"kv_cache": "int4"}, "kv_cache='int4': it keeps keys and values in float16, q8_0, float32; choose one"),
        ({"dtype": "float32", "kv_cache": "q8_0"}, "q8_0': it keeps keys and values in float32 beside dtype 'float32'"),
        ({"device": "cuda"}, "device='cuda': it has no such choice; leave the option out"),
        ({"quantize": "nf4"}, "quantize='nf4': it has no such choice"),
        ({"tensor_parallel": 2}, "tensor_parallel=2: it has no such choice"),
        ({"attention": "sdpa"}, "attention='sdpa': it has no such choice"),
    ],
)
def test_options_that_are_not_declared_are_refused(options: dict[str, Any], words: str) -> None:
    backend = Recorder(ABLE)
    with pytest.raises(BackendError) as caught:
        prepare(backend, GRAPH, WEIGHTS, SPEC, ExecutorOptions(**options))
    assert str(caught.value).startswith("backend 'recorder', ")
    assert words in str(caught.value)
    assert backend.options is None


def test_every_option_is_common_or_declared() -> None:
    """A new option is refused by a backend that has not heard of it."""
    bare = Capabilities(dtypes={"float32": ("float32",)})
    values: dict[str, Any] = {"dtype": "float32", "kv_cache": "float32", "progress": print}
    for name in ExecutorOptions.__dataclass_fields__:
        refusal = bare.refusal(ExecutorOptions(**{name: values.get(name, 2)}))
        assert (refusal is None) is (name in values)


def test_one_process_is_what_every_backend_has() -> None:
    assert Capabilities(dtypes={"float32": ("float32",)}).refusal(ExecutorOptions(tensor_parallel=1)) is None


def test_options_are_by_keyword() -> None:
    with pytest.raises(TypeError):
        ExecutorOptions("float32")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "dtype", "kv_cache"),
    [
        ({}, "int8", "float16"),
        ({"dtype": "float32"}, "float32", "float32"),
        ({"kv_cache": "q8_0", "threads": 2}, "int8", "q8_0"),
    ],
)
def test_a_backend_is_given_both_types(options: dict[str, Any], dtype: str, kv_cache: str) -> None:
    backend = Recorder(ABLE)
    prepare(backend, GRAPH, WEIGHTS, SPEC, ExecutorOptions(**options)).close()
    assert backend.options == replace(ExecutorOptions(**options), dtype=dtype, kv_cache=kv_cache)


def test_a_cache_type_that_the_default_dtype_lacks_is_refused() -> None:
    with pytest.raises(BackendError, match="beside dtype 'int8'"):
        prepare(Recorder(ABLE), GRAPH, WEIGHTS, SPEC, ExecutorOptions(kv_cache="float32"))


def test_ops_that_are_not_declared_are_refused() -> None:
    backend = Recorder(replace(ABLE, ops=ABLE.ops - {"attention"}))
    with pytest.raises(BackendError, match="'recorder' cannot run the op 'attention'"):
        check_supported(backend, GRAPH, ExecutorOptions())


def session(graph: Graph) -> tuple[Program, CacheManager]:
    return prepare(BACKEND, graph, WEIGHTS, SPEC, ExecutorOptions(dtype="float64")), CacheManager(SPEC)


def inputs(rows: np.ndarray[Any, Any], places: list[int]) -> dict[str, np.ndarray[Any, Any]]:
    return {INPUTS_EMBEDS: rows.astype(np.float32), EMBEDDED_ROWS: np.array(places, np.int32)}


TOKENS = [3, 1, 4, 1, 5]
TABLE = WEIGHTS["model.embed_tokens.weight"].numpy(np.float32)


@pytest.mark.parametrize(
    "change",
    [
        accept_embeddings,
        lambda graph: accept_embeddings(select_rows(graph, "logits")),
        lambda graph: select_rows(accept_embeddings(graph), "logits"),
        lambda graph: fuse_linears(accept_embeddings(expose_hidden_states(graph))),
        lambda graph: expose_hidden_states(accept_embeddings(graph)),
    ],
)
def test_given_rows_are_those_of_the_tokens_that_they_replace(change: Any) -> None:
    """No rows: the graph's own output. The rows of other tokens: the output of those tokens."""
    graph = verify(change(GRAPH))
    program, manager = session(graph)
    others = [3, 7, 4, 0, 5]
    results = []
    for tokens, given in ((TOKENS, []), (TOKENS, [1, 3]), (TOKENS, [3, 1]), (others, [])):
        plan = manager.plan([Chunk(manager.open(), tokens, range(5))])
        results.append(program.step(plan, inputs(TABLE[[others[place] for place in given]].reshape(-1, 32), given)))
        manager.close(0)
    own, replaced, in_another_order, expected = results
    plain, plans = session(verify(select_rows(GRAPH, "logits")))
    alone = plain.step(plans.plan([Chunk(plans.open(), TOKENS, range(5))]))["logits"]
    np.testing.assert_array_equal(own["logits"], alone)
    assert not np.array_equal(own["logits"], expected["logits"])
    for name, array in expected.items():
        np.testing.assert_array_equal(replaced[name], array)
        np.testing.assert_array_equal(in_another_order[name], array)
    if "hidden_states.0" in expected:
        np.testing.assert_array_equal(replaced["hidden_states.0"], TABLE[others])


def test_a_graph_without_the_plans_inputs_is_no_graph() -> None:
    with pytest.raises(GraphError, match="input 'positions' must have the shape"):
        verify(replace(GRAPH, inputs={"tokens": ("T",), "logit_rows": ("R",)}))


ROWS = np.zeros((2, 32), np.float32)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "the graph declares"),
        ({**inputs(ROWS, [0, 1]), "other": ROWS}, "the graph declares"),
        (inputs(ROWS[:, :31], [0, 1]), "shape"),
        (inputs(ROWS, [0]), "shape"),
        (inputs(ROWS, [0, 5]), "beyond the step's 5 tokens"),
        (inputs(ROWS, [-1, 0]), "beyond"),
        (inputs(ROWS, [2, 2]), "twice"),
        ({INPUTS_EMBEDS: ROWS, EMBEDDED_ROWS: np.array([0.5, 1], np.float32)}, "is float32: give integers"),
        ({INPUTS_EMBEDS: ROWS, EMBEDDED_ROWS: np.array([True, False])}, "is bool: give integers"),
        ({INPUTS_EMBEDS: ROWS.astype(np.int32), EMBEDDED_ROWS: np.array([0, 1])}, "is int32: give floats"),
        ({INPUTS_EMBEDS: ROWS, EMBEDDED_ROWS: [0, 1]}, "is a list: give a NumPy array"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(given: dict[str, Any], words: str) -> None:
    graph = accept_embeddings(GRAPH)
    program, manager = session(graph)
    plan = manager.plan([Chunk(manager.open(), TOKENS)])
    with pytest.raises(InputError, match=words):
        program.step(plan, given)
    with pytest.raises(InputError, match=words):
        check_inputs(graph, plan, given)


def test_tokens_of_a_step_before_need_such_a_step() -> None:
    """A chunk's source is that of its last token; `step` refuses any, and `submit` those beyond the rows before."""
    program, manager = session(GRAPH)
    plan = manager.plan([Chunk(manager.open(), [1, 2]), Chunk(manager.open(), [3, 0], source=1)])
    assert plan.sources is not None
    assert plan.sources.tolist() == [-1, -1, -1, 1]
    with pytest.raises(InputError, match="row 1 of the step before, and 0 are there: submit it after"):
        program.step(plan)
    with pytest.raises(InputError, match="and 1 are there"):
        check_inputs(GRAPH, plan, {}, rows_before=1)
    check_inputs(GRAPH, plan, {}, rows_before=2)
    assert manager.plan([Chunk(lane, [4]) for lane in manager.lanes]).sources is None


def test_a_plain_graph_takes_no_inputs() -> None:
    program, manager = session(GRAPH)
    with pytest.raises(InputError, match="declares"):
        program.step(manager.plan([Chunk(manager.open(), TOKENS)]), inputs(ROWS, [0, 1]))


def test_the_reference_says_that_it_is_closed() -> None:
    program, manager = session(GRAPH)
    plan = manager.plan([Chunk(manager.open(), TOKENS)])
    program.close()
    program.close()
    calls: list[Any] = [
        lambda: program.step(plan),
        lambda: program.read_pages(0, [0]),
        lambda: program.write_pages(0, [0], {}),
    ]
    for call in calls:
        with pytest.raises(ClosedError, match="closed: prepare it again"):
            call()


def state(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Three pages of layer 1, which is the second group's only layer."""
    arrays = {f"{kind}.1": np.zeros((3, 4, 1, 32), np.float32) for kind in ("keys", "values")}
    return {name: array for name, array in (arrays | dict(changes or {})).items() if array is not None}


PAGE = {"keys": ((4, 1, 32), "float32"), "values": ((4, 1, 32), "float32")}


def test_saved_pages_are_the_groups() -> None:
    check_pages(state(), SPEC, 1, 3, PAGE)
    with_scales = state({"keys.1.scales": np.zeros((3, 4), np.float16)})
    check_pages(with_scales, SPEC, 1, 3, {**PAGE, "keys.scales": ((4,), "float16")}, {"keys.scales": "scales"})


@pytest.mark.parametrize(
    "broken",
    [
        {},
        state({"keys.1": None}),
        state({"keys.0": np.zeros((3, 4, 1, 32), np.float32)}),
        state({"keys.1": np.zeros((3, 4, 1, 31), np.float32)}),
        state({"keys.1": np.zeros((3, 4, 1, 32), np.float16)}),
        state({"keys.1": np.zeros((2, 4, 1, 32), np.float32)}),
        state({"values.1": np.zeros(4, np.float32)}),
        state({"values.1": np.float32(1)}),
    ],
)
def test_saved_pages_of_other_models_are_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(CacheError, match="the saved lane"):
        check_pages(broken, SPEC, 1, 3, PAGE)


@pytest.mark.parametrize(
    ("group", "pages", "slots"),
    [(LayerGroup(9, (0,), 4, False), [5, 2], [22, 23, 8, 9]), (LayerGroup(9, (0,), 5, True), [1], [7, 8, 9, 5])],
)
def test_read_slots_docstring_example(group: LayerGroup, pages: list[int], slots: list[int]) -> None:
    def integers(*values: Any) -> Any:
        return np.array(values, np.int32)

    reads = Reads(integers(slots[-1]), integers([0] * len(pages), pages), integers(0, 2), integers(), 6)
    plan = StepPlan(integers(7, 7), integers(0, 5), integers(1, 0), integers(0, 1, 2), integers(), (reads,))
    assert read_slots(plan, replace(SPEC, groups=(group,)), 0, 1).tolist() == slots


def test_stored_dtype_is_that_of_most_bytes() -> None:
    def tensor(dtype: str, count: int) -> DenseTensor:
        kind = np.uint16 if dtype == "bfloat16" else np.dtype(dtype)
        return DenseTensor(dtype, dtype, np.zeros((count, 4), kind))

    assert stored_dtype([]) == "float32"
    assert stored_dtype([tensor("bfloat16", 9), tensor("float32", 4)]) == "bfloat16"
    assert stored_dtype([tensor("bfloat16", 4), tensor("float32", 9)]) == "float32"
    assert stored_dtype(random_weights(GRAPH, 0, "q8_0").values()) == "float16"


def test_unpacked_matrices_are_noticed_with_their_number() -> None:
    with pytest.warns(UserWarning, match=r"\d+ matrices \(\d+ in q8_0\) are unpacked to float32.*: no kernels"):
        notice_unpacked(GRAPH, random_weights(GRAPH, 0, "q8_0"), "float32", "no kernels")
