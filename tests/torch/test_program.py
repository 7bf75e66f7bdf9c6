"""Programs of the torch executor, through the protocol: memory, pages, NaN, recorded steps, threads, and a story."""

import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flash_kernels import flash_attn_varlen_func, flash_attn_with_kvcache, varlen_attn
from mistral_portable_torch import BACKEND
from mistral_portable_torch.attention import Eager
from mistral_portable_torch.attention.flash import FlashAttn
from mistral_portable_torch.attention.flex import Flex
from mistral_portable_torch.attention.varlen import Varlen
from mistral_portable_torch.program import AsynchronousProgram
from torch_sessions import CONFIG, PagedBackend, Repeated, Session, text

import mistral_portable as mp
from mistral_portable.boundary import ExecutorOptions, GreedyProgram, load_lane, prepare, save_lane
from mistral_portable.cache import CacheSpec, Chunk
from mistral_portable.errors import CacheError, CapacityError, ClosedError, NumericsError
from mistral_portable.graph import build
from mistral_portable.graph.passes import expose_attention_weights, expose_hidden_states, select_rows
from mistral_portable.sampling import Sampler, SamplingParams
from mistral_portable.testing import Case, Feed, Scenario, check, random_weights
from mistral_portable.weights import DenseTensor

WIDE = CONFIG.with_window(2000)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_pools_stop_growing_once_the_window_is_full() -> None:
    session = Session(max_chunk=48)
    page = session.spec.page_bytes(0, 4)
    lane, _ = session.begin(text(9))
    assert session.program.cache_bytes == 4 * page  # pages of 3 slots; pools grow by 4 pages at least
    session.feed(lane, text(150))
    full = session.program.cache_bytes
    assert full <= 1.25 * session.spec.lane_pages(0) * page
    session.decode(lane, 150)
    assert session.program.cache_bytes == full


def test_pools_grow_rarely_and_at_most_a_quarter_beyond_need() -> None:
    session = Session(CONFIG.with_window(None), PagedBackend(page=1), max_chunk=1)
    page, sizes = session.spec.page_bytes(0, 4), list[int]()
    lane = session.manager.open()
    for length, token in enumerate(text(400), 1):
        session.feed(lane, [token])
        sizes.append(session.program.cache_bytes // page)
        assert length <= sizes[-1] <= max(1.25 * length, length + 3)
    assert len(set(sizes)) < 30


def test_a_pool_has_no_more_pages_than_all_lanes_can_hold() -> None:
    session = Session(max_context=4)  # each of 4 lanes has two pages, and one more while a page is copied
    for _ in range(4):
        session.begin(text(4))
    assert session.program.cache_bytes == 8 * session.spec.page_bytes(0, 4)


def test_a_new_sequence_gets_freed_pages() -> None:
    session = Session()
    session.begin(text(60))
    before = session.program.cache_bytes
    session.manager.close(0)
    session.begin(text(60))
    assert session.program.cache_bytes == before


def test_the_error_for_a_model_that_cannot_fit_shows_the_sizes() -> None:
    with pytest.raises(CapacityError, match=r"weights 0\.00 GB \+ keys and values of 48 tokens .* has 0\.00 GB free"):
        Session(backend=PagedBackend(memory=1000))


def test_a_cache_that_outgrows_the_memory_fails_one_step_only() -> None:
    """Pools grow by exactly the needed pages where more do not fit."""
    session = Session(WIDE, PagedBackend(page=64, memory=1_500_000), max_context=9000, max_chunk=64)
    weights = sum(4 * int(np.prod(parameter.shape)) for parameter in build(WIDE).parameters.values())
    first, _ = session.begin(text(200))
    second = session.manager.open()
    with pytest.raises(CapacityError, match=r"the cache does not fit: keys and values need 0\.00 GB more, and .* free"):
        session.feed(second, text(3000))
    assert 0 <= 1_500_000 - weights - session.program.cache_bytes < session.spec.page_bytes(0, 4)
    assert np.isfinite(session.feed(first, [1])).all()


def test_memory_that_runs_out_in_a_step_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    lane, _ = session.begin(text(5))

    def exhausted(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    with monkeypatch.context() as patch:
        patch.setattr("mistral_portable_torch.attention.sdpa.scaled_dot_product_attention", exhausted)
        with pytest.raises(CapacityError, match=r"a step's scratch does not fit .*: use --quantize q4_0"):
            session.feed(lane, [1])
    session.manager.rollback(lane, 5)
    np.testing.assert_array_equal(session.feed(lane, [1]), _alone(5))


def test_steps_are_recorded_again_after_memory_ran_out_while_pools_grew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of some layers have moved by then, and recorded steps hold their old addresses."""
    record = Repeated()
    session = Session(WIDE, PagedBackend(page=64, record=record), max_context=9000, max_chunk=500)
    first, _ = session.begin(text(5))
    session.decode(first, 3)
    assert record.records == 1
    new_zeros, made = torch.Tensor.new_zeros, []

    def twice(like: torch.Tensor, *sizes: int) -> torch.Tensor:
        made.append(sizes)
        if len(made) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return new_zeros(like, *sizes)

    second = session.manager.open()
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_zeros", twice)
        with pytest.raises(CapacityError, match="does not fit"):
            session.feed(second, text(400))
    session.decode(first, 3)
    assert record.records == 2


def _alone(count: int) -> Any:
    session = Session()
    lane, _ = session.begin(text(count))
    return session.feed(lane, [1])


# --- pages -----------------------------------------------------------------------------------------------------------


def test_a_fork_and_its_source_continue_separately() -> None:
    session, alone = Session(), Session()
    lane, _ = session.begin(text(31))  # 10 full pages, and a slot of the next one
    fork = session.manager.fork(lane)
    plan = session.manager.plan([Chunk(fork, text(5, 1), range(5)), Chunk(lane, text(5, 2), range(5))])
    assert len(plan.groups[0].copies)
    forked, kept = np.split(session.program.step(plan)["logits"], 2)
    for found, tail in ((forked, text(5, 1)), (kept, text(5, 2))):
        other, _ = alone.begin(text(31))
        np.testing.assert_allclose(found, alone.feed(other, tail), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_lane_continues_in_another_program(dtype: str) -> None:
    one, other = Session(dtype=dtype), Session(dtype=dtype)
    other.begin(text(5))  # so that the loaded lane gets other pages
    lane, _ = one.begin(text(90))
    saved = save_lane(one.program, one.manager, lane)
    expected = one.feed(lane, text(9, 1))  # does not change the saved lane
    loaded = load_lane(other.program, other.manager, saved)
    np.testing.assert_array_equal(other.feed(loaded, text(9, 1)), expected)


def test_pages_of_a_program_before_its_first_step() -> None:
    session = Session()
    state = session.program.read_pages(0, [])
    assert {array.shape for array in state.values()} == {(0, 3, 2, 16)}
    session.program.write_pages(0, [], state)
    assert session.program.cache_bytes == 0


@pytest.mark.parametrize("broken", ["missing", "dtype", "heads", "pages", "another page"])
def test_pages_of_another_model_are_refused_and_nothing_changes(broken: str) -> None:
    session = Session()
    lane, _ = session.begin(text(30))
    pages, before = session.manager.pages(lane)[0], session.program.cache_bytes
    state = {name: np.zeros_like(array) for name, array in session.program.read_pages(0, pages).items()}
    match broken:
        case "missing":
            del state["keys.1"]
        case "dtype":
            state["keys.1"] = state["keys.1"].astype(np.float16)
        case "heads":
            state["keys.1"] = state["keys.1"][:, :, :1]
        case "pages":
            state["values.1"] = state["values.1"][:3]
        case "another page":
            state = {name: np.zeros((len(pages), 5, 2, 16), np.float32) for name in state}
    for into in (pages, [page + 100 for page in pages]):
        with pytest.raises(CacheError, match="saved lane"):
            session.program.write_pages(0, into, state)
    assert session.program.cache_bytes == before
    np.testing.assert_array_equal(session.feed(lane, [1]), _alone(30))


def test_pages_that_do_not_fit_in_memory_are_an_error_and_nothing_changes() -> None:
    session = Session(backend=PagedBackend(memory=300_000))
    lane, _ = session.begin(text(30))
    state, before = session.program.read_pages(0, [0]), session.program.cache_bytes
    with pytest.raises(CapacityError, match="the cache does not fit"):
        session.program.write_pages(0, [10**6], state)
    assert session.program.cache_bytes == before
    np.testing.assert_array_equal(session.feed(lane, [1]), _alone(30))


# --- NaN -------------------------------------------------------------------------------------------------------------

POISON = 7
"""A token that has NaN logits, keys and values; so have all tokens that see it."""

KERNELS = {
    "sdpa": PagedBackend(page=8),
    "sdpa, recorded": PagedBackend(page=8, record=Repeated()),
    "eager": PagedBackend(page=8, kernel=Eager()),
    "flex": PagedBackend(page=8, kernel=Flex(compiled=False)),
    "flash_attn": PagedBackend(page=8, kernel=FlashAttn(flash_attn_varlen_func, flash_attn_with_kvcache)),
    "varlen": PagedBackend(page=8, kernel=Varlen(varlen_attn), record=Repeated()),
}
PURE = [token for token in text(200) if token != POISON]


@pytest.fixture(params=KERNELS)
def poisoned(request: pytest.FixtureRequest) -> Session:
    """A session whose lane 0 has 60 tokens; token 20 is POISON."""
    session = poisonable(KERNELS[request.param])
    lane, logits = session.begin(PURE[:20])
    assert np.isfinite(logits).all()
    assert np.isnan(session.feed(lane, [POISON, *PURE[20:59]])).all()
    return session


def poisonable(backend: PagedBackend) -> Session:
    config = CONFIG.with_window(None)
    weights = dict(random_weights(build(config), 0))
    table = weights["model.embed_tokens.weight"].numpy()
    table[POISON] = np.nan
    weights["model.embed_tokens.weight"] = DenseTensor("model.embed_tokens.weight", "float32", table)
    return Session(config, backend, weights=weights)


def continues_cleanly(session: Session, lane: int, cached: int) -> None:
    """Check that a lane with the first tokens of PURE continues as in a clean session, in single tokens and chunks."""
    clean = poisonable(PagedBackend(page=8, kernel=Eager()))
    other = clean.begin(PURE[:cached])[0] if cached else clean.manager.open()
    for count in (1, 1, 5, 1, 1, 1, 30, 1, 1, 1):
        tokens = PURE[cached : cached + count]
        np.testing.assert_allclose(session.feed(lane, tokens), clean.feed(other, tokens), rtol=1e-4, atol=1e-4)
        cached += count


def test_nan_does_not_reach_the_next_owner_of_a_page(poisoned: Session) -> None:
    poisoned.manager.close(0)
    lane = poisoned.manager.open()
    continues_cleanly(poisoned, lane, 0)


def test_nan_is_gone_after_a_rollback(poisoned: Session) -> None:
    poisoned.manager.rollback(0, 20)
    continues_cleanly(poisoned, 0, 20)


def test_nan_after_the_fork_point_does_not_reach_the_fork(poisoned: Session) -> None:
    continues_cleanly(poisoned, poisoned.manager.fork(0, 20), 20)
    assert np.isnan(poisoned.feed(0, [1])).all()


def test_nan_that_was_rolled_back_is_not_saved(poisoned: Session) -> None:
    poisoned.manager.rollback(0, 20)
    saved = save_lane(poisoned.program, poisoned.manager, 0)
    continues_cleanly(poisoned, load_lane(poisoned.program, poisoned.manager, saved), 20)


def test_nan_does_not_reach_another_sequence_of_the_batch(poisoned: Session) -> None:
    """The other sequence has fewer pages, so its row of the page table is padded."""
    lane, _ = poisoned.begin(PURE[:3])
    for token in PURE[3:40]:
        plan = poisoned.manager.plan([Chunk(0, [token], [0]), Chunk(lane, [token], [0])])
        sick, healthy = poisoned.program.step(plan)["logits"]
        assert np.isnan(sick).all()
        assert np.isfinite(healthy).all()
    continues_cleanly(poisoned, lane, 40)


# --- recorded steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("varlen", [False, True])
def test_a_step_is_recorded_once_while_windows_move(varlen: bool) -> None:
    record = Repeated()
    backend = PagedBackend(page=16, kernel=Varlen(varlen_attn) if varlen else None, record=record)
    session, plain = Session(backend=backend), Session(backend=replace(backend, record=None))
    lanes = [session.begin(text(count, count))[0] for count in (70, 81)]
    for count in (70, 81):
        plain.begin(text(count, count))
    records = 0
    for number, token in enumerate(text(120)):
        plan = session.manager.plan([Chunk(lane, [token], [0]) for lane in lanes])
        expected = plain.program.step(plain.manager.plan([Chunk(lane, [token], [0]) for lane in lanes]))
        np.testing.assert_array_equal(session.program.step(plan)["logits"], expected["logits"])
        if number == 30:  # each window has spanned its largest and its smallest number of pages
            records = record.records
    assert record.records == records
    assert record.replays > 100


def test_recorded_steps_are_dropped_when_pools_move() -> None:
    """Recorded steps hold the old addresses: they are recorded again when their shape has come twice again."""
    record = Repeated()
    session = Session(CONFIG.with_window(None), PagedBackend(page=8, record=record))
    plain = Session(CONFIG.with_window(None), PagedBackend(page=8))
    lane, _ = session.begin(text(17))  # 3 of 4 pages
    plain.begin(text(17))
    records = []
    for token in text(60):
        found, expected = session.feed(lane, [token]), plain.feed(lane, [token])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        records.append(record.records)
    # Pools of 4 pages end with position 31, those of 8 with 63.
    assert records == [0, *[1] * 14, 1, *[2] * 31, 2, *[3] * 12]
    assert record.replays == 60 - 6


@pytest.mark.parametrize("weight", [np.nan, np.inf, -np.inf])
def test_logits_that_the_sampler_refuses_give_minus_one_and_the_next_step_runs(weight: float) -> None:
    """NaN anywhere or +inf as the highest logit is refused; -inf is a valid logit."""
    graph, weights = select_rows(build(CONFIG), "logits"), dict(random_weights(build(CONFIG), 0))
    head = weights["lm_head.weight"].numpy()
    head[7] = 0
    head[7, 0] = weight  # a single product is infinite, so that no inf - inf gives NaN
    weights["lm_head.weight"] = DenseTensor("lm_head.weight", "float32", head)
    session = Session()
    program = prepare(PagedBackend(), graph, weights, session.spec, ExecutorOptions(dtype="float32"))
    assert isinstance(program, GreedyProgram)
    lanes = [session.manager.open() for _ in range(3)]
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
    plan = session.manager.plan([Chunk(lanes[2], [0] * 30, range(30))])._replace(sources=np.arange(30, dtype=np.int32))
    assert len(program.submit(plan, after=step).tokens()) == 30


def test_recorded_steps_take_tokens_of_any_rows() -> None:
    """One recording serves after a prompt of 6 rows, after steps in any order, and after none."""
    record = Repeated()
    session = Session(CONFIG.with_window(None), PagedBackend(page=256, record=record))
    program = session.program
    assert isinstance(program, AsynchronousProgram)
    lanes = [session.begin(text(5, seed))[0] for seed in range(3)]
    step = program.submit(session.manager.plan([Chunk(lane, text(2, 7), range(2)) for lane in lanes]))
    records, rows = [], [1, 3, 5]
    for _ in range(8):
        chunks = [Chunk(lane, [0], [0], source=row) for lane, row in zip(lanes, rows, strict=True)]
        step = program.submit(session.manager.plan(chunks), after=step)
        records.append(record.records)
        lanes, rows = [lanes[2], lanes[0], lanes[1]], [2, 0, 1]
    program.submit(session.manager.plan([Chunk(lane, [3], [0]) for lane in lanes]))
    assert [*records, record.records] == [0, *[1] * 8]


def test_ties_go_to_the_lowest_token() -> None:
    graph, weights = select_rows(build(CONFIG), "logits"), dict(random_weights(build(CONFIG), 0))
    weights["lm_head.weight"] = DenseTensor("lm_head.weight", "float32", np.zeros((40, 64), np.float32))
    session = Session()
    program = prepare(PagedBackend(), graph, weights, session.spec, ExecutorOptions(dtype="float32"))
    assert isinstance(program, AsynchronousProgram)
    assert program.submit(session.manager.plan([Chunk(session.manager.open(), [5], [0])])).tokens().tolist() == [0]


# --- steps -----------------------------------------------------------------------------------------------------------


def test_outputs_are_the_callers_own() -> None:
    session, other = Session(backend=PagedBackend(record=Repeated())), Session()
    lane, first = session.begin(text(7))
    kept = first.copy()
    first.fill(np.nan)
    for token in text(6, 1):
        session.feed(lane, [token]).fill(np.nan)
    other.begin([*text(7), *text(6, 1)])
    np.testing.assert_allclose(session.feed(lane, [1]), other.feed(0, [1]), rtol=1e-5, atol=1e-5)
    assert np.isfinite(kept).all()


def test_a_prefill_chunk_without_requested_rows_is_cached() -> None:
    session, other = Session(), Session()
    lane = session.manager.open()
    out = session.program.step(session.manager.plan([Chunk(lane, text(40))]))
    assert out["logits"].shape == (0, CONFIG.vocab_size)
    expected = other.feed(other.begin(text(40))[0], text(4, 1))
    np.testing.assert_array_equal(session.feed(lane, text(4, 1)), expected)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_hidden_states_and_attention_weights_after_pages_have_left_the_window(attention: str) -> None:
    config = CONFIG.with_window((5, None))
    graph = expose_attention_weights(expose_hidden_states(build(config)))
    tokens = tuple(text(40))
    scenario = Scenario(
        (
            (Feed(0, tokens[:9], 9), Feed(1, tokens[5:7], 2)),
            (Feed(1, tokens[7:20], 13),),
            *((Feed(0, (token,), 1),) for token in tokens[9:30]),
        )
    )
    case = Case("all", config, graph, random_weights(graph, 0), scenario)
    result = check(case, PagedBackend(record=Repeated()), ExecutorOptions(dtype="float32", attention=attention))
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


def test_steps_of_a_closed_program_are_an_error() -> None:
    session = Session()
    plan = session.manager.plan([Chunk(session.manager.open(), [1, 2], [1])])
    session.program.step(plan)
    assert session.program.cache_bytes > 0
    session.program.close()
    session.program.close()
    assert session.program.cache_bytes == 0
    with pytest.raises(ClosedError, match="closed: prepare it again"):
        session.program.step(plan)


@pytest.mark.parametrize("quantize", [None, "q4_0"])
def test_tiny_writes_the_reference_s_story(quantize: str | None) -> None:
    found, expected = (
        mp.load("tiny", backend=name, dtype="float32", quantize=quantize).generate(
            "Once upon a time", max_tokens=200, temperature=0
        )
        for name in ("torch", "reference")
    )
    assert len(expected.tokens) > 2 * 64  # two windows
    assert found.tokens == expected.tokens


def test_threads_are_set_and_restored() -> None:
    before, seen = torch.get_num_threads(), list[int]()
    program = prepare(
        BACKEND,
        select_rows(build(CONFIG), "logits"),
        random_weights(build(CONFIG), 0),
        CacheSpec.from_config(CONFIG, max_context=64, page_size=256),
        ExecutorOptions(threads=before + 1, progress=lambda *_: seen.append(torch.get_num_threads())),
    )
    program.close()
    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_a_forked_child_gets_an_error() -> None:
    """The child has none of torch's threads, so a step would hang. The parent continues."""
    script = """
import os
import mistral_portable as mp
from mistral_portable.errors import BackendError
model = mp.load("tiny", backend="torch", device="cpu")
before = model.generate("Once", max_tokens=3, temperature=0).tokens
child = os.fork()
if child == 0:
    for call in (lambda: model.generate("Once", max_tokens=3), lambda: mp.load("tiny", backend="torch", device="cpu")):
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
    assert "torch was started in process" in first
    assert first == second


def test_no_memory_for_a_later_group_of_layers_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first group's pools have grown: the lane is unchanged, continues, and can be forked."""
    config = replace(CONFIG, sliding_window=(None, 40))
    session, calm = (Session(config, PagedBackend(page=4), max_chunk=8) for _ in range(2))
    lane, _ = session.begin(text(12))
    new_zeros, calls = torch.Tensor.new_zeros, 0

    def scarce(tensor: torch.Tensor, *size: Any, **options: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:  # the first group has grown its keys and values
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return new_zeros(tensor, *size, **options)

    plan = session.manager.plan([Chunk(lane, text(8, 1))])
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "new_zeros", scarce)
        with pytest.raises(CapacityError, match="does not fit"):
            session.program.step(plan)
    session.manager.undo(plan)
    copied = session.manager.fork(lane)
    expected = calm.feed(calm.begin(text(12))[0], text(20, 2))
    for each in (lane, copied):
        np.testing.assert_array_equal(session.feed(each, text(20, 2)), expected)
