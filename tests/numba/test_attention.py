"""The cache's kernels against float64: what `store` writes where, and what attention makes of what lies there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_numba.layouts import (
    KV_DTYPES,
    SLOT_BLOCK,
    attention_scratch,
    head_width,
    round_up,
    tokens_per_item,
)
from numba_kernels import EVERY_ISA, Memory, at, is_blank
from numpy.typing import NDArray

from mistral_portable.cache import visible
from mistral_portable.testing import compare
from mistral_portable.testing.rounding import EPSILON

EVERY_DTYPE = pytest.mark.parametrize("dtype", KV_DTYPES)
HEAD_DIMS = st.one_of(st.integers(1, 128), st.sampled_from([2, 16, 32, 64, 80, 96, 128]))
SEEDS = st.integers(0, 2**31)


class Cached:
    """The keys or the values of a lane of a layer, in the layout that `layouts.py` describes; poison at first.

    raw: the memory. numbers: [heads, slots / 16, 16, head_dim]. scales, of q8_0: [heads, slots / 16, 16, groups].
    """

    def __init__(self, memory: Memory, dtype: str, kind: str, heads: int, head_dim: int, slots: int) -> None:
        number, width = KV_DTYPES[dtype], head_width(head_dim)
        columns, groups = head_dim if kind == "keys" else width, width // 32 if dtype == "q8_0" else 0
        self.raw = memory.blank((heads, slots * (columns * number.itemsize + 2 * groups)), np.uint8)
        end = slots * columns * number.itemsize
        numbers, scales = self.raw[:, :end].view(number), self.raw[:, end:].view(np.float16)
        if kind == "keys":
            self.numbers = numbers.reshape(heads, slots // 16, columns, 16).swapaxes(2, 3)
            self.scales = scales.reshape(heads, slots // 16, groups, 16).swapaxes(2, 3)
        else:
            self.numbers = numbers.reshape(heads, slots // 16, 16, columns)[..., :head_dim]
            self.scales = scales.reshape(heads, slots // 16, 16, groups)

    def at(self, slots: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """The contents of these slots, [slots, heads, head_dim]."""
        values = self.numbers[:, slots // 16, slots % 16].astype(np.float64)
        if self.scales.size:
            with np.errstate(invalid="ignore"):
                values *= np.repeat(self.scales[:, slots // 16, slots % 16], 32, axis=-1)[..., : values.shape[-1]]
        return values.swapaxes(0, 1)

    def forget(self, slots: NDArray[np.integer[Any]]) -> None:
        """Poison these slots."""
        for part in (self.numbers, self.scales):
            part[:, slots // 16, slots % 16] = np.full(part.dtype.itemsize, 0xFF, np.uint8).view(part.dtype)


@dataclass
class Lane:
    keys: Cached
    values: Cached
    slots: int


def lanes_of(memory: Memory, dtype: str, heads: int, head_dim: int, slots: Sequence[int]) -> list[Lane]:
    """Lanes with so many slots each."""

    def part(kind: str, count: int) -> Cached:
        return Cached(memory, dtype, kind, heads, head_dim, count)

    return [Lane(part("keys", count), part("values", count), count) for count in slots]


def table_of(memory: Memory, lanes: Sequence[Lane]) -> NDArray[np.int64]:
    entries = [[lane.keys.raw.ctypes.data, lane.values.raw.ctypes.data, lane.slots] for lane in lanes]
    return memory.array(np.array(entries, np.int64))


# --- store ------------------------------------------------------------------------------------------------------------


def store(isa: str, dtype: str, kind: str, x: NDArray[np.float32], cells: Sequence[tuple[int, int]]) -> list[Cached]:
    """Store x [tokens, heads, head_dim] in lanes of 64 and 128 slots, token i at (lane, slot) `cells[i]`."""
    memory, (tokens, heads, head_dim) = Memory(), x.shape
    lanes = lanes_of(memory, dtype, heads, head_dim, (SLOT_BLOCK, 2 * SLOT_BLOCK))
    rows = memory.rows_of(x.reshape(tokens, heads * head_dim))
    where = [[memory.array(np.array(numbers, np.int32))] for numbers in zip(*cells, strict=True)]
    memory.run(isa, f"store_{kind}_{dtype}", [tokens], heads, head_dim, *at(rows), *where, table_of(memory, lanes))
    return [lane.keys if kind == "keys" else lane.values for lane in lanes]


CELLS = st.one_of(st.tuples(st.just(0), st.integers(0, 63)), st.tuples(st.just(1), st.integers(0, 127)))
KINDS = pytest.mark.parametrize("kind", ["keys", "values"])


@EVERY_ISA
@EVERY_DTYPE
@KINDS
@settings(max_examples=25)
@given(
    cells=st.lists(CELLS, min_size=1, max_size=40, unique=True),
    heads=st.integers(1, 3),
    head_dim=HEAD_DIMS,
    power=st.integers(-4, 4),
    seed=SEEDS,
)
def test_store(
    isa: str, dtype: str, kind: str, cells: list[tuple[int, int]], heads: int, head_dim: int, power: int, seed: int
) -> None:
    """Numbers rounded to the cache's type stand in their slots, and nothing stands anywhere else."""
    x = (np.random.default_rng(seed).standard_normal((len(cells), heads, head_dim)) * 10.0**power).astype(np.float32)
    x[0] = 0
    for index, stored in enumerate(store(isa, dtype, kind, x, cells)):
        mine = np.array([lane == index for lane, _ in cells])
        slots = np.array([slot for lane, slot in cells if lane == index], np.int64)
        found = stored.at(slots)
        if dtype == "q8_0":
            padded = np.pad(x[mine], ((0, 0), (0, 0), (0, -head_dim % 32)))
            scales = np.abs(padded).reshape(len(slots), heads, head_width(head_dim) // 32, 32).max(-1) / np.float32(127)
            assert np.array_equal(stored.scales[:, slots // 16, slots % 16].swapaxes(0, 1), scales.astype(np.float16))
            steps = np.repeat(scales.astype(np.float16).astype(np.float64), 32, axis=-1)[..., :head_dim]
            # Half a step, or more where the scale was rounded down and the largest number is beyond 127 steps.
            assert (np.abs(found - x[mine]) <= steps * (0.5 + 1e-4) + np.where(steps > 6e-5, 0, 1e-5)).all()
            assert (np.abs(stored.numbers[:, slots // 16, slots % 16]) <= 127).all()
        else:
            with np.errstate(over="ignore"):
                assert np.array_equal(found, x[mine].astype(KV_DTYPES[dtype]))
        stored.forget(slots)
        assert is_blank(stored.raw)


@EVERY_ISA
@EVERY_DTYPE
@KINDS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_store_keeps_what_is_not_finite(isa: str, dtype: str, kind: str, value: float) -> None:
    """At least in its block of 32."""
    x = np.ones((1, 2, 40), np.float32)
    x[0, 1, 35] = value
    found = store(isa, dtype, kind, x, [(0, 5)])[0].at(np.array([5]))
    assert not np.isfinite(found[0, 1, 35])
    assert np.isfinite(found[0, 0]).all()
    assert np.isfinite(found[0, 1, :32]).all()


# --- attention --------------------------------------------------------------------------------------------------------


class Scene:
    """A step over sequences of (length, tokens): the last `tokens` of each are the step's, and are in the cache.

    The cache holds random numbers, where `store` would have put a sequence's newest ones. Else it is NaN.
    """

    def __init__(
        self,
        dtype: str,
        sequences: Sequence[tuple[int, int]],
        window: int | None,
        shape: tuple[int, int, int],
        random: np.random.Generator,
        spread: float = 1.0,
    ) -> None:
        """shape: key/value heads, query heads for each, head_dim. spread: of the scores, about."""
        self.heads, self.group, self.head_dim = shape
        self.dtype, self.window, self.sequences = dtype, window, sequences
        longest, chunk = (max(numbers) for numbers in zip(*sequences, strict=True))
        self.ring = longest if window is None else window + chunk - 1
        self.scale = self.head_dim**-0.5
        self.memory = Memory()
        slots = [round_up(min(length, self.ring), SLOT_BLOCK) for length, _ in sequences]
        self.lanes = lanes_of(self.memory, dtype, self.heads, self.head_dim, slots)
        for lane, positions in zip(self.lanes, self.cached(), strict=True):
            for part in (lane.keys, lane.values):
                self._fill(part, random)
            rest = np.setdiff1d(np.arange(lane.slots), positions % self.ring)
            if dtype != "q8_0":
                lane.keys.forget(rest)
                lane.values.forget(rest)
            else:
                lane.keys.scales[:, rest // 16, rest % 16] = np.nan
                lane.values.scales[:, rest // 16, rest % 16] = np.nan
        tokens = sum(count for _, count in sequences)
        self.q = (random.standard_normal((tokens, self.heads * self.group, self.head_dim)) * spread).astype(np.float32)

    def _fill(self, part: Cached, random: np.random.Generator) -> None:
        if self.dtype == "q8_0":
            part.numbers[:] = random.integers(-127, 128, part.numbers.shape)
            part.scales[:] = random.uniform(0.005, 0.02, part.scales.shape)
        else:
            part.numbers[:] = random.standard_normal(part.numbers.shape)

    def cached(self) -> list[NDArray[np.int64]]:
        """The positions that each sequence's lane holds."""
        return [np.arange(max(0, length - self.ring), length) for length, _ in self.sequences]

    def run(self, isa: str, thread: int = 0) -> NDArray[np.float32]:
        """The kernel's output, [tokens, heads, head_dim]."""
        memory, (tokens, heads, _) = self.memory, self.q.shape
        size, items, first = tokens_per_item(self.group), [], 0
        for lane, (length, count) in enumerate(self.sequences):
            for start in range(0, count, size):
                items.append((lane, first + start, min(size, count - start), length - count + start, length - 1))
            first += count
        columns = heads * self.head_dim
        out = memory.rows(tokens, columns)
        scratch = memory.blank((2, attention_scratch(self.group, self.head_dim)), np.uint8)
        memory.run(
            isa,
            f"attention_{self.dtype}",
            *([len(items)], [memory.array(np.array(items, np.int64))], heads, self.heads, self.head_dim),
            *(self.window or 0, self.ring, self.scale),
            *at(memory.rows_of(self.q.reshape(tokens, columns))),
            *at(out),
            table_of(memory, self.lanes),
            *at(scratch),
            thread=thread,
        )
        assert is_blank(scratch[1 - thread]), "wrote to another thread's scratch"
        assert is_blank(out[tokens:])
        assert is_blank(out[:, columns:])
        return out[:tokens, :columns].reshape(self.q.shape)

    def check(self, out: NDArray[np.float32]) -> None:
        """Against float64; plain float32 runs, of numbers that are moved by up to an epsilon, are the measure."""
        random = np.random.default_rng(0)

        def nudged(x: NDArray[Any]) -> NDArray[np.float32]:
            return (x * (1 + random.uniform(-1, 1, x.shape) * EPSILON["float32"])).astype(np.float32)

        naive = [self._expected(nudged) for _ in range(3 if out.size >= 4096 else 8 + 64 // out.size)]
        comparison = compare(out, self._expected(lambda x: x.astype(np.float64)), naive, "float32")
        assert comparison.problem == ""

    def _expected(self, read: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
        """Attention over the visible keys, in the arithmetic of what `read` gives, sums taken one by one."""
        parts, first = [], 0
        for lane, positions, (length, count) in zip(self.lanes, self.cached(), self.sequences, strict=True):
            keys, values = (
                np.repeat(read(part.at(positions % self.ring)), self.group, axis=1) for part in (lane.keys, lane.values)
            )
            q = read(self.q[first : first + count] * np.float32(self.scale))
            mask = visible(np.arange(length - count, length)[:, None], positions[None, :], self.window)
            scores = np.zeros((len(positions), *q.shape[:2]), q.dtype)
            for j in range(self.head_dim):
                scores += keys[:, None, :, j] * q[None, :, :, j]
            scores = np.where(mask.T[:, :, None], scores, -np.inf)
            weights = np.exp(scores - scores.max(axis=0))
            total, out = np.zeros(q.shape[:2], q.dtype), np.zeros(q.shape, q.dtype)
            for weight, value in zip(weights, values, strict=True):
                total += weight
                out += weight[:, :, None] * value
            parts.append(out / total[:, :, None])
            first += count
        return np.concatenate(parts)


WINDOWS = st.one_of(st.none(), st.integers(1, 8), st.integers(9, 150))
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 8), HEAD_DIMS)


@st.composite
def sequences(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Up to three (length, tokens of the step)."""
    chunks = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    return [(chunk + draw(st.integers(0, 300)), chunk) for chunk in chunks]


@EVERY_ISA
@EVERY_DTYPE
@settings(max_examples=30)
@given(
    sequences=sequences(),
    window=WINDOWS,
    shape=SHAPES,
    spread=st.sampled_from([0.1, 1, 10]),
    thread=st.integers(0, 1),
    seed=SEEDS,
)
def test_attention(
    isa: str,
    dtype: str,
    sequences: list[tuple[int, int]],
    window: int | None,
    shape: tuple[int, int, int],
    spread: float,
    thread: int,
    seed: int,
) -> None:
    scene = Scene(dtype, sequences, window, shape, np.random.default_rng(seed), spread)
    scene.check(scene.run(isa, thread))


@EVERY_ISA
@EVERY_DTYPE
@pytest.mark.parametrize("window", [1, 2, 8, 63, 64, 65, 100])
def test_lengths_around_the_window_and_twice_the_window(isa: str, dtype: str, window: int) -> None:
    """Token by token, and with a second token."""
    random = np.random.default_rng(window)
    for length in {length for w in (window, 2 * window) for length in (w - 1, w, w + 1)} - {0}:
        for tokens in {1, min(2, length)}:
            scene = Scene(dtype, [(length, tokens)], window, (1, 2, 16), random)
            scene.check(scene.run(isa))


@EVERY_ISA
@EVERY_DTYPE
def test_scores_that_differ_by_thousands(isa: str, dtype: str) -> None:
    """The largest takes all."""
    scene = Scene(dtype, [(100, 3)], None, (1, 4, 32), np.random.default_rng(6), spread=1e4)
    scene.check(scene.run(isa))


@EVERY_ISA
@EVERY_DTYPE
def test_nan_stays_with_its_query(isa: str, dtype: str) -> None:
    scene = Scene(dtype, [(100, 5)], 50, (2, 3, 32), np.random.default_rng(7))
    scene.q[2, 4, 7] = np.nan
    expected = np.zeros(scene.q.shape, bool)
    expected[2, 4] = True
    assert np.array_equal(np.isnan(scene.run(isa)), expected)
