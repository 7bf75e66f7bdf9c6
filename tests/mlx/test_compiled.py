"""Compiled decoding steps: right, compiled once for each shape, and writing in place."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_mlx import BACKEND
from mlx_sessions import CONFIG, Session, in_use, text

import mistral_portable as mp
from mistral_portable.boundary import ExecutorOptions, GreedyProgram, Step, prepare
from mistral_portable.cache import Chunk
from mistral_portable.config import Window
from mistral_portable.errors import CapacityError, NumericsError
from mistral_portable.graph import build
from mistral_portable.graph.passes import EMBEDDED_ROWS, INPUTS_EMBEDS, accept_embeddings, select_rows
from mistral_portable.sampling import Sampler, SamplingParams
from mistral_portable.testing import Case, check, random_weights
from mistral_portable.testing.strategies import scenarios
from mistral_portable.weights import DenseTensor

Windows = Window | tuple[Window, ...]
WINDOWS: list[Windows] = [1, 2, 3, 4, 5, 6, 7, 8, None, (None, 3), (2, 7)]


@pytest.mark.parametrize("kv_cache", [None, "q8_0"])
@settings(max_examples=8)  # each compiles steps of several shapes
@given(window=st.sampled_from(WINDOWS), data=st.data(), seed=st.integers(0, 2**31))
def test_compiled_steps_match_the_oracle(kv_cache: str | None, window: Windows, data: st.DataObject, seed: int) -> None:
    """Token by token and ragged, with rollbacks and lanes that are swapped."""
    config = CONFIG.with_window(window)
    drawn = scenarios(config.vocab_size, sequences=2, chunks=(1, 1, 3), rollback=False, swap=data.draw(st.booleans()))
    graph = select_rows(build(config), "logits")
    case = Case("compiled", config, graph, random_weights(graph, seed), data.draw(drawn))
    result = check(case, BACKEND, ExecutorOptions(dtype="float32", kv_cache=kv_cache))
    assert result.status == "pass", result


@pytest.mark.parametrize("kv_cache", [None, "q8_0"])
def test_no_step_is_built_again_while_decoding(kv_cache: str | None) -> None:
    session = Session(max_context=400, max_chunk=48, kv_cache=kv_cache)
    lane, _ = session.begin(text(40))
    session.decode(lane, 1)
    before = session.program.traces
    session.decode(lane, 300)  # four times around the ring of 67 slots
    assert session.manager.length(lane) > 4 * 67
    assert session.program.traces == before


def test_a_lane_that_grows_builds_a_step_for_each_of_its_sizes() -> None:
    session = Session(CONFIG.with_window(None), max_context=4000, max_chunk=500)
    lane, _ = session.begin(text(3))
    session.decode(lane, 1)
    before = session.program.traces
    session.decode(lane, 300)  # from 256 slots to 512
    assert session.program.traces == before + 1


def test_sequences_that_decode_together_share_a_step() -> None:
    session = Session()
    lanes = [session.begin(text(count, count))[0] for count in (30, 5, 48)]
    for _ in range(2):
        session.together(lanes)
    before = session.program.traces
    for token in text(60):
        session.together(lanes, token)
    assert session.program.traces == before


@pytest.mark.parametrize(("counts", "again"), [([4, 4], 0), ([8], 0), ([9], 1), ([4, 3], 1)])
def test_drafts_of_one_length_share_a_step(counts: list[int], again: int) -> None:
    """Up to 8 tokens; where lengths differ a step is built each time."""
    session = Session()
    lanes = [session.begin(text(20, lane))[0] for lane in range(len(counts))]

    def verify() -> None:
        session.step([Chunk(lane, text(n), range(n)) for lane, n in zip(lanes, counts, strict=True)])
        for lane, n in zip(lanes, counts, strict=True):
            session.manager.rollback(lane, session.manager.length(lane) - n + 1)

    verify()
    before = session.program.traces
    for _ in range(4):
        verify()
    assert session.program.traces == before + 4 * again


def test_the_first_text_finds_a_warm_program_as_it_was() -> None:
    """The step of one token is recorded, and the cache is empty."""
    warm, cold = Session(CONFIG.with_window(None)), Session(CONFIG.with_window(None))
    warm.program.warm()
    assert warm.program.cache_bytes == 0
    traces = warm.program.traces
    np.testing.assert_array_equal(warm.begin([7])[1], cold.begin([7])[1])
    assert warm.program.traces == traces


def test_a_graph_with_inputs_of_its_own_is_warmed() -> None:
    session = Session(graph=select_rows(accept_embeddings(build(CONFIG)), "logits"))
    session.program.warm()
    assert session.program.traces == 2  # one whose logits are read, one that takes the highest


def test_joins_and_ends_build_a_step_for_each_number_of_sequences() -> None:
    """However long their texts are, and whichever of them go on."""
    session = Session()
    lanes = [session.begin(text(20 + lane))[0] for lane in range(4)]
    for some in (lanes, lanes[:3], lanes[:2]):
        session.together(some)
    before = session.program.traces
    for some in ([lanes[3], lanes[1]], lanes[1:], lanes[::-1], lanes[2:], [lanes[0], lanes[2], lanes[3]]):
        session.together(some)
    assert session.program.traces == before


def test_the_order_of_lanes_of_different_sizes_builds_no_step() -> None:
    """256 slots of one lane, 512 of the others."""
    session = Session(CONFIG.with_window(None), max_context=4000, max_chunk=500)
    lanes = [session.begin(text(count))[0] for count in (20, 300, 310)]
    session.together(lanes)
    before = session.program.traces
    for some in (lanes[::-1], [lanes[1], lanes[0], lanes[2]]):
        session.together(some)
    assert session.program.traces == before


def test_replaced_rows_are_part_of_a_compiled_step() -> None:
    """Replacing a token's embedding by another token's gives the logits of the other token."""
    graph = select_rows(accept_embeddings(build(CONFIG)), "logits")
    session, plain = Session(graph=graph), Session()
    table = random_weights(build(CONFIG), 0)["model.embed_tokens.weight"].numpy()
    none = {INPUTS_EMBEDS: table[:0], EMBEDDED_ROWS: np.zeros(0, np.int32)}
    lanes = session.manager.open(), session.manager.open()
    its = plain.manager.open(), plain.manager.open()
    traces = []
    for step, rows in enumerate([[], [1], [], [0], [0, 1], [1], []]):
        tokens = [step, step + 7]
        fed = [39 if row in rows else token for row, token in enumerate(tokens)]
        given = {INPUTS_EMBEDS: table[[tokens[row] for row in rows]], EMBEDDED_ROWS: np.array(rows, np.int32)}
        plan = session.manager.plan([Chunk(lane, [token], [0]) for lane, token in zip(lanes, fed, strict=True)])
        found = session.program.step(plan, given if rows else none)["logits"]
        np.testing.assert_array_equal(
            found, plain.step([Chunk(lane, [token], [0]) for lane, token in zip(its, tokens, strict=True)])
        )
        traces.append(session.program.traces)
    assert traces == [1, 2, 2, 2, 3, 3, 3]


def test_compiled_and_built_steps_agree() -> None:
    compiled, built = Session(), Session()
    a = np.concatenate([compiled.begin(text(30))[1], compiled.feed(0, text(1, 1))])
    mx.disable_compile()
    try:
        b = np.concatenate([built.begin(text(30))[1], built.feed(0, text(1, 1))])
    finally:
        mx.enable_compile()
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kv_cache", [None, "q8_0"])
def test_memory_is_constant_once_the_window_is_full(kv_cache: str | None) -> None:
    session = Session(kv_cache=kv_cache)
    lane, _ = session.begin(text(70))  # the ring has 67 slots
    session.decode(lane, 1)
    cache, active = session.program.cache_bytes, in_use()
    session.decode(lane, 3 * 67)
    assert session.program.cache_bytes == cache
    assert mx.get_active_memory() <= active


def copy_of(cache: int) -> int:
    """Bytes of one layer's keys; on a GPU, which frees memory when a buffer of commands is done, also of its values.
    Copies of all layers would be found all the same."""
    halves = 2 if mx.default_device().type == mx.DeviceType.cpu else 1
    return cache // (halves * CONFIG.num_hidden_layers)


@pytest.mark.parametrize("kv_cache", [None, "q8_0"])
@pytest.mark.parametrize("chunk", [1, 3])  # of more, scores and scales alone take as much as 8-bit keys
def test_a_ring_is_written_in_place(kv_cache: str | None, chunk: int) -> None:
    """The scratch of a step is smaller than a copy of one layer's keys; on a GPU, than one of its keys and values."""
    config = replace(
        CONFIG.with_window(1000), head_dim=256, num_key_value_heads=4
    )  # keys that outweigh scores and activations
    session = Session(config, max_context=9000, max_chunk=100, kv_cache=kv_cache)
    weights = in_use()
    lane, _ = session.begin(text(1200))
    session.feed(lane, text(chunk))
    mx.reset_peak_memory()
    session.feed(lane, text(chunk))
    cache = session.program.cache_bytes
    assert mx.get_peak_memory() - weights < cache + copy_of(cache)


def test_a_page_grows_a_layer_at_a_time() -> None:
    """No more than one layer's keys and values are in memory twice."""
    config = replace(CONFIG.with_window(None), head_dim=256, num_key_value_heads=4, num_hidden_layers=4)
    session = Session(config, max_context=9000, max_chunk=100)
    weights = in_use()
    lane, _ = session.begin(text(2048))
    before = session.program.cache_bytes
    mx.reset_peak_memory()
    session.feed(lane, [1])
    cache = session.program.cache_bytes
    assert cache > before
    assert mx.get_peak_memory() - weights < cache + before // 2


def test_steps_that_choose_for_themselves_are_built_once_and_write_in_place() -> None:
    config = replace(CONFIG.with_window(1000), head_dim=256, num_key_value_heads=4)
    session = Session(config, max_context=9000, max_chunk=100)
    weights = in_use()
    lane, _ = session.begin(text(1200))
    step = session.program.submit(session.manager.plan([Chunk(lane, [1], [0])]))
    traces = session.program.traces
    mx.reset_peak_memory()
    for _ in range(20):
        following = session.program.submit(session.manager.plan([Chunk(lane, [0], [0], source=0)]), after=step)
        assert 0 <= int(step.tokens()[0]) < config.vocab_size
        step = following
    assert session.program.traces == traces
    cache = session.program.cache_bytes
    assert mx.get_peak_memory() - weights < cache + copy_of(cache)


def test_a_step_starts_before_the_tokens_that_it_reads_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not before the step that makes them has read its pages: MLX would copy these."""
    session = Session()
    lane, _ = session.begin(text(30))
    first = session.program.submit(session.manager.plan([Chunk(lane, [1], [0])]))
    following = session.program.submit(session.manager.plan([Chunk(lane, [0], [0], source=0)]), after=first)
    events, evaluate, begin = list[mx.array](), mx.eval, mx.async_eval

    def noted(function: Callable[[mx.array], None]) -> Callable[[mx.array], None]:
        def call(array: mx.array) -> None:
            events.append(array)
            function(array)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(mx, "eval", noted(evaluate))
        patch.setattr(mx, "async_eval", noted(begin))
        token = int(first.tokens()[0])
    expected = [first.attended, following.attended, following.chosen]
    assert [id(array) for array in events] == [id(array) for array in expected]
    other = Session()
    expected_token = other.feed(other.begin(text(30))[0], [1, token])[-1].argmax()
    assert following.tokens()[0] == expected_token


def test_steps_that_take_tokens_of_any_rows_are_built_once() -> None:
    """After a prompt of 4 rows, and after steps in any order."""
    session = Session(CONFIG.with_window(1000), max_context=9000)
    lanes = [session.begin(text(5, seed))[0] for seed in range(2)]
    step = session.program.submit(session.manager.plan([Chunk(lane, text(2), range(2)) for lane in lanes]))
    built, rows = [], [1, 3]
    for _ in range(4):
        chunks = [Chunk(lane, [0], [0], source=row) for lane, row in zip(lanes, rows, strict=True)]
        following = session.program.submit(session.manager.plan(chunks), after=step)
        step.tokens()
        step, lanes, rows = following, lanes[::-1], [1, 0]
        built.append(session.program.traces)
    assert len(set(built)) == 1


@pytest.mark.parametrize("weight", [np.nan, np.inf, -np.inf])
def test_logits_that_the_sampler_refuses_are_no_token(weight: float) -> None:
    """NaN anywhere, or an infinite highest logit, is refused; a logit of -inf is legal, and never the highest."""
    graph, weights = select_rows(build(CONFIG), "logits"), dict(random_weights(build(CONFIG), 0))
    head = weights["lm_head.weight"].numpy()
    head[7] = 0
    head[7, 0] = weight  # one product decides, so that infinities do not meet
    weights["lm_head.weight"] = DenseTensor("lm_head.weight", "float32", head)
    session = Session()
    program = prepare(BACKEND, graph, weights, session.spec, ExecutorOptions(dtype="float32"))
    assert isinstance(program, GreedyProgram)
    lanes = session.manager.open(), session.manager.open()
    logits = program.step(session.manager.plan([Chunk(lanes[0], text(30), range(30))]))["logits"]
    step = program.submit(session.manager.plan([Chunk(lanes[1], text(30), range(30))]))
    sampler = Sampler(SamplingParams(temperature=0))
    for row, token in zip(logits, step.tokens(), strict=True):
        if token < 0:
            with pytest.raises(NumericsError, match="the logit of token 7"):
                sampler.sample(row)
        else:
            assert sampler.sample(row).token == token
    assert (step.tokens() < 0).any()
    program.close()


@pytest.mark.parametrize("quantize", [None, "q4_0"])
def test_tiny_writes_the_reference_s_story(quantize: str | None) -> None:
    found, expected = (
        mp.load("tiny", backend=name, dtype="float32", quantize=quantize).generate(
            "Once upon a time", max_tokens=200, temperature=0
        )
        for name in ("mlx", "reference")
    )
    assert len(expected.tokens) > 2 * 64  # two windows
    assert found.tokens == expected.tokens


def test_a_token_that_is_there_comes_before_the_want_of_memory_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with mp.load("tiny", backend="mlx", dtype="float32") as model:
        expected = model.generate("Once upon a time", max_tokens=5, temperature=0).tokens
        submit, begun = model.core.submit, []

        def submit_five(chunks: Sequence[Chunk], after: Step | None = None) -> Step:
            begun.append(chunks)
            if len(begun) > 5:
                raise CapacityError("the cache does not fit")
            return submit(chunks, after)

        monkeypatch.setattr(model.core, "submit", submit_five)
        stream = model.stream("Once upon a time", max_tokens=20, temperature=0)
        with pytest.raises(CapacityError, match="does not fit"):
            list(stream)
        assert stream.generation.tokens == expected
