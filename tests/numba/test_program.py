"""The Numba executor's programs, through the protocol: whose arrays are whose, threads, memory, saved lanes, graphs."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from mistral_portable_numba import BACKEND
from mistral_portable_numba.program import SHRINK_AFTER
from numpy.typing import NDArray

from mistral_portable.boundary import ExecutorOptions, LaneState, SavedLane, load_lane, prepare, save_lane
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BackendError, CacheError, CapacityError, ClosedError, InputError
from mistral_portable.graph import Graph, Node, Parameter, build, verify
from mistral_portable.graph.passes import (
    EMBEDDED_ROWS,
    INPUTS_EMBEDS,
    accept_embeddings,
    drop_dead_nodes,
    expose_attention_weights,
    expose_hidden_states,
    fuse_linears,
    select_rows,
)
from mistral_portable.testing import Case, Feed, Scenario, check, random_weights
from mistral_portable.weights import DenseTensor, QuantTensor, Tensor

WINDOW = 20
CONFIG = MistralConfig(
    vocab_size=40,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    sliding_window=WINDOW,
)
KV_CACHES = ("float32", "float16", "q8_0")


class Session:
    """A program with its cache manager."""

    def __init__(
        self,
        config: MistralConfig = CONFIG,
        graph: Graph | None = None,
        *,
        max_context: int = 400,
        max_chunk: int = 48,
        quantization: str | None = "q4_0",
        **options: Any,
    ) -> None:
        self.spec = CacheSpec.from_config(
            config,
            max_context=max_context,
            page_size=BACKEND.capabilities.page_size,
            max_chunk=max_chunk,
            max_lanes=4,
        )
        self.manager = CacheManager(self.spec)
        weights = random_weights(build(config), 0, quantization)
        graph = graph or select_rows(build(config), "logits")
        self.program = prepare(BACKEND, graph, weights, self.spec, ExecutorOptions(**{"threads": 2} | options))

    def feed(self, lane: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """The logits behind each token, of a step for each chunk."""
        return np.concatenate(
            [
                self.program.step(self.manager.plan([Chunk(lane, chunk, range(len(chunk)))]))["logits"]
                for chunk in pieces(tokens, self.spec.max_chunk)
            ]
        )

    def begin(self, tokens: Sequence[int]) -> tuple[int, NDArray[np.float32]]:
        """A lane with these tokens."""
        lane = self.manager.open()
        return lane, self.feed(lane, tokens)

    def save(self, lane: int) -> SavedLane:
        return save_lane(self.program, self.manager, lane)

    def load(self, saved: SavedLane) -> int:
        return load_lane(self.program, self.manager, saved)


def pieces(tokens: Sequence[int], size: int) -> list[Sequence[int]]:
    return [tokens[begin : begin + size] for begin in range(0, len(tokens), size)]


def text(length: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, CONFIG.vocab_size, length)]


# --- arrays and steps ----------------------------------------------------------------------------------------------


def test_outputs_are_the_callers_own() -> None:
    session, other = Session(), Session()
    lane, first = session.begin(text(7))
    kept = first.copy()
    expected = other.feed(other.begin(text(7))[0], text(9, 1))
    out = session.program.step(session.manager.plan([Chunk(lane, text(9, 1), range(9))]))["logits"]
    assert out.flags.owndata
    assert out.flags.writeable
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(first, kept)
    out.fill(np.nan)
    assert np.isfinite(session.feed(lane, [1])).all()


def test_no_rows_requested() -> None:
    session = Session()
    out = session.program.step(session.manager.plan([Chunk(session.manager.open(), [1, 2, 3])]))
    assert out["logits"].shape == (0, CONFIG.vocab_size)


def test_a_closed_program_says_so() -> None:
    session = Session()
    plan = session.manager.plan([Chunk(session.manager.open(), [1, 2], [1])])
    session.program.step(plan)
    assert session.program.cache_bytes > 0
    session.program.close()
    session.program.close()
    assert session.program.cache_bytes == 0
    with pytest.raises(ClosedError, match="closed: prepare it again"):
        session.program.step(plan)


def test_results_do_not_depend_on_threads_nor_on_larger_steps_before() -> None:
    alone = [Session(threads=1).begin(text(count))[1] for count in (1, 3, 40)]
    for threads in (1, 2, 3, 7):
        session = Session(threads=threads)
        for _ in range(2):
            for count, expected in zip((1, 3, 40), alone, strict=True):
                lane, out = session.begin(text(count))
                np.testing.assert_array_equal(out, expected)
                session.manager.close(lane)


def test_programs_and_callers_side_by_side_give_what_they_give_alone() -> None:
    def run(session: Session, lane: int, out: list[NDArray[np.float32]], turn: threading.Lock) -> None:
        for step in range(12):
            with turn:  # the manager is not made for several threads; the program is
                plan = session.manager.plan([Chunk(lane, text(1 + 5 * step % 13, lane + step), [0])])
            out.append(session.program.step(plan)["logits"])

    def results(sessions: list[Session], together: bool) -> list[list[NDArray[np.float32]]]:
        outs: list[list[NDArray[np.float32]]] = []
        workers = []
        for session in sessions:
            turn = threading.Lock()
            for lane in [session.manager.open() for _ in range(3)]:
                outs.append([])
                workers.append(threading.Thread(target=run, args=(session, lane, outs[-1], turn)))
        for worker in workers:
            worker.start()
            if not together:
                worker.join()
        for worker in workers:
            worker.join()
        return outs

    alone = results([Session() for _ in range(2)], together=False)
    beside = results([Session() for _ in range(2)], together=True)
    assert [len(out) for out in beside] == [12] * 6
    for expected, out in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(np.concatenate(out), np.concatenate(expected))


def fork() -> None:
    """Step in a child and in its parent: both say the same. Run in a process of its own."""
    session = Session()
    lane, _ = session.begin(text(30))
    child = os.fork()
    print(session.feed(lane, text(5, 1)).tobytes().hex(), flush=True)
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_can_step() -> None:
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    session = Session()
    expected = session.feed(session.begin(text(30))[0], text(5, 1))
    assert done.stdout.split() == [expected.tobytes().hex()] * 2


def fork_during_steps() -> None:
    """Fork while another thread steps; the children go on with a lane of their own. Run in a process of its own."""
    session, busy = Session(), True

    def keep_stepping() -> None:
        lane, _ = session.begin(text(1))
        while busy:
            session.feed(lane, [5])
            session.manager.rollback(lane, 1)

    other = session.begin(text(30))[0]
    thread = threading.Thread(target=keep_stepping)
    thread.start()
    for _ in range(10):
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # ends a child that hangs
            session.feed(other, text(5, 1))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    busy = False
    thread.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_forked_during_a_step_can_step() -> None:
    done = subprocess.run([sys.executable, __file__, "busy"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def scarce(failing: int) -> Any:
    """NumPy's `zeros` on a machine that has memory for this many arrays."""
    zeros, calls = np.zeros, 0

    def scarce(*arguments: Any, **options: Any) -> NDArray[Any]:
        nonlocal calls
        calls += 1
        if calls > failing:
            raise MemoryError
        return zeros(*arguments, **options)

    return scarce


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_no_memory_for_saved_pages_leaves_all_as_they_were(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    session, other = Session(), Session()
    lane, _ = session.begin(text(30))
    expected = other.feed(other.begin(text(30))[0], text(5, 1))
    state, size = session.program.read_pages(0, [0]), session.program.cache_bytes
    with monkeypatch.context() as patch:
        patch.setattr(np, "zeros", scarce(failing))
        with pytest.raises(CapacityError, match="no memory is left for a saved lane"):
            session.program.write_pages(0, [1], state)
    assert session.program.cache_bytes == size
    np.testing.assert_array_equal(session.feed(lane, text(5, 1)), expected)


def test_sizes_may_be_read_during_steps() -> None:
    session, failures, done = Session(), list[BaseException](), threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                assert session.program.cache_bytes + session.program.scratch_bytes > 0
            except BaseException as error:
                failures.append(error)
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=read)
    try:
        thread.start()
        session.begin(text(9))
        state = session.program.read_pages(0, [0])
        for page in range(100):  # pools grow
            session.program.write_pages(0, [page], state)
            session.manager.close(session.begin(text(9))[0])
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not failures


@pytest.mark.parametrize("failing", range(8))
def test_no_memory_for_more_pages_loses_nothing(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layer groups, whose pools grow both or neither: eight arrays."""
    config = replace(CONFIG, num_hidden_layers=4).with_window((None, WINDOW))
    session, other = Session(config), Session(config)
    lane, expected = session.begin(text(60))[0], other.feed(other.begin(text(60))[0], text(20, 1))
    plan, size = session.manager.plan([Chunk(lane, text(20, 1), range(20))]), session.program.cache_bytes
    with monkeypatch.context() as patch:
        patch.setattr(np, "zeros", scarce(failing))
        with pytest.raises(CapacityError, match="a step of 20 tokens"):
            session.program.step(plan)
    assert session.program.cache_bytes == size
    np.testing.assert_array_equal(session.program.step(plan)["logits"], expected)


def test_a_closed_program_neither_reads_nor_writes_pages() -> None:
    session = Session()
    session.begin(text(3))
    state = session.program.read_pages(0, [0])
    session.program.close()
    with pytest.raises(ClosedError, match="closed"):
        session.program.read_pages(0, [0])
    with pytest.raises(ClosedError, match="closed"):
        session.program.write_pages(0, [0], state)
    assert session.program.cache_bytes == 0


# --- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype='bfloat16': it computes in int8, float32"),
        ({"dtype": "int4"}, "dtype='int4': it computes in int8, float32"),
        ({"kv_cache": "bfloat16"}, "kv_cache='bfloat16': it keeps keys and values in float16, q8_0, float32"),
        ({"device": "cuda"}, "device='cuda': it has no such choice"),
    ],
)
def test_what_it_cannot_do_is_an_error_of_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message) as caught:
        Session(**options)
    assert "\n" not in str(caught.value)


def test_an_op_that_it_does_not_know() -> None:
    graph = build(CONFIG, head="none")
    graph = replace(graph, nodes=(*graph.nodes, Node("more", "convolve", ("norm",), {})))
    with pytest.raises(BackendError, match="cannot run the op 'convolve'"):
        Session(graph=graph)


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        ({}, ("float32", "int8", "float16")),
        ({"dtype": "int8", "kv_cache": "q8_0"}, ("float32", "int8", "q8_0")),
        ({"dtype": "float32"}, ("float32", None, "float32")),
        ({"dtype": "float32", "kv_cache": "float16"}, ("float32", None, "float16")),
    ],
)
def test_precision(options: dict[str, Any], precision: tuple[str | None, ...]) -> None:
    found = Session(**options).program.precision
    assert (found.dtype, found.quantized_linear, found.kv_cache) == precision


def test_progress_of_the_weights() -> None:
    calls: list[tuple[str, int, int]] = []
    Session(progress=lambda *call: calls.append(call))
    done = [call[1] for call in calls if call[0] == "weights"]
    assert done == sorted(done)
    assert done[-1] == calls[-1][2] > 0


# --- memory --------------------------------------------------------------------------------------------------------


def page_bytes(kv_cache: str, head_dim: int) -> int:
    """Bytes of a layer's page by `layouts.py`: 64 slots, values padded to a multiple of 32 numbers."""
    width = -(-head_dim // 32) * 32
    itemsize = {"float32": 4, "float16": 2, "q8_0": 1}[kv_cache]
    scales = 2 * width // 32 * 2 if kv_cache == "q8_0" else 0
    return CONFIG.num_key_value_heads * 64 * ((head_dim + width) * itemsize + scales)


@pytest.mark.parametrize("kv_cache", KV_CACHES)
@pytest.mark.parametrize("head_dim", [16, 40])
def test_a_windowed_lane_takes_the_same_bytes_however_long_the_text(kv_cache: str, head_dim: int) -> None:
    session = Session(replace(CONFIG, head_dim=head_dim), kv_cache=kv_cache, max_chunk=60, max_context=4000)
    assert session.program.cache_bytes == 0
    lane, _ = session.begin(text(60))
    assert session.program.cache_bytes == 2 * page_bytes(kv_cache, head_dim)
    session.feed(lane, text(1000))  # chunks begin everywhere in a page
    full = session.program.cache_bytes
    assert full <= 2 * page_bytes(kv_cache, head_dim) * session.spec.lane_pages(0)
    session.feed(lane, text(2000))
    assert session.program.cache_bytes == full


def test_pools_grow_with_the_text_by_a_quarter_at_least() -> None:
    session = Session(CONFIG.with_window((None, WINDOW)), max_chunk=64, max_context=4096)
    lane, page, sizes = session.manager.open(), page_bytes("float16", 16), [0]
    for pages in range(1, 65):
        session.feed(lane, text(64, pages))
        windowed = session.manager.pages_in_use(1)
        assert pages + windowed <= session.program.cache_bytes / page <= 1.25 * (pages + windowed + 2)
        sizes += [session.program.cache_bytes] if session.program.cache_bytes > sizes[-1] else []
    assert len(sizes) <= 20


def test_scratch_shrinks_when_large_steps_are_long_past() -> None:
    session, other = Session(max_chunk=512, max_context=800), Session(max_chunk=512, max_context=800)
    empty = session.program.scratch_bytes
    lane, _ = session.begin(text(512))
    twin, expected = other.begin(text(512))
    large = session.program.scratch_bytes
    assert large > empty > 0
    for step in range(SHRINK_AFTER - 1):
        session.feed(lane, [step % CONFIG.vocab_size])
        other.feed(twin, [step % CONFIG.vocab_size])
    assert session.program.scratch_bytes == large
    other.begin(text(300))  # the count begins anew here
    np.testing.assert_array_equal(session.feed(lane, [1, 2]), other.feed(twin, [1, 2]))
    assert other.program.scratch_bytes == large
    assert session.program.scratch_bytes < large / 4
    for tokens in ([3], [4, 5, 6], text(200)):
        np.testing.assert_array_equal(session.feed(lane, tokens), other.feed(twin, tokens))
    out = session.begin(text(512))[1]
    np.testing.assert_array_equal(out, expected)
    session.program.close()
    assert session.program.scratch_bytes < empty


# --- saved lanes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_cache", KV_CACHES)
@pytest.mark.parametrize("window", [WINDOW, 70, None])
def test_a_saved_lane_goes_on_where_lanes_have_other_sizes(kv_cache: str, window: int | None) -> None:
    config = CONFIG.with_window(window)
    source = Session(config, kv_cache=kv_cache, max_chunk=100, max_context=400)
    lane, _ = source.begin(text(137))
    saved = source.save(lane)
    expected = source.feed(lane, text(30, 1))
    for max_chunk, max_context in ((100, 400), (40, 400), (30, 170), (300, 4000)):
        session = Session(config, kv_cache=kv_cache, max_chunk=max_chunk, max_context=max_context)
        other, _ = session.begin(text(150, 2))  # what was there is overwritten
        session.manager.close(other)
        np.testing.assert_array_equal(session.feed(session.load(saved), text(30, 1)), expected)


def test_a_saved_lane_is_a_copy() -> None:
    session = Session()
    lane, _ = session.begin(text(30))
    saved = session.save(lane)
    before = {name: array.copy() for name, array in saved.groups[0].items()}
    session.feed(lane, text(9, 1))
    assert saved.groups[0].keys() == before.keys()
    assert all((saved.groups[0][name] == before[name]).all() for name in before)


def test_an_empty_lane_can_be_saved_and_loaded() -> None:
    session = Session()
    loaded = session.load(session.save(session.manager.open()))
    first = session.begin(text(5))[1]
    np.testing.assert_array_equal(session.feed(loaded, text(5)), first)


@pytest.mark.parametrize("kv_cache", KV_CACHES)
@pytest.mark.parametrize("window", [WINDOW, 70, None])
def test_chunks_neighbours_and_forks_do_not_change_a_bit(kv_cache: str, window: int | None) -> None:
    """Nor do the pages that a sequence gets. After each step it goes on in its lane or in a fork; the other one shares
    its pages until it has stepped, then goes on with another text.
    """
    whole, parts = (Session(CONFIG.with_window(window), kv_cache=kv_cache, max_chunk=200) for _ in range(2))
    expected = whole.begin(text(200))[1]
    parts.manager.close(parts.begin(text(130, 1))[0])
    beside, lane, at = parts.begin(text(3, 2))[0], parts.manager.open(), 0
    other = parts.manager.fork(lane)
    for count in (1, 2, 60, 3, 40, 1, 1, 63, 29):
        own, others = text(200)[at : at + count], text(1 + count % 5, count)
        chunks = [Chunk(beside, others, [0]), Chunk(lane, own, range(count))]
        out = parts.program.step(parts.manager.plan(chunks))["logits"][1:]
        np.testing.assert_array_equal(out, expected[at : at + count])
        at += count
        parts.feed(other, text(2, 3))
        parts.manager.close(other)
        other = parts.manager.fork(lane)
        if count % 2:
            lane, other = other, lane
    assert at == 200


def foreign(kind: str, state: LaneState) -> LaneState:
    """Arrays of pages, changed so that they are not this model's."""
    name = "values.1"
    array = state[name]
    changes: dict[str, Any] = {
        "a layer less": {},
        "another name": {"values.7": array},
        "other numbers": {name: array.astype(np.float64)},
        "integers": {name: array.view(np.int16)},
        "other heads": {name: array[:, :1]},
        "other slots": {name: array[..., : array.shape[2] // 2]},
        "half a slot": {name: array[..., :-1]},
        "no slots": {name: array[..., :0]},
        "a page more": {name: np.concatenate([array, array[:1]])},
        "a page less": {name: array[:-1]},
        "a vector": {name: array.ravel()},
        "a number": {name: array[0, 0, 0]},
        "another axis": {name: array[..., None]},
        "text": {name: np.array(["garbage"])},
        "objects": {name: np.array([[object()], [object()]])},
        "more": {name: array, "keys.2": state["keys.1"]},
    }
    changed: dict[str, NDArray[Any]] = changes[kind]
    return {key: value for key, value in state.items() if key != name} | changed


@pytest.mark.parametrize(
    "kind",
    [
        *("a layer less", "another name", "other numbers", "integers", "other heads", "other slots", "half a slot"),
        *("no slots", "a page more", "a page less", "a vector", "a number", "another axis", "text", "objects", "more"),
    ],
)
def test_foreign_pages_are_refused_and_change_nothing(kind: str) -> None:
    session, other = Session(max_chunk=100), Session(max_chunk=100)
    lane, _ = session.begin(text(100))
    expected = other.feed(other.begin(text(100))[0], text(5, 1))
    state = foreign(kind, session.program.read_pages(0, [0, 1]))
    with pytest.raises(CacheError) as caught:
        session.program.write_pages(0, [1, 2], state)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(session.feed(lane, text(5, 1)), expected)


@pytest.mark.parametrize("kv_cache", ["float32", "q8_0"])
def test_pages_of_another_kv_cache_are_refused(kv_cache: str) -> None:
    sessions = Session(kv_cache=kv_cache), Session()
    saved = [session.save(session.begin(text(30))[0]) for session in sessions]
    for session, foreign in zip(sessions, reversed(saved), strict=True):
        with pytest.raises(CacheError):
            session.load(foreign)
        assert session.manager.lanes == (0,)


# --- graphs --------------------------------------------------------------------------------------------------------

CHUNKED = Scenario(
    (*((Feed(0, tuple(text(7, seed)), 7),) for seed in range(6)), (Feed(0, (1,), 1), Feed(1, (2, 3), 2)))
)


def require(config: MistralConfig, graph: Graph, weights: Mapping[str, Tensor], scenario: Scenario = CHUNKED) -> None:
    """The executor computes what the oracle computes."""
    for options in (ExecutorOptions(threads=2), ExecutorOptions(dtype="float32", threads=2)):
        result = check(Case("a model", config, verify(graph), weights, scenario), BACKEND, options)
        assert result.status == "pass", str(result)


def as_type(tensor: Tensor, kind: str) -> Tensor:
    """A matrix in another type."""
    values = tensor.numpy()
    if kind == "float32":
        return DenseTensor(tensor.name, kind, values)
    if kind == "float16":
        return DenseTensor(tensor.name, kind, values.astype(np.float16))
    if kind == "bfloat16":
        return DenseTensor(tensor.name, kind, (values.view(np.uint32) >> 16).astype(np.uint16))
    type = GGMLQuantizationType[kind.upper()]
    return QuantTensor(tensor.name, values.shape, type, quants.quantize(values, type))


def mixed_weights(graph: Graph) -> dict[str, Tensor]:
    """Random weights whose matrices have types in turn."""
    kinds = ("q4_0", "bfloat16", "q8_0", "float32", "q4_1", "float16", "q5_0")
    weights = dict(random_weights(graph, 0))
    matrices = [name for name, tensor in weights.items() if len(tensor.shape) == 2]
    return weights | {name: as_type(weights[name], kinds[i % len(kinds)]) for i, name in enumerate(matrices)}


def test_fused_linears_give_the_same_bits() -> None:
    graph = build(CONFIG)
    fused = fuse_linears(graph)
    assert any(len(parameter.parts) > 1 for parameter in fused.parameters.values())
    plain, joined = Session(graph=graph), Session(graph=verify(fused))
    for count in (1, 5, 30):
        np.testing.assert_array_equal(joined.begin(text(count))[1], plain.begin(text(count))[1])


def test_fused_linears_of_mixed_types() -> None:
    graph = build(CONFIG)
    require(CONFIG, fuse_linears(graph), mixed_weights(graph))


def test_mixed_types() -> None:
    graph = build(CONFIG)
    require(CONFIG, graph, mixed_weights(graph))


@pytest.mark.parametrize("quantization", [None, "q4_0"])
@pytest.mark.parametrize("head", ["question_answering", "token_classification", "sequence_classification", "none"])
def test_heads(head: str, quantization: str | None) -> None:
    graph = build(CONFIG, head=head, num_labels=3)
    require(CONFIG, graph, random_weights(graph, 0, quantization))


def test_hidden_states_and_attention_weights_beside_the_logits() -> None:
    graph = select_rows(expose_attention_weights(expose_hidden_states(build(CONFIG))), "logits")
    require(CONFIG, graph, random_weights(build(CONFIG), 0, "q4_0"))


@pytest.mark.parametrize("quantization", ["q4_0", "q8_0", None])
def test_tied_weights(quantization: str | None) -> None:
    config = replace(CONFIG, tie_word_embeddings=True)
    graph = build(config)
    require(config, graph, random_weights(graph, 0, quantization))


@pytest.mark.parametrize("kind", ["q4_0", "bfloat16", "float16", "float32"])
@pytest.mark.parametrize("count", [1, 2])
def test_embedding_tables_of_any_type_and_number_of_parts(kind: str, count: int) -> None:
    names = tuple(f"part{index}" for index in range(count))
    table = Parameter("table", (40, 64), names)
    graph = verify(Graph({"table": table}, (Node("x", "embedding", ("tokens", "table"), {}),), {"out": "x"}, {}))
    values = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    pieces_of = zip(names, np.split(values, count), strict=True)
    parts = [as_type(DenseTensor(name, "float32", some), kind) for name, some in pieces_of]
    spec = CacheSpec.from_config(CONFIG, max_context=40, page_size=BACKEND.capabilities.page_size)
    program = prepare(BACKEND, graph, dict(zip(names, parts, strict=True)), spec, ExecutorOptions(threads=2))
    manager = CacheManager(spec)
    out = program.step(manager.plan([Chunk(manager.open(), [39, 0, 20, 19])]))["out"]
    np.testing.assert_array_equal(out, np.concatenate([part.numpy() for part in parts])[[39, 0, 20, 19]])


def test_a_graph_may_begin_with_rows_that_it_is_given() -> None:
    """The later half of a model, whose input is the hidden states, gives what the whole gives."""
    graph = build(CONFIG)
    at = next(index for index, node in enumerate(graph.nodes) if node.name == graph.taps["hidden_states.1"])
    middle = graph.nodes[at].name
    first = verify(drop_dead_nodes(replace(graph, outputs={"hidden": middle}, taps={})))
    later = replace(
        graph, nodes=graph.nodes[at + 1 :], inputs={**graph.inputs, middle: ("T", CONFIG.hidden_size)}, taps={}
    )
    later = verify(drop_dead_nodes(later))
    whole, begin, end = Session(graph=graph), Session(graph=first), Session(graph=later)
    for count in (1, 5, 30):
        plan = whole.manager.plan([Chunk(whole.manager.open(), text(count), range(count))])
        hidden = begin.program.step(plan)["hidden"]
        out = end.program.step(plan, {middle: hidden})["logits"]
        np.testing.assert_array_equal(out, whole.program.step(plan)["logits"])
        whole.manager.close(int(plan.lanes[0]))


def test_given_rows_take_the_place_of_embeddings() -> None:
    graph = verify(accept_embeddings(build(CONFIG)))
    session, plain = Session(graph=graph), Session(graph=build(CONFIG))
    table = np.asarray(random_weights(build(CONFIG), 0, "q4_0")["model.embed_tokens.weight"].numpy(np.float32))
    tokens = np.array(text(9), np.int32)
    wrong, places = tokens.copy(), np.array([7, 2], np.int32)
    wrong[places] = 0
    expected = plain.begin(tokens.tolist())[1]
    plan = session.manager.plan([Chunk(session.manager.open(), wrong.tolist(), range(9))])
    given = table[tokens[places]]
    out = session.program.step(plan, {INPUTS_EMBEDS: given, EMBEDDED_ROWS: places})["logits"]
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(InputError, match="names a row twice"):
        session.program.step(plan, {INPUTS_EMBEDS: given, EMBEDDED_ROWS: np.array([2, 2], np.int32)})
    with pytest.raises(InputError, match="the graph declares"):
        session.program.step(plan)


def test_rows_of_a_computed_value_are_not_replaced() -> None:
    graph = build(CONFIG, head="none")
    inputs = {**graph.inputs, "given": ("E", CONFIG.hidden_size), "places": ("E",)}
    node = Node("more", "replace_rows", (graph.nodes[-1].name, "given", "places"), {})
    graph = verify(replace(graph, nodes=(*graph.nodes, node), inputs=inputs, outputs={"out": "more"}))
    with pytest.raises(BackendError, match="runs 'replace_rows' on embeddings and inputs of the step only") as caught:
        Session(graph=graph)
    assert "\n" not in str(caught.value)


def test_rows_beside_the_tokens_are_no_input_of_a_kernel() -> None:
    graph = build(CONFIG, head="none")
    node = Node("more", "silu_mul", ("given", "given"), {})
    inputs = {**graph.inputs, "given": ("E", CONFIG.hidden_size)}
    graph = verify(replace(graph, nodes=(*graph.nodes, node), inputs=inputs, outputs={"out": "more"}))
    with pytest.raises(BackendError, match="the input 'given' is"):
        Session(graph=graph)


def test_steps_that_grow_and_shrink() -> None:
    sizes = [*range(1, 41, 3), 40, *range(39, 0, -4), 1, 1]
    feeds = tuple((Feed(0, tuple(text(size, index)), size),) for index, size in enumerate(sizes))
    graph = select_rows(build(CONFIG), "logits")
    require(CONFIG, graph, random_weights(graph, 0, "q4_0"), Scenario(feeds))


if __name__ == "__main__":
    fork_during_steps() if sys.argv[1:] else fork()
