"""Block formats: packing moves every byte to its place, and kernels read the numbers that `gguf` unpacks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_portable_numba.layouts import BLOCKS, TILE_ROWS
from numba_kernels import EVERY_ISA
from numba_linear import HALVES, KINDS, PackedWeight, signed_blocks
from numpy.typing import NDArray

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
SEEDS = st.integers(0, 2**31)


def unpacked(kind: str, tiles: NDArray[np.uint8], blocks: int) -> NDArray[np.uint8]:
    """The bytes of the rows, [rows, bytes], from tiles in the layout of `layouts.py`."""
    layout = BLOCKS[kind]
    tiles = tiles.reshape(-1, blocks, 2, TILE_ROWS * layout.bytes).swapaxes(1, 2)
    tiles = tiles.reshape(-1, blocks, TILE_ROWS * layout.bytes)
    rows = np.zeros((len(tiles), TILE_ROWS, blocks, layout.bytes), np.uint8)
    vectors = tiles[:, :, : 64 * layout.dwords].reshape(len(tiles), blocks, layout.dwords, TILE_ROWS, 4)
    dwords = vectors.transpose(0, 3, 1, 2, 4).reshape(*rows.shape[:3], 4 * layout.dwords)
    rows[..., layout.payload : layout.payload + 4 * layout.dwords] = dwords
    if layout.half >= 0:
        halves = tiles[:, :, 64 * layout.dwords :].reshape(len(tiles), blocks, TILE_ROWS, 2)
        rows[..., layout.half : layout.half + 2] = halves.transpose(0, 2, 1, 3)
    return rows.reshape(len(tiles) * TILE_ROWS, -1)


@EVERY_ISA
@EVERY_KIND
@settings(max_examples=20)
@given(rows=st.integers(1, 70), blocks=st.integers(1, 5), seed=SEEDS)
def test_tiles_hold_the_bytes_of_the_rows(isa: str, kind: str, rows: int, blocks: int, seed: int) -> None:
    source = np.random.default_rng(seed).integers(0, 256, (rows, blocks * BLOCKS[kind].bytes), np.uint8)
    back = unpacked(kind, PackedWeight(isa, kind, source).tiles, blocks)
    assert np.array_equal(back[:rows], source)
    assert len(back) == -(-rows // 32) * 32
    assert not back[rows:].any()


@EVERY_ISA
@EVERY_KIND
@pytest.mark.parametrize("together", [1, 7, 256])
def test_kernels_read_what_gguf_unpacks(isa: str, kind: str, together: int) -> None:
    """A token that is 1 in one column and 0 elsewhere gives that column's weights, bit for bit: scale * code, and the
    sum with an offset, are rounded as in `gguf`, and all other products are zeros."""
    rows, columns = 37, 256
    weight = PackedWeight(isa, kind, signed_blocks(kind, rows, columns, np.random.default_rng(1)))
    parts = np.split(np.eye(columns, dtype=np.int8), range(together, columns, together))
    read = [weight.times(part, np.ones((len(part), 2), np.float32)) for part in parts]
    assert np.array_equal(np.concatenate(read).T, weight.values)


@EVERY_ISA
@EVERY_KIND
def test_extreme_codes_do_not_overflow(isa: str, kind: str) -> None:
    """The largest weights and activations, with equal and with opposite signs."""
    layout, rows, columns = BLOCKS[kind], 5, 512
    for byte in (0x00, 0x7F, 0x80, 0xFF):
        blocks = np.full((rows, columns // layout.columns, layout.bytes), byte, np.uint8)
        for offset in HALVES[kind]:
            blocks[:, :, offset : offset + 2] = np.array([1], np.float16).view(np.uint8)
        weight = PackedWeight(isa, kind, blocks.reshape(rows, -1))
        for signs in ([1], [-1], [1, -1], [1, 1, -1, -1]):
            for tokens in (1, 3, 8):
                codes = np.resize(127 * np.array(signs, np.int8), (tokens, columns))
                out = weight.times(codes, np.ones((tokens, 4), np.float32))
                ref = codes.astype(np.float64) @ weight.values.T.astype(np.float64)
                np.testing.assert_allclose(out, ref, rtol=1e-5)
