"""The small kernels against float64: embeddings, RMS norm, RoPE, SwiGLU, addition, selection of rows, and int8
activations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mistral_portable_numba.compiler.isa import ISAS
from numba_activations import Codes, blank_codes
from numba_kernels import EVERY_ISA, Memory, at, is_blank
from numpy.typing import NDArray
from weights.files import bfloat16

EPS = 2.0**-23

TOKENS, SEEDS = st.integers(0, 40), st.integers(0, 2**31)
COLUMNS = st.integers(1, 100)


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    """Normal numbers, with another scale in each row."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(shape) * 10 ** random.uniform(-4, 4, (shape[0], 1))).astype(np.float32)


@EVERY_ISA
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@given(ids=st.lists(st.integers(-2, 21), max_size=20), columns=COLUMNS, seed=SEEDS)
def test_embedding(isa: str, dtype: str, ids: list[int], columns: int, seed: int) -> None:
    """Rows of a table of 20, and NaN for ids that it does not have: never other memory."""
    memory = Memory()
    values = np.random.default_rng(seed).standard_normal((20, columns)).astype(np.float32)
    stored = bfloat16(values) if dtype == "bfloat16" else values.astype(dtype)
    wide = (stored.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else stored.astype(np.float32)
    table, tokens = memory.array(stored), memory.array(np.array(ids, np.int32))
    out = memory.rows(len(ids), columns)
    memory.run(isa, f"embedding_{dtype}", [len(ids)], 20, columns, table, [tokens], *at(out))
    expected = [wide[id] if 0 <= id < 20 else np.full(columns, np.nan) for id in ids]
    np.testing.assert_array_equal(out[: len(ids), :columns], np.reshape(expected, (len(ids), columns)))
    assert is_blank(out[len(ids) :])


@EVERY_ISA
@given(tokens=TOKENS, columns=COLUMNS, seed=SEEDS, eps=st.sampled_from([1e-5, 1e-6]))
def test_rms_norm(isa: str, tokens: int, columns: int, seed: int, eps: float) -> None:
    memory, x = Memory(), normal(seed, tokens, columns)
    weight = normal(seed + 1, 1, columns)
    out = memory.rows(tokens, columns)
    memory.run(isa, "rms_norm", [tokens], columns, *at(memory.rows_of(x)), *at(out), memory.rows_of(weight), eps)
    wide = x.astype(np.float64)
    ref = wide / np.sqrt(np.mean(wide * wide, axis=1, keepdims=True) + eps) * weight
    np.testing.assert_allclose(out[:tokens, :columns], ref, rtol=8 * EPS)
    assert is_blank(out[tokens:])


@EVERY_ISA
def test_rms_norm_of_zeros_and_nan(isa: str) -> None:
    memory, x = Memory(), np.ones((3, 20), np.float32)
    x[0], x[1, 19] = 0, np.nan
    out, weight = memory.rows(3, 20), memory.rows_of(np.ones((1, 20), np.float32))
    memory.run(isa, "rms_norm", [3], 20, *at(memory.rows_of(x)), *at(out), weight, 1e-5)
    assert (out[0, :20] == 0).all()
    assert np.isnan(out[1, :20]).all()
    np.testing.assert_allclose(out[2, :20], 1, rtol=1e-5)


@EVERY_ISA
@given(tokens=TOKENS, heads=st.integers(1, 4), half=st.integers(1, 70), seed=SEEDS)
def test_rope(isa: str, tokens: int, heads: int, half: int, seed: int) -> None:
    memory, x = Memory(), normal(seed, tokens, heads * 2 * half)
    angles = np.random.default_rng(seed).uniform(0, 7, (tokens, half))
    turns = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    out = memory.rows(tokens, x.shape[1])
    memory.run(isa, "rope", [tokens], heads, 2 * half, *at(memory.rows_of(x)), *at(out), [memory.array(turns)])
    a, b = np.split(x.astype(np.float64).reshape(tokens, heads, 2 * half), 2, axis=-1)
    cos, sin = turns[:, :1], turns[:, 1:]
    ref = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    size = np.tile(np.abs(a) + np.abs(b), 2)
    got = out[:tokens, : x.shape[1]].reshape(ref.shape)
    assert (np.abs(got - ref) <= 2 * EPS * size).all()
    assert is_blank(out[tokens:])
    assert is_blank(out[:, x.shape[1] :])


GATES = st.one_of(
    st.sampled_from([0.0, -0.0, 1e4, -1e4, 87.5, -87.5, 88.5, -88.5, 1e-38, -1e-38]), st.floats(-100, 100, width=32)
)


@EVERY_ISA
@given(gates=st.lists(GATES, min_size=1, max_size=100), tokens=TOKENS, seed=SEEDS)
def test_silu_mul(isa: str, gates: list[float], tokens: int, seed: int) -> None:
    memory, columns = Memory(), len(gates)
    up = normal(seed, tokens, columns)
    gate = np.random.default_rng(seed).permuted(np.tile(np.array(gates, np.float32), (tokens, 1)), axis=1)
    out = memory.rows(tokens, columns)
    memory.run(isa, "silu_mul", [tokens], columns, *at(memory.rows_of(gate)), *at(memory.rows_of(up)), *at(out))
    wide = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        ref = wide / (1 + np.exp(-wide)) * up
    # exp(-gate) is clamped, so a gate of -1e4 leaves some 1e-34.
    assert (np.abs(out[:tokens, :columns] - ref) <= 4 * EPS * np.abs(ref) + 1e-33 * np.abs(up)).all()
    assert is_blank(out[tokens:])


@EVERY_ISA
def test_silu_mul_of_numbers_that_are_not_finite(isa: str) -> None:
    memory = Memory()
    gate = np.array([[np.inf, -np.inf, np.nan, 1, 1, -1e4, 1]], np.float32)
    up = np.array([[1, 1, 1, np.inf, np.nan, np.nan, 1]], np.float32)
    out = memory.rows(1, 7)
    memory.run(isa, "silu_mul", [1], 7, *at(memory.rows_of(gate)), *at(memory.rows_of(up)), *at(out))
    assert not np.isfinite(out[0, :6]).any()
    assert np.isfinite(out[0, 6])


@EVERY_ISA
@given(tokens=TOKENS, columns=COLUMNS, seed=SEEDS)
def test_weigh(isa: str, tokens: int, columns: int, seed: int) -> None:
    """Where a factor is 0, infinity and NaN become 0, too."""
    memory, random = Memory(), np.random.default_rng(seed)
    x = random.choice(np.array([np.inf, -np.inf, np.nan, 1.5, -0.3], np.float32), (tokens, columns))
    for kernel, width in (("weigh", columns), ("weigh_rows", 1)):
        factors = random.choice(np.array([0, 0, 1, -2.5], np.float32), (tokens, width))
        out = memory.rows(tokens, columns)
        memory.run(isa, kernel, [tokens], columns, *at(memory.rows_of(x)), *at(memory.rows_of(factors)), *at(out))
        with np.errstate(invalid="ignore"):
            expected = np.where(factors == 0, np.float32(0), x * factors)
        assert np.array_equal(out[:tokens, :columns], expected, equal_nan=True)
        assert is_blank(out[tokens:])


@EVERY_ISA
@given(tokens=TOKENS, columns=COLUMNS, seed=SEEDS)
def test_add(isa: str, tokens: int, columns: int, seed: int) -> None:
    memory, a, b = Memory(), normal(seed, tokens, columns), normal(seed + 1, tokens, columns)
    out, biased = memory.rows(tokens, columns), memory.rows_of(a)
    memory.run(isa, "add", [tokens], columns, *at(memory.rows_of(a)), *at(memory.rows_of(b)), *at(out))
    assert np.array_equal(out[:tokens, :columns], a + b)
    assert is_blank(out[tokens:])
    bias = memory.rows_of(normal(seed + 2, 1, columns))
    memory.run(isa, "add", [tokens], columns, *at(biased), bias, 0, *at(biased))
    assert np.array_equal(biased[:tokens, :columns], a + bias[0, :columns])


@EVERY_ISA
@given(tokens=st.integers(1, 40), columns=COLUMNS, start=st.integers(0, 50), seed=SEEDS, data=st.data())
def test_take(isa: str, tokens: int, columns: int, start: int, seed: int, data: st.DataObject) -> None:
    """Selected rows, and a range of columns."""
    memory, x = Memory(), normal(seed, tokens, start + columns)
    source = memory.rows_of(x)
    rows = data.draw(st.lists(st.integers(0, tokens - 1), max_size=20))
    picked, cut = memory.rows(len(rows), columns), memory.rows(tokens, columns)
    requested = memory.array(np.array(rows, np.int32))
    memory.run(isa, "take", [len(rows)], columns, *at(source), *at(picked), [requested])
    memory.run(isa, "take", [tokens], columns, source[:, start:], source.strides[0], *at(cut), 0)
    assert np.array_equal(picked[: len(rows), :columns], x[rows, :columns])
    assert np.array_equal(cut[:tokens, :columns], x[:, start:])
    for out, count in ((picked, len(rows)), (cut, tokens)):
        assert is_blank(out[count:])
        assert is_blank(out[:, columns:])


# --- activations as int8 ----------------------------------------------------------------------------------------------


class Quantized:
    """The result of the kernel `quantize` for x [tokens, columns]. All written bytes are checked, if x is finite."""

    def __init__(self, isa: str, x: NDArray[np.float32]) -> None:
        memory, (tokens, columns), by = Memory(), x.shape, ISAS[isa]
        outputs = [memory.array(blank) for blank in blank_codes(tokens, columns)]
        places = [place for array in outputs for place in at(array)]
        memory.run(isa, "quantize", [tokens], columns, *at(memory.rows_of(x)), *places)
        found = Codes.read(outputs, tokens, columns, by)
        for made, expected in zip(outputs, found.laid_out(by), strict=True):
            assert np.array_equal(made, expected) or not np.isfinite(x).all()
        self.codes, self.scales = found.codes, found.scales
        self.steps = np.repeat(self.scales, 128, axis=1)[:, :columns].astype(np.float64)


WIDTHS = st.integers(1, 20).map(lambda blocks: 32 * blocks)


def blocks_of(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """[tokens, columns] -> [tokens, blocks, 128], the last block padded with zeros."""
    return np.pad(x, ((0, 0), (0, -x.shape[1] % 128))).reshape(len(x), -(-x.shape[1] // 128), 128)


@EVERY_ISA
@given(tokens=TOKENS, columns=WIDTHS, power=st.integers(-30, 30), seed=SEEDS)
def test_quantize(isa: str, tokens: int, columns: int, power: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = normal(seed, tokens, columns) * np.float32(10.0**power)
    x[random.random(x.shape) < 0.1] = 0
    made = Quantized(isa, x)
    largest = np.abs(blocks_of(x)).max(axis=-1)
    assert np.array_equal(made.scales, largest / np.float32(127))
    steps = np.divide(x, made.steps, out=np.zeros(x.shape), where=made.steps > 0)
    assert (np.abs(made.codes - steps) <= 0.5 + 1e-4).all()


@EVERY_ISA
def test_quantize_rounds_ties_to_even(isa: str) -> None:
    x = np.zeros((1, 128), np.float32)
    x[0, :9] = 127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 126.5, 3.25
    assert Quantized(isa, x).codes[0, :9].tolist() == [127, 0, 2, 2, 0, -2, -126, 126, 3]


@EVERY_ISA
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-40, 1e-38, 1e-37, 3.4e38, -3.4e38])
def test_quantize_at_the_ends_of_float32(isa: str, value: float) -> None:
    """Numbers that are too small for a scale become zeros."""
    x = np.full((2, 160), value, np.float32)
    x[1, 1::2] = 0
    made = Quantized(isa, x)
    assert (np.abs(made.codes * made.steps - x) <= np.maximum(np.abs(x) / 127, 1e-36)).all()


@EVERY_ISA
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 17, 159])
def test_quantize_gives_non_finite_blocks_a_non_finite_scale(isa: str, value: float, column: int) -> None:
    """Only the scale of that block is not finite; other blocks are unchanged."""
    x = np.ones((2, 160), np.float32)
    x[0, column] = value
    made = Quantized(isa, x)
    bad = np.zeros((2, 2), bool)
    bad[0, column // 128] = True
    assert np.array_equal(~np.isfinite(made.scales), bad)
    assert (made.codes[1] == 127).all()
