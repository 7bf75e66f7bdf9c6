"""Decoding steps in buckets: one recording serves several numbers of sequences, and padding changes nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flash_kernels import flash_attn_varlen_func, flash_attn_with_kvcache, flash_forward, paged_attend
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_torch.attention import Attention
from mistral_portable_torch.attention.flash import FlashAttn
from mistral_portable_torch.attention.paged import Paged
from mistral_portable_torch.attention.sdpa import SDPA
from mistral_portable_torch.attention.varlen import Varlen
from mistral_portable_torch.padding import bucket
from torch.utils._python_dispatch import TorchDispatchMode
from torch_sessions import CONFIG, PagedBackend, Repeated, Session, text

from mistral_portable.boundary import ExecutorOptions, prepare
from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.graph import build
from mistral_portable.graph.passes import accept_embeddings, select_rows
from mistral_portable.testing import random_weights


@pytest.mark.parametrize(
    ("count", "size"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (8, 8), (9, 16), (16, 16), (17, 24), (25, 32), (33, 40)]
)
def test_buckets(count: int, size: int) -> None:
    assert bucket(count) == size


KERNELS: dict[str, Attention | None] = {
    "sdpa": None,
    "flash": FlashAttn(flash_attn_varlen_func, flash_attn_with_kvcache),
    "varlen": Varlen(flash_forward),
    "triton": Paged(paged_attend, SDPA()),
}


def many_lanes(record: Repeated | None, config: MistralConfig = CONFIG, kernel: Attention | None = None) -> Session:
    backend = PagedBackend(page=3, record=record, kernel=kernel)
    session = Session(config, backend)
    session.spec = CacheSpec.from_config(config, max_context=90, page_size=3, max_chunk=8, max_lanes=9)
    session.manager = CacheManager(session.spec)
    graph = select_rows(build(config), "logits")
    weights, options = random_weights(build(config), 0), ExecutorOptions(dtype="float32")
    session.program = prepare(backend, graph, weights, session.spec, options)  # type: ignore[assignment]  # a torch program
    return session


# float32 on a CPU, whose BLAS adds up in another order for padded shapes.
CLOSE: Any = {"rtol": 1e-4, "atol": 1e-5}


@settings(max_examples=20, deadline=None)  # each runs both programs for dozens of steps
@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(0, 8), st.integers(1, 8), st.integers(0, 8)),
            min_size=1,
            max_size=9,
            unique_by=lambda some: some[0],
        ),
        min_size=3,
        max_size=6,
    ),
    st.one_of(st.none(), st.integers(1, 8)),
    st.sampled_from(list(KERNELS)),
    st.booleans(),
)
def test_lanes_that_come_and_go_have_the_logits_of_steps_that_are_not_recorded(
    drawn: list[list[tuple[int, int, int]]], window: int | None, kernel: str, decodes: bool
) -> None:
    """Each step takes some lanes, and asks for the logits of some of their tokens: of one, or of a few drafted ones."""
    steps = [
        [(lane, 1, min(rows, 1)) if decodes else (lane, n, min(rows, n)) for lane, n, rows in some] for some in drawn
    ]
    sessions = [many_lanes(record, CONFIG.with_window(window), KERNELS[kernel]) for record in (Repeated(), None)]
    for session in sessions:
        for lane in range(9):
            session.begin(text(1 + 2 * lane, lane))
    for number, lanes in enumerate(steps):
        recorded, plain = (
            session.program.step(
                session.manager.plan(
                    [Chunk(lane, [number, *text(n - 1)], range(n - rows, n)) for lane, n, rows in lanes]
                )
            )["logits"]
            for session in sessions
        )
        assert recorded.shape == (sum(rows for _, _, rows in lanes), CONFIG.vocab_size)
        np.testing.assert_allclose(recorded, plain, **CLOSE)
    for lane in range(9):  # what was written is there, and in nobody else's pages
        for recorded, plain in zip(*(session.feed(lane, [1, 2]) for session in sessions), strict=True):
            np.testing.assert_allclose(recorded, plain, **CLOSE)


def test_one_recording_serves_all_numbers_of_a_bucket() -> None:
    record = Repeated()
    session = many_lanes(record, CONFIG.with_window(None))
    lanes = [session.begin(text(20, lane))[0] for lane in range(8)]
    for lane in lanes:
        session.manager.rollback(lane, 12)  # so that pools need not grow, which drops what is recorded
    for count in (5, 6, 7, 8, 5, 8):
        session.program.step(session.manager.plan([Chunk(lane, [0], [0]) for lane in lanes[:count]]))
    assert record.records == 1
    assert record.replays == 4


def test_drafts_of_any_lengths_replay_what_was_recorded_for_their_number() -> None:
    """7 or 8 tokens, of one sequence or of several: as the parts of 8 in which the prompts were read here."""
    record = Repeated()
    session = many_lanes(record, CONFIG.with_window(None), KERNELS["flash"])
    lanes = [session.begin(text(20, lane))[0] for lane in range(4)]
    record.records = record.replays = 0
    for counts in ([8], [5, 3], [2, 2, 2, 1], [1, 7]):
        for lane in lanes:
            session.manager.rollback(lane, 12)  # so that pools need not grow, which drops what is recorded
        session.program.step(
            session.manager.plan([Chunk(lane, text(n), range(n)) for lane, n in zip(lanes, counts, strict=False)])
        )
    assert (record.records, record.replays) == (0, 4)


def test_a_step_whose_embeddings_are_given_is_not_padded() -> None:
    """A repeated sequence would have the token's own embedding, and write its keys over those of the given one."""
    graph = accept_embeddings(select_rows(build(CONFIG), "logits"))
    weights = random_weights(build(CONFIG), 0)
    spec = CacheSpec.from_config(CONFIG, max_context=40, page_size=3, max_chunk=8, max_lanes=4)
    found = []
    for record in (Repeated(), None):
        program = prepare(PagedBackend(record=record), graph, weights, spec, ExecutorOptions(dtype="float32"))
        manager = CacheManager(spec)
        lanes = [manager.open() for _ in range(3)]
        name, places = graph.given
        given_row = np.full((1, CONFIG.hidden_size), 0.5, np.float32)
        for number in range(4):
            plan = manager.plan([Chunk(lane, [number], [0]) for lane in lanes])
            out = program.step(plan, {name: given_row, places: np.array([2], np.int32)})["logits"]
        found.append(out)
    recorded, plain = found
    np.testing.assert_allclose(recorded, plain, **CLOSE)


Operation = tuple[str, tuple[tuple[int, ...], ...]]


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of all of torch's operations, with the shapes of their tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[Operation] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append((str(func), tuple(tuple(a.shape) for a in args if isinstance(a, torch.Tensor))))
        return func(*args, **(kwargs or {}))


class Watched(Repeated):
    """A recorder that notes the operations of what it records."""

    def __call__(self, function):  # type: ignore[no-untyped-def]
        with Operations() as self.operations:
            return super().__call__(function)


def operations_of(config: MistralConfig, sequences: int) -> tuple[list[Operation], list[Operation]]:
    """The operations of a decoding step when it comes first, and while it is recorded."""
    record = Watched()
    session = many_lanes(record, config)
    lanes = [session.begin(text(20, lane))[0] for lane in range(sequences)]
    for lane in lanes:
        session.manager.rollback(lane, 9)
    first, second = (session.manager.plan([Chunk(lane, [token], [0]) for lane in lanes]) for token in (1, 2))
    with Operations() as warm:
        session.program.step(first)
    session.program.step(second)
    assert record.records == 1
    return warm.seen, record.operations.seen


@pytest.mark.parametrize("experts", [0, 4])
def test_a_step_does_before_it_is_recorded_what_it_does_then(experts: int) -> None:
    """So that no kernel is compiled, and no library initialized, for the first time in a capture."""
    config = replace(CONFIG, num_local_experts=experts, num_experts_per_tok=2) if experts else CONFIG
    warm, recorded = operations_of(config, 4)
    assert len(recorded) > 20
    assert not any("nonzero" in name for name, _ in recorded)  # for which the host would wait
    assert any(warm[begin : begin + len(recorded)] == recorded for begin in range(len(warm)))


def test_nothing_is_converted_in_each_layer() -> None:
    """Slots are int64 on the device, as torch's writes take them: of int32 they would copy them twice a layer."""
    counts = []
    for layers in (1, 5):
        _, recorded = operations_of(replace(CONFIG, num_hidden_layers=layers), 4)
        slots = [shapes for name, shapes in recorded if "_to_copy" in name and shapes[0] == (4,)]
        counts.append(len(slots))
    assert counts[0] == counts[1]
