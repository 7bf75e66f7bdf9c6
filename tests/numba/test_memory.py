"""Memory of the Numba executor's programs: growth, shrinking, steps that do not fit, and what stays of files."""

import ctypes
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st
from mistral_portable_numba.cache import KVCache
from mistral_portable_numba.matrices import matrices
from mistral_portable_numba.memory import HUGE_PAGE, in_huge_pages
from mistral_portable_numba.program import SHRINK_AFTER
from numba_sessions import CONFIG, KV_CACHES, WINDOW, Session, text
from numpy.typing import NDArray
from weights.files import random_blocks
from weights.resident import resident_files

from mistral_portable.cache import CacheManager, CacheSpec, Chunk
from mistral_portable.config import MistralConfig
from mistral_portable.errors import CapacityError
from mistral_portable.weights import DenseTensor, QuantTensor, Tensor
from mistral_portable.weights.source import map_file


def page_bytes(kv_cache: str, head_dim: int) -> int:
    """Bytes of a layer's page, as in `layouts.py`: 64 slots, values padded to a multiple of 32 numbers."""
    width = -(-head_dim // 32) * 32
    itemsize = {"float32": 4, "float16": 2, "q8_0": 1}[kv_cache]
    scales = 2 * width // 32 * 2 if kv_cache == "q8_0" else 0
    return CONFIG.num_key_value_heads * 64 * ((head_dim + width) * itemsize + scales)


@pytest.mark.parametrize("kv_cache", KV_CACHES)
@pytest.mark.parametrize("head_dim", [16, 40])
def test_a_windowed_lane_takes_the_same_bytes_for_any_length(kv_cache: str, head_dim: int) -> None:
    session = Session(replace(CONFIG, head_dim=head_dim), kv_cache=kv_cache, max_chunk=60, max_context=4000)
    assert session.program.cache_bytes == 0
    lane, _ = session.begin(text(60))
    assert session.program.cache_bytes == 2 * page_bytes(kv_cache, head_dim)
    session.feed(lane, text(1000))  # chunks begin at all offsets in a page
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


def test_where_memory_is_short_pools_grow_by_what_a_step_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    session, zeros = Session(CONFIG.with_window(None), max_chunk=64, max_context=4096), np.zeros
    lane, page = session.manager.open(), page_bytes("float16", 16) * CONFIG.num_hidden_layers

    def short(shape: Any, *arguments: Any, **options: Any) -> NDArray[Any]:
        if np.size(shape) == 3 and shape[0] > session.manager.pages_in_use(0):
            raise MemoryError
        return zeros(shape, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(np, "zeros", short)
        for pages in range(1, 30):
            session.feed(lane, text(64, pages))
            assert session.program.cache_bytes == pages * page


def test_scratch_shrinks_long_after_large_steps() -> None:
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
    other.begin(text(300))  # resets the count of small steps
    np.testing.assert_array_equal(session.feed(lane, [1, 2]), other.feed(twin, [1, 2]))
    assert other.program.scratch_bytes == large
    assert session.program.scratch_bytes - empty < (large - empty) / 4  # the threads' own scratch stays
    for tokens in ([3], [4, 5, 6], text(200)):
        np.testing.assert_array_equal(session.feed(lane, tokens), other.feed(twin, tokens))
    out = session.begin(text(512))[1]
    np.testing.assert_array_equal(out, expected)
    session.program.close()
    assert session.program.scratch_bytes < empty


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


def scarce(failing: int) -> Any:
    """NumPy's `zeros` on a machine with memory for `failing` more arrays."""
    zeros, calls = np.zeros, 0

    def scarce(*arguments: Any, **options: Any) -> NDArray[Any]:
        nonlocal calls
        calls += 1
        if calls > failing:
            raise MemoryError
        return zeros(*arguments, **options)

    return scarce


@pytest.mark.parametrize("failing", range(8))
def test_a_step_without_memory_for_pages_changes_nothing(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layer groups with eight arrays, of which all grow or none."""
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


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_loading_pages_without_memory_changes_nothing(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
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


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=2).map(tuple),
    st.sampled_from([HUGE_PAGE - 1, HUGE_PAGE, HUGE_PAGE + 1, 3 * HUGE_PAGE // 2]),
    st.booleans(),
)
def test_large_arrays_begin_with_a_huge_page(some: tuple[int, ...], last: int, zeros: bool) -> None:
    array = in_huge_pages((*some, last), zeros=zeros)
    assert array.shape == (*some, last)
    assert array.flags.c_contiguous
    assert array.nbytes < HUGE_PAGE or array.ctypes.data % HUGE_PAGE == 0
    assert not zeros or not array.any()
    array.fill(1)


def q4_0(rows: int, columns: int) -> QuantTensor:
    blocks = random_blocks("Q4_0", (rows, columns), np.random.default_rng(rows))
    return QuantTensor("w", (rows, columns), GGMLQuantizationType.Q4_0, blocks, None)


@given(st.lists(st.integers(1, 70), min_size=2, max_size=5), st.integers(0, 5))
def test_tiles_of_all_matrices_lie_side_by_side(rows: list[int], place: int) -> None:
    parts: dict[str, list[Tensor]] = {str(index): [q4_0(count, 64)] for index, count in enumerate(rows)}
    names = [*parts]
    names.insert(place, "floats")
    parts["floats"] = [DenseTensor("w", "float32", np.ones((2, 64), np.float32))]
    made = matrices({name: parts[name] for name in names}, quantized=True)
    assert [*made] == names
    assert made.pop("floats").kind == "float32"
    tiles = [*made.values()]
    assert [matrix.rows for matrix in tiles] == rows
    assert [matrix.address for matrix in tiles[1:]] == [one.address + one.data.nbytes for one in tiles[:-1]]


def test_weights_begin_with_a_huge_page() -> None:
    made = matrices({"first": [q4_0(64, 1024)], "second": [q4_0(4096, 1024)]}, quantized=True)
    assert made["first"].address % HUGE_PAGE == 0


def test_pools_begin_with_a_huge_page() -> None:
    config = MistralConfig(num_hidden_layers=1, sliding_window=None)
    spec = CacheSpec.from_config(config, max_context=4096, page_size=64, max_chunk=4096)
    manager, cache = CacheManager(spec), KVCache(spec, "float16")
    cache.make_room(manager.plan([Chunk(manager.open(), [0] * 4096)]))
    for kind in ("keys", "values"):
        assert ctypes.c_int64.from_address(cache.address(0, kind)).value % HUGE_PAGE == 0


@pytest.mark.parametrize("quantized", [True, False])
def test_weights_without_memory_are_named(quantized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    part = QuantTensor("w", (2**30, 2**20), GGMLQuantizationType.Q4_0, np.zeros((0, 0), np.uint8), None)
    monkeypatch.setattr(QuantTensor, "numpy", scarce(0))
    size, remedy = ("633318.70", "4503599.63")[not quantized], "use --dtype int8, --quantize q4_0 or a smaller model"
    with pytest.raises(CapacityError, match=f"^no memory is left for weights of {size} GB: {remedy}$"):
        matrices({"w": [part]}, quantized=quantized)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_parts_that_were_joined_leave_the_memory(tmp_path: Path) -> None:
    shape, kind = (1024, 8192), GGMLQuantizationType.Q8_0
    blocks = random_blocks("Q8_0", shape, np.random.default_rng(0))
    names, orders = ("q", "k", "v"), (np.arange(shape[0])[::-1], np.arange(shape[0]), None)
    for name in names:
        (tmp_path / name).write_bytes(blocks.tobytes())
    mapped = [np.frombuffer(map_file(tmp_path / name), np.uint8).reshape(blocks.shape) for name in names]
    tensors = zip(names, mapped, orders, strict=True)
    parts = [QuantTensor(name, shape, kind, data, order) for name, data, order in tensors]
    before = resident_files()
    packing = matrices({"w": parts}, quantized=True)["w"].packing()
    assert resident_files() - before < blocks.nbytes / 2
    np.testing.assert_array_equal(packing.source[packing.places], np.concatenate([blocks[::-1], blocks, blocks]))
