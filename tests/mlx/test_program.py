"""The MLX executor's programs, through the protocol: memory, lanes, threads, options, forks."""

import gc
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_mlx import BACKEND, device
from mistral_portable_mlx.inputs import step_inputs
from mistral_portable_mlx.matrices import notice_float32, read_matrix
from mistral_portable_mlx.memory import Memory
from mistral_portable_mlx.stacks import room
from mlx_sessions import CONFIG, Session, in_use, text
from weights.files import random_blocks

from mistral_portable.boundary import ExecutorOptions, load_lane, prepare, save_lane
from mistral_portable.boundary.shared import stored_dtype
from mistral_portable.cache import CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.errors import BackendError, CacheError, CapacityError, ClosedError
from mistral_portable.graph import build
from mistral_portable.graph.passes import expose_attention_weights, expose_hidden_states, select_rows
from mistral_portable.testing import Case, Feed, Scenario, check, random_weights
from mistral_portable.weights import DenseTensor, JoinedTensor, QuantTensor, Tensor

pytestmark = pytest.mark.usefixtures("uncompiled")
WIDE = CONFIG.with_window(2000)
KV_CACHES = [None, "q8_0"]


# --- memory ----------------------------------------------------------------------------------------------------------


def test_a_lane_takes_what_its_text_needs_and_gives_it_back_when_it_starts_anew() -> None:
    session = Session(WIDE, max_context=9000, max_chunk=500)
    lane, _ = session.begin(text(10))
    short = session.program.cache_bytes
    session.decode(lane, 1)
    assert session.program.cache_bytes == short
    session.feed(lane, text(3000))
    slots = session.spec.groups[0].page_size
    assert session.program.cache_bytes == 4 * CONFIG.num_hidden_layers * 2 * 2 * slots * CONFIG.head_dim
    session.manager.close(lane)
    session.begin(text(10))
    assert session.program.cache_bytes == short


@given(length=st.integers(1, 200_000), beyond=st.integers(0, 100_000))
def test_room(length: int, beyond: int) -> None:
    page_size = length + beyond
    found = room(length, page_size)
    assert length <= found <= page_size
    assert found <= max(1.125 * length, length + 1024)


def test_a_model_that_cannot_fit_is_refused_with_the_sum() -> None:
    with pytest.raises(CapacityError, match=r"weights 0\.\d\d GB \+ keys and values of 48 tokens .* = .* has 0\.00 GB"):
        Session(memory=1000)


def test_a_cache_that_outgrows_the_memory_is_an_error_and_the_rest_goes_on() -> None:
    session = Session(WIDE, max_context=9000, max_chunk=500, memory=in_use() + 1_500_000)
    first, _ = session.begin(text(200))
    second = session.manager.open()
    with pytest.raises(CapacityError, match=r"more beside .* in use"):
        session.feed(second, text(3000))
    assert np.isfinite(session.feed(first, [1])).all()


def test_freed_scratch_is_given_back() -> None:
    session = Session()
    session.begin(text(48))
    assert mx.get_cache_memory() <= 2**29
    session.program.close()
    assert mx.get_cache_memory() == 0


# --- lanes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_cache", KV_CACHES)
def test_a_fork_shares_memory_until_it_is_written_to(kv_cache: str | None) -> None:
    session, alone = Session(kv_cache=kv_cache), Session(kv_cache=kv_cache)
    lane, _ = session.begin(text(30))
    before = session.program.cache_bytes
    fork = session.manager.fork(lane)
    for number, seed in ((fork, 1), (lane, 2)):  # the second one has the page to itself, and writes in place
        other, _ = alone.begin(text(30))
        for tail in (text(3, seed), text(5, seed)):
            np.testing.assert_array_equal(session.feed(number, tail), alone.feed(other, tail))
            assert session.program.cache_bytes == 2 * before


def test_a_fork_for_whose_copy_there_is_no_memory_is_refused() -> None:
    """The first write after a fork makes the copy. The source is then still written in place."""
    session = Session(WIDE, max_context=9000, max_chunk=500, memory=in_use() + 2_000_000)
    lane, _ = session.begin(text(2400))
    before = session.program.cache_bytes
    assert before > 1_000_000
    fork = session.manager.fork(lane)
    plan = session.manager.plan([Chunk(fork, [1], [0])])
    with pytest.raises(CapacityError, match=r"more beside .* in use"):
        session.program.step(plan)
    session.manager.undo(plan)
    session.manager.close(fork)
    assert np.isfinite(session.feed(lane, [1])).all()
    assert session.program.cache_bytes == before


@pytest.mark.parametrize("options", [{}, {"kv_cache": "q8_0"}, {"dtype": "bfloat16"}])
def test_a_saved_lane_goes_on_in_another_program(options: dict[str, Any]) -> None:
    one, other = Session(**options), Session(**options)
    lane, _ = one.begin(text(90))
    saved = save_lane(one.program, one.manager, lane)
    assert saved.nbytes == one.program.cache_bytes
    loaded = load_lane(other.program, other.manager, saved)
    assert other.program.cache_bytes == saved.nbytes
    np.testing.assert_array_equal(one.feed(lane, text(9, 1)), other.feed(loaded, text(9, 1)))


@pytest.mark.parametrize("kv_cache", KV_CACHES)
def test_pages_of_different_lengths_are_read_and_written_together(kv_cache: str | None) -> None:
    """They have as many slots as the longest, and the others' end in zeros."""
    full = CONFIG.with_window(None)
    one, other = Session(full, kv_cache=kv_cache), Session(full, kv_cache=kv_cache)
    lanes = [one.begin(text(length, length))[0] for length in (3, 300)]
    short, long = (one.manager.pages(lane)[0] for lane in lanes)
    state = one.program.read_pages(0, long + short)
    alone = one.program.read_pages(0, short)
    for name, array in state.items():
        assert array.shape[:3] == (2, CONFIG.num_key_value_heads, 400)
        np.testing.assert_array_equal(array[1, :, :256], alone[name][0])
        assert not array[1, :, 256:].any()
    theirs = [other.manager.load(one.manager.save(lane)[0])[0] for lane in lanes]
    short, long = (other.manager.pages(lane)[0] for lane in theirs)
    other.program.write_pages(0, long + short, state)
    for mine, its in zip(lanes, theirs, strict=True):
        np.testing.assert_allclose(one.feed(mine, [1, 2]), other.feed(its, [1, 2]), rtol=1e-5, atol=1e-5)


def test_a_lane_saved_before_its_first_step_is_empty() -> None:
    session = Session()
    saved = save_lane(session.program, session.manager, session.manager.open())
    assert saved.nbytes == 0
    lane = load_lane(session.program, session.manager, saved)
    assert np.isfinite(session.feed(lane, [1])).all()


@pytest.mark.parametrize("broken", ["missing", "dtype", "pages", "heads", "slots", "too many slots", "other cache"])
def test_foreign_pages_are_refused_and_nothing_changes(broken: str) -> None:
    session, expected = Session(), Session()
    lane, _ = session.begin(text(30))
    state = dict(session.program.read_pages(0, [0]))
    match broken:
        case "missing":
            del state["keys.1"]
        case "dtype":
            state["keys.1"] = state["keys.1"].astype(np.float16)
        case "pages":
            state = {name: np.concatenate([array, array]) for name, array in state.items()}
        case "heads":
            state["keys.1"] = state["keys.1"][:, :1]
        case "slots":
            state["values.1"] = state["values.1"][:, :, :3]
        case "too many slots":
            state = {name: np.concatenate([array, array], axis=2) for name, array in state.items()}
        case "other cache":
            other = Session(kv_cache="q8_0")
            other.begin(text(30))
            state = dict(other.program.read_pages(0, [0]))
    with pytest.raises(CacheError, match="saved lane"):
        session.program.write_pages(0, [0], state)
    its, _ = expected.begin(text(30))
    np.testing.assert_array_equal(session.feed(lane, [1]), expected.feed(its, [1]))


@settings(max_examples=15)  # each of them some 40 steps
@given(data=st.data(), kv_cache=st.sampled_from(KV_CACHES), window=st.sampled_from([3, 8, 20, None, (None, 5)]))
def test_sequences_that_join_leave_and_fork_have_the_logits_that_they_have_alone(
    data: st.DataObject, kv_cache: str | None, window: Any
) -> None:
    """Sequences of any lengths come together in one array, and part again; 70 tokens are read apart from others."""
    config = CONFIG.with_window(window)
    session, alone = (Session(config, max_context=700, max_chunk=100, kv_cache=kv_cache) for _ in range(2))
    numbers = dict[int, int]()  # of a lane, that of the same text in the other program
    for step in range(8):
        if len(numbers) < 4:
            lane = session.manager.open() if not numbers or data.draw(st.booleans()) else -1
            if lane < 0:
                source = data.draw(st.sampled_from(sorted(numbers)))
                lane = session.manager.fork(source)
                numbers[lane] = alone.manager.fork(numbers[source])
            else:
                numbers[lane] = alone.manager.open()
        chosen = data.draw(st.lists(st.sampled_from(sorted(numbers)), min_size=1, unique=True))
        counts = data.draw(
            st.one_of(
                st.just([1] * len(chosen)),
                st.lists(st.sampled_from([1, 2, 9, 70]), min_size=len(chosen), max_size=len(chosen)),
            )
        )
        chunks = [
            Chunk(lane, text(count, 10 * step + lane), [count - 1])
            for lane, count in zip(chosen, counts, strict=True)
            if sum(counts) <= session.spec.max_chunk
        ] or [Chunk(chosen[0], text(1), [0])]
        found = session.program.step(session.manager.plan(chunks))["logits"]
        for row, chunk in zip(found, chunks, strict=True):
            # The tolerance: sums of other shapes are added up in another order, in float32.
            expected = alone.program.step(alone.manager.plan([chunk._replace(lane=numbers[chunk.lane])]))["logits"]
            np.testing.assert_allclose(row, expected[0], rtol=1e-4, atol=1e-4)
        if len(numbers) > 2 and data.draw(st.booleans()):
            ended = data.draw(st.sampled_from(sorted(numbers)))
            session.manager.close(ended)
            alone.manager.close(numbers.pop(ended))


def test_sequences_that_have_decoded_together_read_prompts_in_one_step() -> None:
    session, alone = (Session(config=CONFIG.with_window(300), max_chunk=200) for _ in range(2))
    lanes = [session.begin(text(20, lane))[0] for lane in range(3)]
    session.program.step(session.manager.plan([Chunk(lane, [1], [0]) for lane in lanes]))
    chunks = [Chunk(lane, text(90, 10 + lane)) for lane in lanes[:2]]
    session.program.step(session.manager.plan(chunks))
    found = session.program.step(session.manager.plan([Chunk(lane, [2], [0]) for lane in lanes]))["logits"]
    for lane, row in zip(lanes, found, strict=True):
        more = text(90, 10 + lane) if lane < 2 else []
        expected = alone.begin([*text(20, lane), 1, *more, 2])[1][-1]
        # The tolerance: sums of other shapes are added up in another order, in float32.
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4)


def test_sequences_share_memory_as_long_as_they_decode_together() -> None:
    """Their arrays are joined, not kept twice, and parted when one of them starts anew."""
    session = Session(WIDE, max_context=9000, max_chunk=500)
    lanes = [session.begin(text(300, lane))[0] for lane in range(3)]
    held = session.program.cache_bytes
    for some in (lanes, lanes[:2], lanes, lanes[1:]):
        session.program.step(session.manager.plan([Chunk(lane, [1], [0]) for lane in some]))
        assert session.program.cache_bytes == held
    session.program.step(session.manager.plan([Chunk(lane, [1], [0]) for lane in lanes]))
    session.manager.close(lanes[1])
    session.begin([1])
    assert session.program.cache_bytes == held * (512 + 256 + 512) // (3 * 512)


@pytest.mark.parametrize("kv_cache", KV_CACHES)
def test_sequences_that_leave_keep_no_arrays_of_those_that_go_on(kv_cache: str | None) -> None:
    session = Session(WIDE, max_context=9000, max_chunk=500, kv_cache=kv_cache)
    lanes = [session.begin(text(300, lane))[0] for lane in range(4)]
    held = in_use()
    for count in (4, 3, 2, 1):
        session.program.step(session.manager.plan([Chunk(lane, [1], [0]) for lane in lanes[:count]]))
        assert in_use() - held < session.program.cache_bytes // 8  # half a page: one in vain would be twice as much


@pytest.mark.parametrize("done", [0, 1])
@pytest.mark.parametrize("kv_cache", KV_CACHES)
def test_a_join_that_is_interrupted_loses_nothing(
    kv_cache: str | None, done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-C or for want of memory, behind the first layers."""
    interrupted, whole = (Session(config=CONFIG, kv_cache=kv_cache) for _ in range(2))
    for session in (interrupted, whole):
        lanes = [session.begin(text(20, lane))[0] for lane in range(2)]
    chunks = [Chunk(lane, [1], [0]) for lane in lanes]
    evaluate, calls = mx.eval, iter(range(CONFIG.num_hidden_layers))

    def evaluate_some(*arrays: Any) -> None:
        evaluate(*arrays)
        if arrays[0] and next(calls) == done:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mx, "eval", evaluate_some)
        plan = interrupted.manager.plan(chunks)
        with pytest.raises(KeyboardInterrupt):
            interrupted.program.step(plan)
    interrupted.manager.undo(plan)
    found, expected = (s.program.step(s.manager.plan(chunks))["logits"] for s in (interrupted, whole))
    np.testing.assert_array_equal(found, expected)


# --- steps -----------------------------------------------------------------------------------------------------------


def test_outputs_are_the_callers_own() -> None:
    session, other = Session(), Session()
    lane, first = session.begin(text(7))
    kept = first.copy()
    first.fill(np.nan)
    np.testing.assert_array_equal(session.feed(lane, text(9, 1)), other.feed(other.begin(text(7))[0], text(9, 1)))
    assert np.isfinite(kept).all()


def test_a_chunk_that_nobody_asks_rows_of_gives_none_and_is_cached() -> None:
    session, other = Session(), Session()
    lane = session.manager.open()
    out = session.program.step(session.manager.plan([Chunk(lane, text(40))]))
    assert out["logits"].shape == (0, CONFIG.vocab_size)
    expected = other.feed(other.begin(text(40))[0], text(4, 1))
    np.testing.assert_array_equal(session.feed(lane, text(4, 1)), expected)


def test_hidden_states_and_attention_weights_over_a_wrapped_ring() -> None:
    graph = expose_attention_weights(expose_hidden_states(build(CONFIG.with_window((5, None)))))
    config = CONFIG.with_window((5, None))
    tokens = tuple(text(40))
    scenario = Scenario(
        (
            (Feed(0, tokens[:9], 9), Feed(1, tokens[5:7], 2)),
            (Feed(1, tokens[7:20], 13),),
            *((Feed(0, (token,), 1),) for token in tokens[9:30]),
        )
    )
    result = check(
        Case("all", config, graph, random_weights(graph, 0), scenario), BACKEND, ExecutorOptions(dtype="float32")
    )
    assert result.status == "pass", result


def test_steps_from_several_threads_take_turns() -> None:
    session, alone = Session(), Session()
    lanes = [session.manager.open() for _ in range(4)]
    plans = [session.manager.plan([Chunk(lane, text(20, lane), [19])]) for lane in lanes]
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda lane=lane: found.update({lane: session.program.step(plans[lane])["logits"]}))
        for lane in lanes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lane in lanes:
        np.testing.assert_allclose(found[lane][0], alone.begin(text(20, lane))[1][-1], rtol=1e-5, atol=1e-5)


def test_programs_do_not_use_mlx_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One steps while others read their weights."""
    events: list[tuple[str, int]] = []

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            events.append(("begin", threading.get_ident()))
            time.sleep(0.001)  # lets others begin, if they can
            result = function(*arguments)
            events.append(("end", threading.get_ident()))
            return result

        return run

    session = Session()
    lane, _ = session.begin(text(5))
    monkeypatch.setattr("mistral_portable_mlx.program.read_matrix", watched(read_matrix))
    monkeypatch.setattr("mistral_portable_mlx.program.step_inputs", watched(step_inputs))
    threads = [threading.Thread(target=Session), threading.Thread(target=lambda: session.decode(lane, 20))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({thread for _, thread in events}) == 2
    for begin, end in zip(events[::2], events[1::2], strict=True):
        assert (begin[0], end[0], begin[1]) == ("begin", "end", end[1])


def test_a_closed_program_says_so() -> None:
    session = Session()
    plan = session.manager.plan([Chunk(session.manager.open(), [1, 2], [1])])
    session.program.step(plan)
    assert session.program.cache_bytes > 0
    session.program.close()
    session.program.close()
    assert session.program.cache_bytes == 0
    for call in (
        lambda: session.program.step(plan),
        lambda: session.program.submit(plan),
        lambda: session.program.read_pages(0, [0]),
        lambda: session.program.write_pages(0, [0], {}),
    ):
        with pytest.raises(ClosedError, match="closed: prepare it again"):
            call()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux lists them")
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "collected"])
def test_programs_that_have_ended_leave_no_thread(closed: bool) -> None:
    def threads_after(count: int) -> int:
        for _ in range(count):
            session = Session()
            session.begin([1, 2, 3])
            if closed:
                session.program.close()
            del session
            gc.collect()
        return len(list(Path("/proc/self/task").iterdir()))

    assert threads_after(2) == threads_after(3)


def test_a_forked_child_is_told_so() -> None:
    """The child has none of MLX's threads, and a step would hang; the parent goes on."""
    script = """
import os
import mistral_portable as mp
from mistral_portable.errors import BackendError
model = mp.load("tiny", backend="mlx")
before = model.generate("Once", max_tokens=3, temperature=0).tokens
child = os.fork()
if child == 0:
    for call in (lambda: model.generate("Once", max_tokens=3), lambda: mp.load("tiny", backend="mlx")):
        try:
            call()
        except BackendError as error:
            print(error, flush=True)
    model.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert model.generate("Once", max_tokens=3, temperature=0).tokens == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "does not run in its forked child" in first
    assert first == second


@pytest.mark.parametrize("end", ["", "model.close()", "import os; os.kill(os.getpid(), 2)"])
def test_a_process_ends_as_it_should(end: str) -> None:
    """MLX's own threads do not block the end of the interpreter."""
    script = f"""
import signal, threading
import mistral_portable as mp
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored, and so its children
model = mp.load("tiny", backend="mlx")
worker = threading.Thread(target=model.generate, args=("Once",), kwargs={{"max_tokens": 3}})
worker.start()
worker.join()
print(len(model.generate("Once", max_tokens=3).tokens), flush=True)
{end}
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
        assert done.stdout == "3\n", done.stderr
        assert done.returncode == (-2 if "kill" in end else 0), done.stderr


# --- options ---------------------------------------------------------------------------------------------------------


def test_probe_says_what_runs() -> None:
    found = BACKEND.probe()
    assert found.score > 0
    assert found.reason.startswith(("Metal, ", "CUDA, ", "CPU, "))
    assert f"MLX {version('mlx')}" in found.reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float64"}, "computes in float32, float16, bfloat16"),
        ({"dtype": "int8"}, "choose one, or another backend"),
        ({"kv_cache": "q4_0"}, "in float32, q8_0 beside dtype 'float32'"),
        ({"dtype": "bfloat16", "kv_cache": "float32"}, "in bfloat16, q8_0 beside dtype 'bfloat16'"),
        ({"threads": 3}, "threads=3: it has no such choice"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        Session(**({"dtype": "float32"} | options))


def k_weights(config: MistralConfig, kind: str) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = dict(random_weights(build(config), 3))
    for name, tensor in weights.items():
        if len(tensor.shape) == 2:
            blocks = random_blocks(kind.upper(), (tensor.shape[0], tensor.shape[1]), np.random.default_rng(len(name)))
            weights[name] = QuantTensor(name, tensor.shape, GGMLQuantizationType[kind.upper()], blocks)
    return weights


K_CONFIG = MistralConfig(
    vocab_size=40,
    hidden_size=256,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    sliding_window=6,
)


@pytest.mark.filterwarnings("ignore:.*matrices")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])  # in float32 they are exact: test_ggml.py
@pytest.mark.parametrize("kind", ["q4_k", "q5_k", "iq4_xs", "q6_k"])
def test_types_that_gguf_files_have_in_half_precision(kind: str, dtype: str) -> None:
    graph = select_rows(build(K_CONFIG), "logits")
    tokens = tuple(text(20))
    scenario = Scenario(((Feed(0, tokens[:9], 9),), *((Feed(0, (token,), 1),) for token in tokens[9:])))
    case = Case(kind, K_CONFIG, graph, k_weights(K_CONFIG, kind), scenario)
    result = check(case, BACKEND, ExecutorOptions(dtype=dtype))
    assert result.status == "pass", result


def test_widened_types_are_noticed() -> None:
    spec = CacheSpec.from_config(K_CONFIG, max_context=64, page_size=None)
    graph = select_rows(build(K_CONFIG), "logits")
    with pytest.warns(UserWarning, match=r"9 matrices \(9 in q6_k\) are unpacked to float32.*it holds iq4_nl, "):
        prepare(BACKEND, graph, k_weights(K_CONFIG, "q6_k"), spec, ExecutorOptions(dtype="float32")).close()


def test_it_is_said_if_weights_cannot_stay_resident(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS before 15 has no wired limit."""

    def refuse(limit: int) -> int:
        raise RuntimeError("setting the wired limit needs macOS 15")

    monkeypatch.setattr(mx, "set_wired_limit", refuse)
    with pytest.warns(UserWarning, match="weights are not wired.*macOS 15"):
        Memory(2**30, "Metal").configure()


def test_blocks_that_bfloat16_programs_multiply_in_float32_are_noticed() -> None:
    graph = select_rows(build(K_CONFIG), "logits")
    with pytest.warns(UserWarning, match=r"9 matrices are multiplied in float32.*--dtype float16"):
        notice_float32(graph, k_weights(K_CONFIG, "q4_0"), mx.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notice_float32(graph, k_weights(K_CONFIG, "q4_0"), mx.float16)
        notice_float32(graph, random_weights(build(K_CONFIG), 0), mx.bfloat16)


@pytest.mark.parametrize(
    ("architecture", "emulates"),
    [("applegpu_g13s", True), ("applegpu_g14g", True), ("applegpu_g15d", False), ("", False)],
)
def test_a_gpu_that_emulates_bfloat16_is_noticed(
    architecture: str, emulates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An M1 or M2; and on a GPU, which makes its kernels when they are first used, a program is warmed."""
    found = device.Device("CUDA", "Apple M2", 2**30, "1", architecture)
    monkeypatch.setattr(device, "find_device", lambda: found)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        session = Session(dtype="bfloat16")
    assert any("Apple M2 has no bfloat16" in str(warning.message) for warning in caught) == emulates
    assert session.program.traces == 1


def test_pieces_of_bfloat16_are_run_in_bfloat16_and_blocks_in_float16() -> None:
    piece = DenseTensor("w", "bfloat16", np.zeros((2, 32), np.uint16))
    blocks = QuantTensor("w", (2, 32), GGMLQuantizationType.Q8_0, np.zeros((2, 34), np.uint8))
    assert stored_dtype([JoinedTensor("w", (piece, piece), 0), blocks]) == "bfloat16"
    assert stored_dtype([blocks, blocks, piece]) == "float16"
