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

from mistral_portable.boundary import ExecutorOptions, prepare
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
        self.spec = CacheSpec.from_config(config, max_context=max_context, max_chunk=max_chunk, max_lanes=4)
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


@pytest.mark.parametrize("call", ["copy", "load"])
@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_no_memory_for_a_lanes_arrays_leaves_the_lane_as_it_was(
    call: str, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    source, target = session.begin(text(30))[0], session.begin(text(40, 1))[0]
    state, before = session.program.save_lane(source), session.program.save_lane(target)
    calls_of = {
        "copy": lambda: session.program.copy_lane(source, target),
        "load": lambda: session.program.load_lane(target, state),
    }
    zeros, calls = np.zeros, 0

    def scarce(*arguments: Any, **options: Any) -> NDArray[Any]:
        nonlocal calls
        calls += 1
        if calls > failing:
            raise MemoryError
        return zeros(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(np, "zeros", scarce)
        with pytest.raises(CapacityError, match="no memory is left for"):
            calls_of[call]()
    after = session.program.save_lane(target)
    assert before.keys() == after.keys()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


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
        for _ in range(20):
            lanes = [session.begin(text(9))[0] for _ in range(3)]
            for lane in lanes:
                session.program.load_lane(lane, {})
                session.manager.close(lane)
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not failures


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_no_memory_for_a_longer_lane_loses_nothing(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    session, expected = Session(), Session()
    zeros, calls = np.zeros, 0

    def scarce(*arguments: Any, **options: Any) -> NDArray[Any]:
        nonlocal calls
        calls += 1
        if calls > failing:
            raise MemoryError
        return zeros(*arguments, **options)

    plan = session.manager.plan([Chunk(session.manager.open(), text(20), range(20))])
    with monkeypatch.context() as patch:
        patch.setattr(np, "zeros", scarce)
        with pytest.raises(CapacityError, match="a step of 20 tokens"):
            session.program.step(plan)
    np.testing.assert_array_equal(session.program.step(plan)["logits"], expected.begin(text(20))[1])


def test_a_closed_program_neither_saves_nor_loads() -> None:
    session = Session()
    lane, _ = session.begin(text(3))
    state = session.program.save_lane(lane)
    session.program.close()
    with pytest.raises(ClosedError, match="closed"):
        session.program.save_lane(lane)
    with pytest.raises(ClosedError, match="closed"):
        session.program.load_lane(lane, state)
    with pytest.raises(ClosedError, match="closed"):
        session.program.copy_lane(lane, lane + 1)
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


def lane_bytes(kv_cache: str, slots: int, head_dim: int) -> int:
    """Bytes of a layer's lane by `layouts.py`: whole blocks of 64 slots, values padded to a multiple of 32 numbers."""
    slots, width = -(-slots // 64) * 64, -(-head_dim // 32) * 32
    itemsize = {"float32": 4, "float16": 2, "q8_0": 1}[kv_cache]
    scales = 2 * width // 32 * 2 if kv_cache == "q8_0" else 0
    return CONFIG.num_key_value_heads * slots * ((head_dim + width) * itemsize + scales)


@pytest.mark.parametrize("kv_cache", KV_CACHES)
@pytest.mark.parametrize("head_dim", [16, 40])
def test_a_windowed_lane_takes_the_same_bytes_however_long_the_text(kv_cache: str, head_dim: int) -> None:
    session = Session(replace(CONFIG, head_dim=head_dim), kv_cache=kv_cache, max_chunk=60)
    assert session.program.cache_bytes == 0
    lane, _ = session.begin(text(60))
    full = 2 * lane_bytes(kv_cache, WINDOW + 60 - 1, head_dim)
    assert session.program.cache_bytes == full
    for seed in range(5):
        session.feed(lane, text(60, seed))
        assert session.program.cache_bytes == full
    session.begin(text(1))
    assert session.program.cache_bytes == 2 * full


def test_a_full_lane_grows_with_the_text() -> None:
    session = Session(CONFIG.with_window((None, WINDOW)), max_context=1000)
    ring, lane = lane_bytes("float16", WINDOW + 48 - 1, 16), session.manager.open()
    for length, slots in ((1, 256), (256, 256), (257, 512), (512, 512), (513, 1000)):
        session.feed(lane, text(length - session.manager.length(lane)))
        assert session.program.cache_bytes == ring + lane_bytes("float16", slots, 16)


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
@pytest.mark.parametrize("window", [WINDOW, None])
def test_a_saved_lane_goes_on_where_lanes_have_other_sizes(kv_cache: str, window: int | None) -> None:
    config = CONFIG.with_window(window)
    source = Session(config, kv_cache=kv_cache, max_chunk=100, max_context=400)
    lane, _ = source.begin(text(37))
    integers, arrays = source.manager.save(lane), source.program.save_lane(lane)
    expected = source.feed(lane, text(30, 1))
    for max_chunk, max_context in ((100, 400), (40, 400), (30, 70), (300, 4000)):
        session = Session(config, kv_cache=kv_cache, max_chunk=max_chunk, max_context=max_context)
        other, _ = session.begin(text(50, 2))  # what was there is overwritten
        session.manager.close(other)
        loaded = session.manager.load(integers)
        session.program.load_lane(loaded, arrays)
        # A ring of another size holds the keys in another order, in which they are added.
        np.testing.assert_allclose(session.feed(loaded, text(30, 1)), expected, rtol=1e-5, atol=1e-5)


def test_a_saved_lane_is_a_copy_and_a_copied_lane_is_another() -> None:
    session = Session()
    lane, _ = session.begin(text(30))
    saved = session.program.save_lane(lane)
    before = {name: array.copy() for name, array in saved.items()}
    twin = session.manager.fork(lane)
    session.program.copy_lane(lane, twin)
    after = session.feed(lane, text(9, 1))
    assert saved.keys() == before.keys()
    assert all((saved[name] == before[name]).all() for name in saved)
    np.testing.assert_array_equal(session.feed(twin, text(9, 1)), after)


def test_an_empty_lane_can_be_saved_and_loaded() -> None:
    session = Session()
    empty = session.program.save_lane(3)
    lane, first = session.begin(text(5))
    session.program.load_lane(lane, empty)
    session.manager.rollback(lane, 0)
    np.testing.assert_array_equal(session.feed(lane, text(5)), first)


def foreign(kind: str, state: dict[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """A lane's arrays, changed so that they are not this model's."""
    name = "values.1"
    array = state[name]
    changes: dict[str, Any] = {
        "a layer less": {},
        "another name": {"values.7": array},
        "other numbers": {name: array.astype(np.float64)},
        "integers": {name: array.view(np.int16)},
        "other heads": {name: array[:1]},
        "other slots": {name: array[:, : array.shape[1] // 2]},
        "half a slot": {name: array[:, :-1]},
        "no slots": {name: array[:, :0]},
        "a vector": {name: array.ravel()},
        "a number": {name: array[0, 0]},
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
        *("no slots", "a vector", "a number", "another axis", "text", "objects", "more"),
    ],
)
def test_a_foreign_lane_is_refused_and_changes_nothing(kind: str) -> None:
    session, other = Session(), Session()
    lane, _ = session.begin(text(30))
    expected = other.feed(other.begin(text(30))[0], text(5, 1))
    state = foreign(kind, dict(session.program.save_lane(lane)))
    with pytest.raises(CacheError) as caught:
        session.program.load_lane(lane, state)
    assert "\n" not in str(caught.value)
    np.testing.assert_array_equal(session.feed(lane, text(5, 1)), expected)


@pytest.mark.parametrize("kv_cache", ["float32", "q8_0"])
def test_a_lane_of_another_kv_cache_is_refused(kv_cache: str) -> None:
    source, session = Session(kv_cache=kv_cache), Session()
    lane, _ = source.begin(text(30))
    with pytest.raises(CacheError):
        session.program.load_lane(0, source.program.save_lane(lane))
    lane, _ = session.begin(text(30))
    with pytest.raises(CacheError):
        source.program.load_lane(0, session.program.save_lane(lane))


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
    spec = CacheSpec.from_config(CONFIG, max_context=40)
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
