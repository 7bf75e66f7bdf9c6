"""Kernels of the cache, against float64: `store` writes keys and values to slots, and attention reads them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_numba.layouts import KV_BESIDE, KV_DTYPES, head_width, round_up
from mistral_portable_numba.segments import attention_scratch, part_bytes, takes_all_heads, tokens_per_item
from numba_kernels import EVERY_ISA, Argument, Memory, at, is_blank
from numpy.typing import NDArray

from mistral_portable.cache import first_visible, visible
from mistral_portable.testing import compare
from mistral_portable.testing.rounding import EPSILON

EVERY_DTYPE = pytest.mark.parametrize("dtype", KV_DTYPES)
HEAD_DIMS = st.one_of(st.integers(1, 128), st.sampled_from([2, 16, 32, 64, 80, 96, 128]))
SEEDS = st.integers(0, 2**31)
STEPS = 32512
"""Steps of a 16-bit number, `kernels/byte_pages.py`."""


class Pool:
    """The keys or the values of a layer, in the layout of `layouts.py`, filled with poison at first.

    raw: the memory. numbers: [pages, heads, head_dim / n, 64, n] of keys, [pages, heads, groups, 64 / n, 32, n] of
    values; n: `KV_BESIDE`. scales, for q8_0: [pages, heads, groups, 64].
    """

    def __init__(self, memory: Memory, dtype: str, kind: str, heads: int, head_dim: int, pages: int) -> None:
        number, width, n = KV_DTYPES[dtype], head_width(head_dim), KV_BESIDE[dtype]
        columns, groups = round_up(head_dim, n) if kind == "keys" else width, width // 32 if dtype == "q8_0" else 0
        self.raw = memory.blank((pages, heads, 64 * (columns * number.itemsize + 2 * groups)), np.uint8)
        end = 64 * columns * number.itemsize
        numbers, scales = self.raw[..., :end].view(number), self.raw[..., end:].view(np.float16)
        self.numbers = numbers.reshape(pages, heads, -1, *((64, n) if kind == "keys" else (64 // n, 32, n)))
        self.scales = scales.reshape(pages, heads, groups, 64)
        self.head_dim = head_dim

    def at(self, slots: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """The contents of these slots, [slots, heads, head_dim]."""
        values = self.numbers_at(slots)[..., : self.head_dim].astype(np.float64)
        if self.scales.size:
            with np.errstate(invalid="ignore"):
                values *= np.repeat(self.scales_at(slots), 32, axis=-1)[..., : values.shape[-1]]
        return values

    def scales_at(self, slots: NDArray[np.integer[Any]]) -> NDArray[np.float16]:
        """The scales of these slots, [slots, heads, groups]."""
        scales: NDArray[np.float16] = self.scales[slots // 64, :, :, slots % 64]
        return scales

    def forget(self, slots: NDArray[np.integer[Any]]) -> None:
        """Poison these slots."""
        poison = [np.full(part.itemsize, 0xFF, np.uint8).view(part.dtype) for part in (self.numbers, self.scales)]
        self.numbers[self._places(slots)], self.scales[slots // 64, :, :, slots % 64] = poison

    def numbers_at(self, slots: NDArray[np.integer[Any]]) -> NDArray[Any]:
        """The stored numbers of these slots, with padding, [slots, heads, columns]."""
        found: NDArray[Any] = self.numbers[self._places(slots)].reshape(len(slots), self.numbers.shape[1], -1)
        return found

    def _places(self, slots: NDArray[np.integer[Any]]) -> tuple[Any, ...]:
        every, page, slot, n = slice(None), slots // 64, slots % 64, self.numbers.shape[-1]
        keys = self.numbers.ndim == 5
        return (page, every, every, slot) if keys else (page, every, every, slot // n, every, slot % n)


# --- store ------------------------------------------------------------------------------------------------------------


PAGES = 3


def store(isa: str, dtype: str, kind: str, x: NDArray[np.float32], slots: Sequence[int]) -> Pool:
    """Store x [tokens, heads, head_dim] in a pool of PAGES pages, token i in `slots[i]`."""
    memory, (tokens, heads, head_dim) = Memory(), x.shape
    pool = Pool(memory, dtype, kind, heads, head_dim, PAGES)
    rows, places = memory.rows_of(x.reshape(tokens, heads * head_dim)), memory.array(np.array(slots, np.int32))
    memory.run(isa, f"store_{kind}_{dtype}", [tokens], heads, head_dim, *at(rows), [places], [pool.raw])
    return pool


KINDS = pytest.mark.parametrize("kind", ["keys", "values"])


@EVERY_ISA
@EVERY_DTYPE
@KINDS
@settings(max_examples=25)
@given(
    places=st.lists(st.integers(0, 64 * PAGES - 1), min_size=1, max_size=40, unique=True),
    heads=st.integers(1, 3),
    head_dim=HEAD_DIMS,
    power=st.integers(-4, 4),
    seed=SEEDS,
)
def test_store(
    isa: str, dtype: str, kind: str, places: list[int], heads: int, head_dim: int, power: int, seed: int
) -> None:
    """The slots hold the numbers rounded to the cache's type, and nothing else is written."""
    x = (np.random.default_rng(seed).standard_normal((len(places), heads, head_dim)) * 10.0**power).astype(np.float32)
    x[0] = 0
    stored, slots = store(isa, dtype, kind, x, places), np.array(places)
    found = stored.at(slots)
    if dtype == "q8_0":
        padded = np.pad(x, ((0, 0), (0, 0), (0, -head_dim % 32)))
        scales = np.abs(padded).reshape(len(slots), heads, head_width(head_dim) // 32, 32).max(-1) / np.float32(127)
        assert np.array_equal(stored.scales_at(slots), scales.astype(np.float16))
        steps = np.repeat(scales.astype(np.float16).astype(np.float64), 32, axis=-1)[..., :head_dim]
        # Half a step; more where rounding the scale down put the largest number beyond 127 steps.
        assert (np.abs(found - x) <= steps * (0.5 + 1e-4) + np.where(steps > 6e-5, 0, 1e-5)).all()
        assert (np.abs(found) <= 127 * steps).all()
    else:
        with np.errstate(over="ignore"):
            assert np.array_equal(found, x.astype(KV_DTYPES[dtype]))
    stored.forget(slots)
    assert is_blank(stored.raw)


@EVERY_ISA
@EVERY_DTYPE
@KINDS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_store_keeps_numbers_that_are_not_finite(isa: str, dtype: str, kind: str, value: float) -> None:
    """A number that is not finite spoils no more than its block of 32."""
    x = np.ones((1, 2, 40), np.float32)
    x[0, 1, 35] = value
    found = store(isa, dtype, kind, x, [69]).at(np.array([69]))
    assert not np.isfinite(found[0, 1, 35])
    assert np.isfinite(found[0, 0]).all()
    assert np.isfinite(found[0, 1, :32]).all()


# --- attention --------------------------------------------------------------------------------------------------------


class Scene:
    """A step over sequences of (length, tokens): the last `tokens` of each are the step's, and are in the cache.

    The pages of the sequences lie in drawn places of the pools. They hold random numbers at the positions that the step
    sees. All other slots are NaN: before the window, after the last position, and in other pages.
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
        """shape: key/value heads, query heads for each, head_dim. spread: approximate spread of the scores."""
        self.heads, self.group, self.head_dim = shape
        self.dtype, self.window, self.sequences = dtype, window, sequences
        self.scale = self.head_dim**-0.5
        self.memory = Memory()
        self.first = [first_visible(length - count, window) for length, count in sequences]
        spans = [(first // 64, -(-length // 64)) for first, (length, _) in zip(self.first, sequences, strict=True)]
        numbers = iter(random.permutation(sum(end - begin for begin, end in spans) + 2).tolist())
        self.tables = [[next(numbers) for _ in range(*span)] for span in spans]
        pages = sum(map(len, self.tables)) + 2
        self.keys, self.values = (
            Pool(self.memory, dtype, kind, self.heads, self.head_dim, pages) for kind in ("keys", "values")
        )
        unseen = np.setdiff1d(np.arange(64 * pages), np.concatenate(self.slots()))
        for part in (self.keys, self.values):
            if dtype == "q8_0":
                part.numbers[:] = random.integers(-127, 128, part.numbers.shape)
                part.scales[:] = random.uniform(0.005, 0.02, part.scales.shape)
            else:
                part.numbers[:] = random.standard_normal(part.numbers.shape)
            part.forget(unseen)
        tokens = sum(count for _, count in sequences)
        self.q = (random.standard_normal((tokens, self.heads * self.group, self.head_dim)) * spread).astype(np.float32)

    def slots(self) -> list[NDArray[np.int64]]:
        """The slots of the positions that each sequence reads, in order."""
        found = []
        for first, table, (length, _) in zip(self.first, self.tables, self.sequences, strict=True):
            positions = np.arange(first, length)
            found.append(np.array(table)[positions // 64 - first // 64] * 64 + positions % 64)
        return found

    def run(self, isa: str, thread: int = 0) -> NDArray[np.float32]:
        """The kernel's output, [tokens, heads, head_dim]."""
        memory, (tokens, heads, _) = self.memory, self.q.shape
        size, items, token, width = tokens_per_item(self.group), [], 0, max(map(len, self.tables))
        parts = 0
        for row, (oldest, (length, count)) in enumerate(zip(self.first, self.sequences, strict=True)):
            for start in range(0, count, size):
                origin, some, position = row * width - oldest // 64, min(size, count - start), length - count + start
                items.append((token + start, some, position, origin))
                if takes_all_heads(some, heads):
                    segments = (position + some - 1) // 512 - first_visible(position, self.window) // 512 + 1
                    parts += segments * part_bytes(some, heads, self.heads, self.head_dim)
            token += count
        pages = [table + [0] * (width - len(table)) for table in self.tables]
        columns = heads * self.head_dim
        out = memory.rows(tokens, columns)
        scratch = memory.blank((2, attention_scratch(heads, self.heads, self.head_dim)), np.uint8)
        arguments: list[Argument] = [
            *([len(items)], [memory.array(np.array(items, np.int64))], heads, self.heads, self.head_dim),
            *(self.window or 0, self.scale),
            *at(memory.rows_of(self.q.reshape(tokens, columns))),
            *at(out),
            [self.keys.raw, self.values.raw],
            [memory.array(np.array(pages, np.int32))],
            [memory.blank(parts, np.uint8)],
            *at(scratch),
        ]
        for merges in (0, 1):
            memory.run(isa, f"attention_{self.dtype}", *arguments, merges, thread=thread)
        assert is_blank(scratch[1 - thread]), "wrote to another thread's scratch"
        assert is_blank(out[tokens:])
        assert is_blank(out[:, columns:])
        return out[:tokens, :columns].reshape(self.q.shape)

    def check(self, out: NDArray[np.float32]) -> None:
        """Compare with float64. The limit is the error of plain float32 runs on numbers moved by up to an epsilon; with
        q8_0, queries and weights are moved by up to a step of the 16-bit numbers that they are rounded to."""
        random = np.random.default_rng(0)

        def nudged(x: NDArray[Any]) -> NDArray[np.float32]:
            return (x * (1 + random.uniform(-1, 1, x.shape) * EPSILON["float32"])).astype(np.float32)

        steps = random if self.dtype == "q8_0" else None
        naive = [self._expected(nudged, steps) for _ in range(3 if out.size >= 4096 else 8 + 64 // out.size)]
        comparison = compare(out, self._expected(lambda x: x.astype(np.float64)), naive, "float32")
        assert comparison.problem == ""

    def _expected(
        self, read: Callable[[NDArray[Any]], NDArray[Any]], steps: np.random.Generator | None = None
    ) -> NDArray[Any]:
        """Attention over the visible keys in the type that `read` returns, summed key by key.

        steps: moves queries and weights by up to a step.
        """
        parts, token = [], 0
        for slots, first, (length, count) in zip(self.slots(), self.first, self.sequences, strict=True):
            positions = np.arange(first, length)
            keys, values = (np.repeat(read(part.at(slots)), self.group, axis=1) for part in (self.keys, self.values))
            q = read(self.q[token : token + count] * np.float32(self.scale))
            if steps:
                q += (steps.uniform(-1, 1, q.shape) * np.abs(q).max(axis=-1, keepdims=True) / STEPS).astype(q.dtype)
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
            if steps:
                for page in np.unique(positions // 64):
                    some = positions // 64 == page
                    out += self._moved(slots[some], weights[some], steps)
            parts.append(out / total[:, :, None])
            token += count
        return np.concatenate(parts)

    def _moved(self, slots: NDArray[np.int64], weights: NDArray[Any], steps: np.random.Generator) -> NDArray[Any]:
        """The change of a page's sums if weights [slots, tokens, heads] times scales move by up to a step."""
        scales, codes = (
            np.repeat(part, self.group, axis=1)[:, None]
            for part in (self.values.scales_at(slots), self.values.numbers_at(slots))
        )
        largest = (weights[..., None] * scales).max(axis=0, keepdims=True)
        amounts = steps.uniform(-1, 1, (*weights.shape, scales.shape[-1])) * largest / STEPS
        moved: NDArray[Any] = (np.repeat(amounts, 32, axis=-1) * codes).sum(axis=0)[..., : self.head_dim]
        return moved.astype(weights.dtype)


WINDOWS = st.one_of(st.none(), st.integers(1, 8), st.integers(9, 150))
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 8), HEAD_DIMS)


@st.composite
def sequences(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Draw up to three (length, tokens of the step)."""
    chunks = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    return [(chunk + draw(st.integers(0, 300)), chunk) for chunk in chunks]


@EVERY_ISA
@EVERY_DTYPE
@pytest.mark.parametrize("window", [None, 600])
def test_several_segments(isa: str, dtype: str, window: int | None) -> None:
    """Few tokens and more of them, in one to four segments of 512 positions."""
    random = np.random.default_rng(11)
    for sequences in ([(512, 1), (513, 2)], [(1030, 1)], [(1600, 3), (40, 1)], [(1600, 40), (1030, 1)]):
        scene = Scene(dtype, sequences, window, (2, 4, 32), random)
        scene.check(scene.run(isa))


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
    """Steps of one token and of two."""
    random = np.random.default_rng(window)
    for length in {length for w in (window, 2 * window) for length in (w - 1, w, w + 1)} - {0}:
        for tokens in {1, min(2, length)}:
            scene = Scene(dtype, [(length, tokens)], window, (1, 2, 16), random)
            scene.check(scene.run(isa))


@EVERY_ISA
@EVERY_DTYPE
def test_scores_that_differ_by_thousands(isa: str, dtype: str) -> None:
    """The largest score takes all of the softmax."""
    scene = Scene(dtype, [(100, 3)], None, (1, 4, 32), np.random.default_rng(6), spread=1e4)
    scene.check(scene.run(isa))


@EVERY_ISA
@EVERY_DTYPE
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-30])
def test_queries_of_nothing_and_hardly_more(isa: str, dtype: str, size: float) -> None:
    """All keys weigh alike, whether few queries ask or many."""
    for tokens in (2, 40):
        scene = Scene(dtype, [(100, tokens)], None, (1, 4, 32), np.random.default_rng(8))
        scene.q[1] = size
        scene.check(scene.run(isa))


@EVERY_ISA
@EVERY_DTYPE
def test_values_of_nothing(isa: str, dtype: str) -> None:
    scene = Scene(dtype, [(100, 3)], None, (1, 4, 32), np.random.default_rng(9))
    for part in (scene.values.numbers, scene.values.scales):
        part[scene.slots()[0] // 64] = 0
    assert not scene.run(isa).any()


@EVERY_ISA
@EVERY_DTYPE
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nan_stays_with_its_query(isa: str, dtype: str, wrong: float) -> None:
    scene = Scene(dtype, [(100, 5)], 50, (2, 3, 32), np.random.default_rng(7))
    scene.q[2, 4, 7] = wrong
    expected = np.zeros(scene.q.shape, bool)
    expected[2, 4] = True
    assert np.array_equal(np.isnan(scene.run(isa)), expected)
