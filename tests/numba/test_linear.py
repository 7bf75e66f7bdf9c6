"""Linear layers against float64: int8 activations times blocks of every format, and floats times float matrices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_numba.compiler.host import host_isa
from mistral_portable_numba.layouts import BLOCKS, DENSE_SCRATCH
from numba_kernels import EVERY_ISA, Memory, at, is_blank
from numba_linear import HALVES, KINDS, Expected, PackedWeight, signed_blocks
from numpy.typing import NDArray

from mistral_portable.testing.rounding import round_to
from mistral_portable.weights.names import half_split_order

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
ROWS, TOKENS, SEEDS = st.integers(1, 70), st.integers(1, 40), st.integers(0, 2**31)


class Activations:
    """Random int8 codes [tokens, columns], and scales of very different sizes."""

    def __init__(self, tokens: int, columns: int, random: np.random.Generator) -> None:
        self.codes = random.integers(-127, 128, (tokens, columns)).astype(np.int8)
        self.scales = (10 ** random.uniform(-3, 1, (tokens, -(-columns // 128)))).astype(np.float32)

    @property
    def values(self) -> NDArray[np.float64]:
        scales = np.repeat(self.scales.astype(np.float64), 128, axis=1)[:, : self.codes.shape[1]]
        return np.asarray(scales * self.codes)


@EVERY_ISA
@EVERY_KIND
@settings(max_examples=15)
@given(rows=ROWS, tokens=TOKENS, size=st.integers(1, 3000), thread=st.integers(0, 1), seed=SEEDS)
def test_blocks(isa: str, kind: str, rows: int, tokens: int, size: int, thread: int, seed: int) -> None:
    columns = -(-size // BLOCKS[kind].columns) * BLOCKS[kind].columns
    random = np.random.default_rng(seed)
    weight, x = (
        PackedWeight(isa, kind, signed_blocks(kind, rows, columns, random)),
        Activations(tokens, columns, random),
    )
    Expected(x.values, weight.values, random).check(weight.times(x.codes, x.scales, thread))


@EVERY_ISA
@EVERY_KIND
def test_blocks_with_every_number_of_tokens(isa: str, kind: str) -> None:
    columns, random = 2 * BLOCKS[kind].columns, np.random.default_rng(2)
    weight, x = PackedWeight(isa, kind, signed_blocks(kind, 50, columns, random)), Activations(40, columns, random)
    expected = Expected(x.values, weight.values, random)
    for tokens in range(41):
        expected.check(weight.times(x.codes[:tokens], x.scales[:tokens]))


@EVERY_ISA
@EVERY_KIND
def test_many_tokens_have_the_bits_of_one(isa: str, kind: str) -> None:
    """More tokens than AMX takes at a time (`layouts.BLOCK_TOKENS`), too, and groups that are not full."""
    columns, random = 3 * max(BLOCKS[kind].columns, 192), np.random.default_rng(9)
    weight, x = PackedWeight(isa, kind, signed_blocks(kind, 40, columns, random)), Activations(530, columns, random)
    alone = [weight.times(x.codes[t : t + 1], x.scales[t : t + 1])[0] for t in range(40)]
    for tokens in (2, 4, 5, 8, 16, 17, 33, 530):
        found = weight.times(x.codes[:tokens], x.scales[:tokens])
        np.testing.assert_array_equal(found[:40], alone[:tokens])
    np.testing.assert_array_equal(found[-1], weight.times(x.codes[-1:], x.scales[-1:])[0])


@EVERY_ISA
@pytest.mark.parametrize("kind", ["q4_0", "q4_k"])
def test_many_tokens_with_many_rows(isa: str, kind: str) -> None:
    """Several pairs of tiles, several chunks of columns, and a second round of tokens."""
    random = np.random.default_rng(10)
    weight, x = PackedWeight(isa, kind, signed_blocks(kind, 1100, 1280, random)), Activations(530, 1280, random)
    found = weight.times(x.codes, x.scales)
    np.testing.assert_array_equal(
        found[[0, 511, 512, 529]],
        [weight.times(x.codes[t : t + 1], x.scales[t : t + 1])[0] for t in (0, 511, 512, 529)],
    )


@EVERY_ISA
@EVERY_KIND
@pytest.mark.parametrize("fill", [0x00, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("tokens", [1, 2, 5, 17])
def test_the_largest_sums(isa: str, kind: str, fill: int, tokens: int) -> None:
    """All codes, and integers of scales, as large as they may be, and inputs of one sign: sums in 16 bits hold them."""
    random, layout = np.random.default_rng(8), BLOCKS[kind]
    halves = signed_blocks(kind, 20, 512, random).reshape(-1, layout.bytes)
    blocks = np.full_like(halves, fill)
    for at_byte in HALVES[kind]:
        blocks[:, at_byte : at_byte + 2] = halves[:, at_byte : at_byte + 2]
    x = Activations(tokens, 512, random)
    x.codes[:] = np.where(np.arange(tokens) % 2, -127, 127)[:, None]
    weight = PackedWeight(isa, kind, blocks.reshape(20, -1))
    Expected(x.values, weight.values, random).check(weight.times(x.codes, x.scales))


@EVERY_KIND
@settings(max_examples=15)  # for each kind
@given(heads=st.integers(1, 3), half=st.integers(1, 20), turned=st.booleans(), seed=SEEDS)
def test_rows_are_packed_in_their_order(kind: str, heads: int, half: int, turned: bool, seed: int) -> None:
    """The order of half-split RoPE, and any other one."""
    random, rows = np.random.default_rng(seed), 2 * half * heads
    blocks = signed_blocks(kind, rows, 512, random)
    order = half_split_order(heads, 2 * half) if turned else random.permutation(rows)
    packed = PackedWeight(host_isa().name, kind, blocks, order)
    np.testing.assert_array_equal(packed.tiles, PackedWeight(host_isa().name, kind, blocks[order]).tiles)


@EVERY_ISA
@pytest.mark.parametrize("kind", ["q4_0", "q6_k"])
@pytest.mark.parametrize("tokens", [1, 3, 8, 20])
def test_many_rows(isa: str, kind: str, tokens: int) -> None:
    """So many rows that a thread claims several pairs of tiles at a time, and more columns than a chunk."""
    random = np.random.default_rng(6)
    weight, x = PackedWeight(isa, kind, signed_blocks(kind, 1100, 768, random)), Activations(tokens, 768, random)
    Expected(x.values, weight.values, random).check(weight.times(x.codes, x.scales))


@EVERY_ISA
@EVERY_KIND
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_nan_stays_with_its_token(isa: str, kind: str, tokens: int) -> None:
    """A token with NaN has a NaN scale, as `quantize` computes it."""
    random = np.random.default_rng(3)
    weight, x = PackedWeight(isa, kind, signed_blocks(kind, 20, 256, random)), Activations(tokens, 256, random)
    x.scales[-1, 1] = np.nan
    out = weight.times(x.codes, x.scales)
    assert np.isnan(out[-1]).all()
    assert np.isfinite(out[:-1]).all()


@EVERY_ISA
@EVERY_KIND
def test_zeros_are_zeros(isa: str, kind: str) -> None:
    weight = PackedWeight(isa, kind, signed_blocks(kind, 20, 256, np.random.default_rng(4)))
    for tokens in (1, 3, 8):
        for scale in (0.0, 1.0):
            assert not weight.times(np.zeros((tokens, 256), np.int8), np.full((tokens, 2), scale, np.float32)).any()


# --- float matrices ---------------------------------------------------------------------------------------------------

EVERY_DTYPE = pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])


def dense(isa: str, dtype: str, x: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """x @ weight.T, with the weight stored in `dtype`."""
    memory, (rows, columns), tokens = Memory(), weight.shape, len(x)
    stored = (weight.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else weight.astype(dtype)
    out = memory.rows(tokens, rows)
    scratch = memory.blank(2 * DENSE_SCRATCH, np.uint8)
    places = (memory.array(stored), *at(memory.rows_of(x)), *at(out), scratch, DENSE_SCRATCH)
    memory.run(isa, f"linear_{dtype}", [tokens], rows, columns, *places, thread=1)
    assert is_blank(out[:, rows:])
    assert is_blank(out[tokens:])
    return out[:tokens, :rows]


def random_weight(dtype: str, rows: int, columns: int, random: np.random.Generator) -> NDArray[np.float32]:
    return round_to(random.standard_normal((rows, columns)).astype(np.float32), dtype)


@EVERY_ISA
@EVERY_DTYPE
@given(rows=ROWS, columns=st.integers(1, 300), tokens=st.integers(0, 40), seed=SEEDS)
def test_float_matrices(isa: str, dtype: str, rows: int, columns: int, tokens: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    weight, x = random_weight(dtype, rows, columns, random), random_weight("float32", tokens, columns, random)
    Expected(x, weight, random).check(dense(isa, dtype, x, weight))


@EVERY_ISA
@EVERY_DTYPE
def test_many_tokens_have_the_bits_of_few(isa: str, dtype: str) -> None:
    """More tokens, rows and columns than are taken at a time, and columns that fill no vector."""
    random = np.random.default_rng(7)
    weight, x = random_weight(dtype, 41, 1035, random), random_weight("float32", 70, 1035, random)
    together = dense(isa, dtype, x, weight)
    Expected(x, weight, random).check(together)
    for tokens in (1, 2, 4, 7, 9, 11, 61):
        assert np.array_equal(dense(isa, dtype, x[-tokens:], weight), together[-tokens:])


@EVERY_ISA
@EVERY_DTYPE
@pytest.mark.parametrize("tokens", [1, 3, 5])
def test_float_weights_are_read_exactly(isa: str, dtype: str, tokens: int) -> None:
    """Random bits, so that the smallest and the largest numbers are among the weights."""
    random = np.random.default_rng(5)
    bits = random.integers(0, 2**32, (9, 45), np.uint32).view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        weight = round_to(bits, dtype)
    weight[~np.isfinite(weight)] = 1
    parts = np.split(np.eye(45, dtype=np.float32), range(tokens, 45, tokens))
    assert np.array_equal(np.concatenate([dense(isa, dtype, part, weight) for part in parts]).T, weight)
