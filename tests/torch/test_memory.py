"""Memory of the torch executor: pools, their growth, and what happens where it runs out."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from mistral_portable_torch import matrices, packed
from mistral_portable_torch.attempt import Attempt
from mistral_portable_torch.matrices import stored_bytes
from mistral_portable_torch.memory import Memory
from mistral_portable_torch.planes import Planes
from torch_memory import Held, least_memory
from torch_sessions import CONFIG, PagedBackend, Repeated, Session, alone, text

from mistral_portable.errors import CapacityError
from mistral_portable.graph import build
from mistral_portable.testing import random_weights

WIDE = CONFIG.with_window(2000)
WIDER = replace(CONFIG, hidden_size=256, intermediate_size=512, num_hidden_layers=2)


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


def test_pools_of_recorded_steps_do_not_move_while_one_text_grows() -> None:
    record = Repeated()
    session = Session(CONFIG.with_window(None), PagedBackend(page=8, record=record), max_context=300)
    lane, _ = session.begin(text(5))
    first = session.program.cache_bytes
    session.decode(lane, 290)
    assert session.program.cache_bytes == first == 38 * session.spec.page_bytes(0, 4)
    assert record.records == 7  # columns of page tables: 1, 2, 4 and so on to 64


def test_pools_of_recorded_steps_double_for_further_texts() -> None:
    session = Session(CONFIG.with_window(None), PagedBackend(page=8, record=Repeated()), max_context=80)
    sizes = []
    for _ in range(4):
        session.begin(text(80))
        sizes.append(session.program.cache_bytes // session.spec.page_bytes(0, 4))
    assert sizes == [10, 20, 40, 40]


@pytest.mark.parametrize(("spare", "pages"), [(2 * 38, 38), (2 * 38 - 1, 4), (4, 4), (3, 1)])
def test_pools_of_recorded_steps_leave_as_much_memory_free_as_they_take(spare: int, pages: int) -> None:
    """spare: pages that memory has room for beside weights and scratch."""

    def begun(memory: int) -> Session:
        backend = PagedBackend(page=8, record=Repeated(), memory=memory)
        session = Session(CONFIG.with_window(None), backend, max_context=300, max_chunk=8)
        session.begin(text(8))
        return session

    least = least_memory(begun, 10**7)  # for weights, scratch and a page
    page = begun(10**7).spec.page_bytes(0, 4)
    assert begun(least + (spare - 1) * page).program.cache_bytes == pages * page


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
    session = Session(WIDE, PagedBackend(page=64, memory=2_000_000), max_context=9000, max_chunk=64)
    weights = sum(4 * int(np.prod(parameter.shape)) for parameter in build(WIDE).parameters.values())
    first, _ = session.begin(text(200))
    second = session.manager.open()
    with pytest.raises(
        CapacityError, match=r"scratch of 64 tokens 0\.00 GB \+ pages of keys and values 0\.00 GB = 0.00 GB, and"
    ):
        session.feed(second, text(3000))
    left = 2_000_000 - weights - session.program.cache_bytes
    assert 0 <= left < session.spec.page_bytes(0, 4) + 1_200_000  # scratch of 64 tokens and some 1,100 keys
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
    np.testing.assert_array_equal(session.feed(lane, [1]), alone(5))


def test_steps_are_recorded_again_after_memory_ran_out_while_pools_grew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of some layers have moved by then, and recorded steps hold their old addresses."""
    record = Repeated()
    scarce = PagedBackend(page=64, record=record, memory=2_500_000)  # too little for a whole lane from the start
    session = Session(WIDE, scarce, max_context=9000, max_chunk=100)
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


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({}, "float32"),
        ({}, "bfloat16"),
        ({"layers": 6}, "float32"),
        ({"attention": "eager"}, "float32"),
        ({"quantization": "q4_0"}, "bfloat16"),
        ({"quantization": "q8_0"}, "float32"),
        ({"experts": 4}, "float32"),
        ({"experts": 8, "quantization": "q8_0"}, "bfloat16"),
    ],
)
@pytest.mark.parametrize("tokens", [3, 40, 200])
def test_a_step_is_refused_unless_what_it_takes_is_there(options: dict[str, Any], dtype: str, tokens: int) -> None:
    """The scratch that must be free is no less than what an allocator counts, and at most four times as much."""
    config = replace(WIDER, num_hidden_layers=options.get("layers", 2))
    if experts := options.get("experts"):
        config = replace(config, num_local_experts=experts, num_experts_per_tok=2)
    weights = random_weights(build(config), 0, options.get("quantization"))

    def begun(memory: int | None) -> Session:
        session = Session(
            config,
            PagedBackend(page=16, memory=memory),
            max_chunk=tokens,
            dtype=dtype,
            weights=weights,
            attention=options.get("attention"),
        )
        session.begin(text(tokens))
        return session

    session = begun(None)
    counted = counted_again(session, tokens)
    stored = sum(stored_bytes(tensor, getattr(torch, dtype), torch.device("cpu")) for tensor in weights.values())
    exact = -(-tokens // 16) * 16 * session.program.slot_bytes(0)
    scratch = least_memory(begun, 10**8) - stored - exact
    assert counted <= scratch <= 4 * counted


@pytest.mark.parametrize(("quantization", "dtype"), [("q4_0", "bfloat16"), ("q8_0", "float32")])
@pytest.mark.parametrize("tokens", [3, 40, 200])
@pytest.mark.parametrize("compiled", [True, False])
def test_scratch_of_repacked_weights_is_known(
    quantization: str, dtype: str, tokens: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where kernels cannot be compiled, planes are unpacked by torch's operations, for which scratch is asked. Kernels
    take less of it, and how much follows from the number of tokens."""
    asked: list[int] = []
    monkeypatch.setattr(Memory, "require_step", lambda self, scratch, more, tokens: asked.append(scratch))
    monkeypatch.setattr(matrices, "has_kernels", lambda device: True)
    monkeypatch.setattr(packed, "_product", product if compiled else not_compiled)
    monkeypatch.setattr(packed, "_gated", lambda x, planes: None)
    monkeypatch.setattr(packed, "_unpack", unpack if compiled else not_compiled)
    monkeypatch.setattr(packed, "_COMPILED", Attempt("quantized weights are unpacked for every token"))
    session = Session(WIDER, dtype=dtype, max_chunk=tokens, weights=random_weights(build(WIDER), 0, quantization))
    with nullcontext() if compiled else pytest.warns(UserWarning, match="cannot be compiled"):
        session.begin(text(tokens))
    counted = counted_again(session, tokens)
    assert counted <= asked[0]
    assert compiled or asked[0] <= 4 * counted


def product(x: torch.Tensor, planes: Planes, bias: torch.Tensor | None) -> torch.Tensor:
    """Stands for `packed._product`, with the memory of its kernels: for some tokens two partial sums, for many an
    unpacked matrix."""
    if len(x) <= 64:
        return x.new_zeros(2, len(x), planes.shape[0], dtype=torch.float32).sum(0).to(x.dtype)
    return x @ torch.zeros(planes.shape, dtype=x.dtype).T


def unpack(planes: Planes, dtype: torch.dtype) -> torch.Tensor:
    """Stands for `packed._unpack`."""
    return torch.zeros(planes.shape, dtype=dtype)


def not_compiled(*arguments: object) -> torch.Tensor:
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable")


def counted_again(session: Session, tokens: int) -> int:
    """The bytes that an allocator counts in a step of a text that was read before, for which pools have grown."""
    session.manager.rollback(0, 0)
    held = Held()
    with held:
        session.feed(0, text(tokens))
    return held.most
