"""Recorded steps of the torch executor: when they are recorded again, and greedy steps that follow each other."""

from dataclasses import replace

import numpy as np
import pytest
from flash_kernels import flash_forward, paged_attend
from mistral_portable_torch.attention import Attention
from mistral_portable_torch.attention.paged import Paged
from mistral_portable_torch.attention.sdpa import SDPA
from mistral_portable_torch.attention.varlen import Varlen
from mistral_portable_torch.program import AsynchronousProgram
from torch_sessions import CONFIG, PagedBackend, Repeated, Session, text

from mistral_portable.boundary import ExecutorOptions, GreedyProgram, prepare
from mistral_portable.cache import Chunk
from mistral_portable.errors import NumericsError
from mistral_portable.graph import build
from mistral_portable.graph.passes import select_rows
from mistral_portable.sampling import Sampler, SamplingParams
from mistral_portable.testing import random_weights
from mistral_portable.weights import DenseTensor

KERNELS: dict[str, Attention | None] = {
    "sdpa": None,
    "varlen": Varlen(flash_forward),
    "triton": Paged(paged_attend, SDPA()),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_step_is_recorded_once_while_windows_move(kernel: str) -> None:
    record = Repeated()
    backend = PagedBackend(page=16, kernel=KERNELS[kernel], record=record)
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
